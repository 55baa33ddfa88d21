"""Recipes of fine-tuning: every number, and where it comes from. Each enters the protocol's hash."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """One way to fine-tune."""

    steps: int
    """Updates of each training."""
    batch_size: int
    """Images of a step."""
    rates: tuple[float, ...]
    """Peak learning rates to choose from; not scaled with the batch."""
    optimizer: str = "adamw"
    """timm's name."""
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one before it; 1 is off."""
    eps: float = 1e-8
    min_lr: float = 1e-5
    """What the cosine ends at."""
    warmup_lr: float = 1e-6
    """What the linear warm-up starts from."""
    warmup_epochs: float = 5.0
    """Length of the warm-up in passes over the training images."""
    largest_warmup: float = 0.2
    """Share of the steps that the warm-up takes at most, for tasks whose epochs are long."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 is no clipping."""
    label_smoothing: float = 0.1
    augment: Literal["none", "crop_flip", "crop", "three_augment", "deit"] = "three_augment"
    """Preset of data.augment."""
    crop_pct: float = 1.0
    """Testing: centre crop's share of the resized image; 0 takes the backbone's own."""
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    """Copies of an image in a batch."""
    drop_path: float = 0.0
    train_on: Literal["train", "train+val"] = "train+val"
    """What the last training sees: train leaves official validation images out. Without official ones both are the
    same: images that are held out to choose a rate are part of train."""
    amp: bool = True
    """bfloat16 on GPUs; CPUs always compute in float32."""


RECIPES = {
    # Ours: minutes on a CPU, for small images; no flips, since digits and drawn shapes tell left from right.
    "builtin": Recipe(
        steps=150,
        batch_size=32,
        rates=(3e-4, 1e-3, 3e-3),
        layer_decay=0.75,  # timm's default where it is on
        augment="crop",
        warmup_epochs=1.0,
        amp=False,
    ),
    # DeiT's recipe (arXiv 2012.12877) as the official code of TextTeacher has it under "deit": batch 1024, rate 1e-3,
    # RandAugment, erasing, mixup, cutmix, three repeats, no clipping. Steps: DeiT fine-tunes on CIFAR and Cars for 1000
    # epochs (github.com/facebookresearch/deit/issues/45); 8000 of 1024 images are that on Cars.
    "deit": Recipe(
        steps=8000,
        batch_size=1024,
        rates=(1e-4, 3e-4, 1e-3),
        grad_clip=0.0,
        augment="deit",
        crop_pct=0.0,
        mixup=0.8,
        cutmix=1.0,
        repeats=3,
    ),
    # The configuration and run commands of TextTeacher's official code (github.com/tobna/TextTeacher), which fine-tunes
    # Flowers for 2000 epochs of four steps of 256 images; one rate for all sets. FusedLAMB there, timm's LAMB here.
    # Steps and batch are Flowers' for every set: Cars has batches of 1024 there (give finetune.batch_size). Flowers and
    # Aircraft are trained on their train split alone there, half of what others call their training images.
    "paper": Recipe(
        steps=8000,
        batch_size=256,
        rates=(3e-4,),
        optimizer="lamb",
        weight_decay=0.02,
        eps=1e-7,
        cutmix=1.0,
        drop_path=0.05,
        train_on="train",
    ),
}
