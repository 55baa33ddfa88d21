"""Recipes on the built-in clip art: real drawings with their own titles and keywords."""

from tt_ray.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from tt_ray.recipes.changes import change


def clipart_textteacher() -> Config:
    """Built-in clip art with clean labels; a small ViT, taught by all-MiniLM-L6-v2 from the drawings' own keywords.

    python -m tt_ray.train clipart_textteacher
    Two CPU cores, about two minutes. What it gains over clipart_baseline: docs/results.md. With
    --data.label_noise 0.5 half of the training labels are wrong.
    """
    return Config(
        data=DataConfig(source="clipart", group_column="group"),
        model=ModelConfig(
            "vit_tiny_patch16_224",
            {"patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3, "global_pool": "avg", "class_token": False},
        ),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(epochs=40, batch_size=64),
        run=RunConfig(name="clipart_textteacher"),
    )


def clipart_baseline() -> Config:
    """clipart_textteacher without text: plain timm training.

    python -m tt_ray.train clipart_baseline
    """
    return change(clipart_textteacher(), "clipart_baseline", {"text.weight": 0.0})
