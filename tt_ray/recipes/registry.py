"""The recipes by name. A docstring says command, hardware, time, expected result and source."""

from collections.abc import Callable

from tt_ray.config import Config
from tt_ray.recipes import backbones, clipart, imagenet, published, shapes

_RECIPES: tuple[Callable[[], Config], ...] = (
    shapes.shapes_textteacher,
    shapes.shapes_baseline,
    shapes.shapes_text_until_4,
    clipart.clipart_textteacher,
    clipart.clipart_baseline,
    imagenet.in1k_vit_s_textteacher,
    imagenet.in1k_vit_s_baseline,
    shapes.shapes_vision_teacher,
    shapes.shapes_distilled,
    shapes.shapes_logits,
    shapes.shapes_subset,
    shapes.shapes_unlabelled,
    imagenet.in1k_vit_s_clip_b,
    imagenet.in1k_vit_s_clip_l,
    imagenet.in1k_vit_s_dino_b,
    imagenet.in1k_vit_s_dinov2_b,
    imagenet.in1k_vit_s_dinov2_l,
    imagenet.in1k_vit_s_dinov3_b,
    imagenet.in1k_vit_s_dinov3_l,
    imagenet.in1k_vit_s_logits,
    imagenet.in1k_vit_s_noise,
    imagenet.in1k_vit_s_subset,
    imagenet.in1k_vit_s_unlabelled,
    imagenet.in1k_vit_s_borlan,
    imagenet.in1k_vit_s_vl2lite,
    imagenet.in1k_vit_s_coca_l,
    *backbones.RECIPES,
    *published.RECIPES,
)
RECIPES = {recipe.__name__: recipe for recipe in _RECIPES}
"""A new recipe is a function in `shapes.py`, `clipart.py`, `imagenet.py` or a file of its own, and a row above; or a
row of a table (`rows.py`) in `backbones.py` or `published.py`."""
