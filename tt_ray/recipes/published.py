"""TextTeacher as its code trains it (github.com/tobna/TextTeacher), where it differs from ours. None was run by us.

Each difference is a field; `docs/results.md` says what it does. What is left: w of models that average their tokens is
measured at the tokens there, at the pooled feature here (the same for ViTs with a class token, as below); GPU kernels,
loaders and random numbers are others.
"""

from collections.abc import Callable, Mapping

from tt_ray.config import Config
from tt_ray.recipes.backbones import in1k_vit_b, in1k_vit_l
from tt_ray.recipes.imagenet import in1k_vit_s_borlan, in1k_vit_s_textteacher
from tt_ray.recipes.rows import Row, recipes

SETTING: Mapping[str, object] = {
    # 0.1 where targets are mixed and 0.1 in the cross-entropy again: 0.9 x 0.9 = 1 - 0.19, and 0.09/C + 0.1/C = 0.19/C.
    "optim.label_smoothing": 0.19,
    "optim.schedule_per": "epoch",
    # Each of 4 GPUs takes 512 images, which know nothing of the others' but through the mean of gradients.
    "text.scope": "worker",
    "run.num_workers": 4,
    "train.batch_size": 2048,
    "train.precision": "fp16",
    "text.loss_precision": "autocast",
    "train.eval_batch_mean": True,
    # Short side resized to 224, and 224 x 224 cut out.
    "data.crop_pct": 1.0,
    "model.drop_path": 0.05,
    # The code's own clipping does nothing; FusedLAMB's, at a norm of 1, is the same as ours.
    "optim.grad_clip": 1.0,
}
"""What the published setting has of its own, by field."""
_BASELINE = {**SETTING, "text.weight": 0.0}
_ALONE = "--data.root IMAGENET"
_SOURCE = "Settings: the code's defaults. The paper: up to +2.7 points top-1 over the baseline (arXiv 2605.22098)."
_BORLAN = {
    **SETTING,
    "text.loss": "borlan",
    "text.class_variance": "sample",
    "text.mixed_class": "argmax",
    "data.repeats": 2,
}


def _rows(size: str, base: Callable[[], Config]) -> tuple[Row, Row]:
    name, gpus = f"in1k_vit_{size}_published", "4 GPUs"
    about = f"ViT-{size.upper()}/16 on ImageNet-1k as published: smoothed twice, rate by epoch, each GPU by itself"
    taught = Row(name, about, base, SETTING, hardware=gpus, source=_SOURCE)
    return taught, Row(f"{name}_baseline", f"{name} without text", base, _BASELINE, _ALONE, gpus, _SOURCE)


RECIPES = recipes(
    (
        *_rows("s", in1k_vit_s_textteacher),
        *_rows("b", in1k_vit_b),
        *_rows("l", in1k_vit_l),
        Row(
            "in1k_vit_s_borlan_published",
            "BorLan as published: its own class texts, variances by n - 1, the larger class of mixed ones, two views",
            in1k_vit_s_borlan,
            _BORLAN,
            "--data.root IMAGENET --text.embeddings STORE --text.class_embeddings CLASSES",
            "4 GPUs",
            "CLASSES: embeddings of texts with ids WORDNET_ID/NUMBER (python -m tt_ray.embed_captions).",
        ),
    )
)
