"""Named, complete configurations. A docstring gives command, hardware, time, expected result and source."""

from collections.abc import Callable
from dataclasses import replace

from tt_ray.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TextConfig, TrainConfig
from tt_ray.recipes.comparisons import comparisons


def shapes_textteacher() -> Config:
    """Built-in captioned shapes, half of whose training labels are wrong; a small ViT, taught by all-MiniLM-L6-v2.

    python -m tt_ray.train
    Two CPU cores, about two minutes. What it gains over shapes_baseline: README, "What the text buys". With
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
    config = _baseline(shapes_textteacher(), "shapes_baseline")
    return replace(config, optim=replace(config.optim, lr=5e-4))


def shapes_text_until_4() -> Config:
    """shapes_textteacher with the text loss in the first 4 of 14 epochs only: is the teacher a preconditioner?

    python -m tt_ray.train shapes_text_until_4
    Over several numbers of epochs and seeds: python -m eval.text_until. The paper: most of the benefit comes in the
    first 30 to 50 of 300 epochs (arXiv 2605.22098).
    """
    config = shapes_textteacher()
    text, run = replace(config.text, schedule="jump-3-3-0"), replace(config.run, name="shapes_text_until_4")
    return replace(config, text=text, run=run)


def in1k_vit_s_textteacher() -> Config:
    """ViT-S/16 on ImageNet-1k, 300 epochs, captions embedded by BERT-large: the paper's main setting.

    python -m tt_ray.train in1k_vit_s_textteacher --data.root IMAGENET --text.embeddings STORE
    8 GPUs; not run by us. The paper: 32 min per epoch against 31 for the baseline, up to +2.7 points top-1
    (arXiv 2605.22098). IMAGENET has train/ and val/ with a folder per class.
    """
    return Config(
        data=DataConfig(
            source="imagefolder", val_split="val", image_size=224, augment="three_augment", cutmix=1.0, cache_gb=0.0
        ),
        text=TextConfig(encoder="google-bert/bert-large-uncased"),
        model=ModelConfig(
            "deit3_small_patch16_224",  # no positional embedding on CLS, LayerScale
            {"init_values": 1e-4},
            drop_path=0.05,
        ),
        optim=OptimConfig(name="lamb", lr=3e-3, warmup_epochs=5.0, weight_decay=0.02, eps=1e-7),
        train=TrainConfig(epochs=300, batch_size=2048, precision="bf16", eval_every=5),
        run=RunConfig(name="in1k_vit_s_textteacher", num_workers=8, use_gpu=True, log_every=50),
    )


def in1k_vit_s_baseline() -> Config:
    """in1k_vit_s_textteacher without text: DeiT III's supervised recipe.

    python -m tt_ray.train in1k_vit_s_baseline --data.root IMAGENET
    8 GPUs; not run by us.
    """
    return _baseline(in1k_vit_s_textteacher(), "in1k_vit_s_baseline")


def _baseline(config: Config, name: str) -> Config:
    return replace(config, text=replace(config.text, weight=0.0), run=replace(config.run, name=name))


RECIPES: dict[str, Callable[[], Config]] = {
    "shapes_textteacher": shapes_textteacher,
    "shapes_baseline": shapes_baseline,
    "shapes_text_until_4": shapes_text_until_4,
    "in1k_vit_s_textteacher": in1k_vit_s_textteacher,
    "in1k_vit_s_baseline": in1k_vit_s_baseline,
    **comparisons(shapes_textteacher, in1k_vit_s_textteacher),
}
