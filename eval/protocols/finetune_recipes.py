"""Recipes of fine-tuning: every number, and where it comes from. Each enters the protocol's hash."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

COMMON: Mapping[str, Any] = {
    "optim.name": "adamw",
    "optim.weight_decay": 0.05,
    "optim.layer_decay": 1.0,
    "optim.eps": 1e-8,
    "optim.min_lr": 1e-5,
    "optim.warmup_lr": 1e-6,
    "optim.grad_clip": 1.0,
    "optim.label_smoothing": 0.1,
    "data.augment": "three_augment",
    "data.crop_pct": 1.0,  # 0 takes the backbone's own
    "data.mixup": 0.0,
    "data.cutmix": 0.0,
    "data.repeats": 1,
    "model.drop_path": 0.0,
}
"""Fields of the run's configuration that every recipe sets, by dotted path; a recipe's own go over them."""


@dataclass(frozen=True)
class Recipe:
    """One way to fine-tune: settings that a run's configuration has no field for, and the fields that it changes."""

    steps: int
    """Updates of each training."""
    batch_size: int
    """Images of a step."""
    rates: tuple[float, ...]
    """Peak learning rates to choose from; not scaled with the batch."""
    warmup_epochs: float = 5.0
    """Length of the warm-up in passes over the training images."""
    largest_warmup: float = 0.2
    """Share of the steps that the warm-up takes at most, for tasks whose epochs are long."""
    train_on: Literal["train", "train+val"] = "train+val"
    """Images of the last training: train leaves official validation images out. Without official ones both are the
    same: images that are held out to choose a rate are part of train."""
    schedules: tuple[int, ...] = ()
    """Numbers of steps to choose from, each with every rate; empty takes `steps`."""
    amp: bool = True
    """bfloat16 on GPUs; CPUs compute in float32 unless bf16 is asked for."""
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the run's configuration over `COMMON`, by dotted path."""

    @property
    def config(self) -> dict[str, Any]:
        """All fields of the run's configuration that the recipe sets, by dotted path."""
        return {**COMMON, **self.overrides}

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number by the name under which it enters the protocol's hash.

        Fields of the configuration go by their last word, so that results of older versions keep their hash.
        """
        own = {name: value for name, value in asdict(self).items() if name != "overrides"}
        if not self.schedules:
            del own["schedules"]
        words = {path: "optimizer" if path == "optim.name" else path.rpartition(".")[2] for path in COMMON}
        return own | {words[path]: value for path, value in self.config.items()}


_PAPER: Mapping[str, Any] = {
    "optim.name": "lamb",
    "optim.weight_decay": 0.02,
    "optim.eps": 1e-7,
    "data.cutmix": 1.0,
    "model.drop_path": 0.05,
}
RECIPES = {
    # Ours: minutes on a CPU, for small images; no flips, since digits and drawn shapes tell left from right.
    "builtin": Recipe(
        steps=150,
        batch_size=32,
        rates=(3e-4, 1e-3, 3e-3),
        warmup_epochs=1.0,
        amp=False,
        overrides={
            "optim.layer_decay": 0.75,  # timm's default where it is on
            "data.augment": "crop",
        },
    ),
    # DeiT's recipe (arXiv 2012.12877) as the official code of TextTeacher has it under "deit": batch 1024, rate 1e-3,
    # RandAugment, erasing, mixup, cutmix, three repeats, no clipping; drop path 0.05 and the whole of the resized image
    # in evaluation stay as in its other preset. Steps: DeiT fine-tunes on CIFAR and Cars for 1000 epochs
    # (github.com/facebookresearch/deit/issues/45); 8000 of 1024 images are that on Cars.
    "deit": Recipe(
        steps=8000,
        batch_size=1024,
        rates=(1e-4, 3e-4, 1e-3),
        overrides={
            "optim.grad_clip": 0.0,
            "data.augment": "deit",
            "data.mixup": 0.8,
            "data.cutmix": 1.0,
            "data.repeats": 3,
            "model.drop_path": 0.05,
        },
    ),
    # The configuration and run commands of TextTeacher's official code (github.com/tobna/TextTeacher); one rate for all
    # sets. FusedLAMB there, timm's LAMB here. Flowers and Aircraft are trained on their train split alone there, half
    # of what others call their training images. Epochs leave out their last, incomplete batch, so that Flowers' 1,020
    # images are 3 steps of 256, and 2,000 epochs 6,000 steps: for Flowers, and for sets without a command of their own.
    "paper": Recipe(steps=6000, batch_size=256, rates=(3e-4,), train_on="train", overrides=_PAPER),
    # VTAB's lightweight sweep (Zhai et al., 2019, arXiv 1910.04867): SGD with momentum 0.9, two rates and two lengths;
    # images are resized and not augmented, as in its code (github.com/google-research/task_adaptation). There the rate
    # is divided by ten three times, here it falls along a cosine, as in all our trainings.
    "vtab": Recipe(
        steps=2500,
        batch_size=512,
        rates=(0.01, 0.1),
        schedules=(2500, 10000),
        warmup_epochs=1000.0,
        largest_warmup=0.08,  # always: 80 of 1,000 steps are that code's default
        overrides={
            "optim.name": "momentum",
            "optim.weight_decay": 0.0,
            "optim.grad_clip": 0.0,
            "optim.label_smoothing": 0.0,
            "data.augment": "none",
        },
    ),
    # Cars: 8,144 images are 7 steps of 1,024, and 2,000 epochs 14,000 steps.
    "paper_cars": Recipe(steps=14000, batch_size=1024, rates=(3e-4,), train_on="train", overrides=_PAPER),
}
