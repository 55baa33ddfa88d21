"""Recipes on the built-in captioned shapes: each runs here in minutes. Without its teacher: --text.weight 0."""

from tt_ray.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from tt_ray.recipes.changes import change

_TEACHER = "runs/shapes_vision_teacher"


def shapes_textteacher() -> Config:
    """Built-in captioned shapes, half of whose training labels are wrong; a small ViT, taught by all-MiniLM-L6-v2.

    python -m tt_ray.train
    Two CPU cores, about two minutes. What it gains over shapes_baseline: docs/results.md. With
    --data.label_noise 0 the labels are clean, as those of any other --data.source are. No flips: captions tell left
    from right.
    """
    return Config(
        data=DataConfig(augment="crop", label_noise=0.5),
        model=ModelConfig(
            "vit_tiny_patch16_224",
            {"patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3, "global_pool": "avg", "class_token": False},
        ),
        train=TrainConfig(epochs=14, batch_size=64),
        run=RunConfig(name="shapes_textteacher"),
    )


def shapes_baseline() -> Config:
    """shapes_textteacher without text: plain timm training, at the learning rate that is best for it.

    python -m tt_ray.train shapes_baseline
    """
    return change(shapes_textteacher(), "shapes_baseline", {"text.weight": 0.0, "optim.lr": 5e-4})


def shapes_text_until_4() -> Config:
    """shapes_textteacher with the text loss in the first 4 of 14 epochs only: is the teacher a preconditioner?

    python -m tt_ray.train shapes_text_until_4
    Over several numbers of epochs and seeds: python -m eval.text_until. The paper: most of the benefit comes in the
    first 30 to 50 of 300 epochs (arXiv 2605.22098).
    """
    return change(shapes_textteacher(), "shapes_text_until_4", {"text.schedule": "jump-3-3-0"})


def shapes_vision_teacher() -> Config:
    """A ViT of twice the width for shapes_distilled, trained on other shapes with clean labels, without text.

    python -m tt_ray.train shapes_vision_teacher
    Two CPU cores, about two minutes.
    """
    kwargs = {"embed_dim": 192, "num_heads": 6}
    changes = {"data.label_noise": 0.0, "data.shapes.seed": 1, "text.weight": 0.0}
    config = shapes_textteacher()
    return change(config, "shapes_vision_teacher", {"model.kwargs": {**config.model.kwargs, **kwargs}, **changes})


def shapes_distilled() -> Config:
    """shapes_textteacher with the embedding of shapes_vision_teacher instead of text.

    python -m tt_ray.train shapes_vision_teacher && python -m tt_ray.train shapes_distilled
    Two CPU cores, about two minutes each.
    """
    return change(shapes_textteacher(), "shapes_distilled", {"teacher.model": _TEACHER})


def shapes_logits() -> Config:
    """Plain logit distillation (Hinton, arXiv 1503.02531) from shapes_vision_teacher.

    python -m tt_ray.train shapes_vision_teacher && python -m tt_ray.train shapes_logits
    Two CPU cores, about two minutes each.
    """
    teacher = {"teacher.model": _TEACHER, "teacher.target": "logits", "text.balance": False}
    return change(shapes_textteacher(), "shapes_logits", teacher)


def shapes_subset() -> Config:
    """shapes_textteacher on a quarter of the images, with clean labels, in as many steps.

    python -m tt_ray.train shapes_subset
    Two CPU cores, about two minutes.
    """
    changes = {"data.label_noise": 0.0, "data.subset": 0.25, "train.epochs": 56, "optim.warmup_epochs": 4.0}
    return change(shapes_textteacher(), "shapes_subset", changes)


def shapes_unlabelled() -> Config:
    """shapes_textteacher with the labels of a tenth of the images, which are clean, and the captions of all.

    python -m tt_ray.train shapes_unlabelled
    Two CPU cores, about two minutes. Its baseline sees the labelled tenth alone, and needs --train.epochs 149
    --optim.warmup_epochs 10.7 for as many steps.
    """
    return change(shapes_textteacher(), "shapes_unlabelled", {"data.label_noise": 0.0, "data.unlabelled": 0.9})
