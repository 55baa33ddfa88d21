"""What a run is: sections of fields, the tree that holds them, and the checks across them."""

from tt_ray.config.sections import (
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ShapesConfig,
    TeacherConfig,
    TextConfig,
    TrainConfig,
)
from tt_ray.config.tree import Config

__all__ = [
    "Config",
    "DataConfig",
    "HeadConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "ShapesConfig",
    "TeacherConfig",
    "TextConfig",
    "TrainConfig",
]
