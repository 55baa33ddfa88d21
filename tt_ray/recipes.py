"""Named, complete configurations. A docstring gives command, hardware, time, expected result and source."""

from collections.abc import Callable
from dataclasses import replace

from tt_ray.config import Config, DataConfig, ModelConfig, RunConfig


def shapes_textteacher() -> Config:
    """Built-in captioned shapes, a small ViT, taught by all-MiniLM-L6-v2."""
    return Config(
        data=DataConfig(image_size=32),
        model=ModelConfig("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}),
        run=RunConfig(name="shapes_textteacher"),
    )


def shapes_baseline() -> Config:
    """The same without text."""
    config = shapes_textteacher()
    return replace(
        config, text=replace(config.text, weight=0.0), run=replace(config.run, name="shapes_baseline")
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "shapes_textteacher": shapes_textteacher,
    "shapes_baseline": shapes_baseline,
}
