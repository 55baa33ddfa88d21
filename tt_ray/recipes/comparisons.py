"""The paper's comparisons as recipes: vision teachers, literature baselines, label noise, fewer images, fewer labels.

Without its teacher each is its own baseline: --text.weight 0.
"""

from collections.abc import Callable
from dataclasses import replace

from tt_ray.config import Config, TeacherConfig

Recipe = Callable[[], Config]
SHAPES_TEACHER = "runs/shapes_vision_teacher"
# What arXiv 2605.22098 distils from; the last is the input's size where it differs from the model's own.
VISION_TEACHERS: dict[str, tuple[str, int]] = {
    "clip_b": ("timm:vit_base_patch16_clip_224.openai", 0),
    "clip_l": ("timm:vit_large_patch14_clip_224.openai", 0),
    "dino_b": ("timm:vit_base_patch16_224.dino", 0),
    "dinov2_b": ("timm:vit_base_patch14_dinov2.lvd142m", 224),
    "dinov2_l": ("timm:vit_large_patch14_dinov2.lvd142m", 224),
    "dinov3_b": ("timm:vit_base_patch16_dinov3.lvd1689m", 224),
    "dinov3_l": ("timm:vit_large_patch16_dinov3.lvd1689m", 224),
}
# The paper's figure for each, as far as we know it.
_FIGURES = {
    "dinov2_l": "48 min per epoch against 31 for the baseline (1.55x); TextTeacher has its 79.1 % in 66 % of the time"
}


def comparisons(shapes: Recipe, in1k: Recipe) -> dict[str, Recipe]:
    """The recipes by name, made from the main ones."""
    recipes = [
        *_on_shapes(shapes),
        *(_vision_teacher(in1k, name) for name in VISION_TEACHERS),
        *_on_in1k(in1k),
    ]
    return {recipe.__name__: recipe for recipe in recipes}


def _on_shapes(shapes: Recipe) -> list[Recipe]:
    def shapes_vision_teacher() -> Config:
        """A ViT of twice the width for shapes_distilled, trained on other shapes with clean labels, without text.

        python -m tt_ray.train shapes_vision_teacher
        Two CPU cores, about two minutes.
        """
        kwargs = {"embed_dim": 192, "num_heads": 6}
        changes = {"data.label_noise": 0.0, "data.shapes.seed": 1, "text.weight": 0.0}
        config = shapes()
        return _change(config, "shapes_vision_teacher", {"model.kwargs": {**config.model.kwargs, **kwargs}, **changes})

    def shapes_distilled() -> Config:
        """shapes_textteacher with the embedding of shapes_vision_teacher in the place of text.

        python -m tt_ray.train shapes_vision_teacher && python -m tt_ray.train shapes_distilled
        Two CPU cores, about two minutes each.
        """
        return _change(shapes(), "shapes_distilled", {"teacher.model": SHAPES_TEACHER})

    def shapes_logits() -> Config:
        """Plain logit distillation (Hinton, arXiv 1503.02531) from shapes_vision_teacher.

        python -m tt_ray.train shapes_vision_teacher && python -m tt_ray.train shapes_logits
        Two CPU cores, about two minutes each.
        """
        teacher = {"teacher.model": SHAPES_TEACHER, "teacher.target": "logits", "text.balance": False}
        return _change(shapes(), "shapes_logits", teacher)

    def shapes_subset() -> Config:
        """shapes_textteacher on a quarter of the images, with clean labels, in as many steps.

        python -m tt_ray.train shapes_subset
        Two CPU cores, about two minutes.
        """
        changes = {"data.label_noise": 0.0, "data.subset": 0.25, "train.epochs": 56, "optim.warmup_epochs": 4.0}
        return _change(shapes(), "shapes_subset", changes)

    def shapes_unlabelled() -> Config:
        """shapes_textteacher with the labels of a tenth of the images, which are clean, and the captions of all.

        python -m tt_ray.train shapes_unlabelled
        Two CPU cores, about two minutes. Its baseline sees the labelled tenth alone, and needs --train.epochs 149
        --optim.warmup_epochs 10.7 for as many steps.
        """
        return _change(shapes(), "shapes_unlabelled", {"data.label_noise": 0.0, "data.unlabelled": 0.9})

    return [shapes_vision_teacher, shapes_distilled, shapes_logits, shapes_subset, shapes_unlabelled]


def _vision_teacher(in1k: Recipe, name: str) -> Recipe:
    model, size = VISION_TEACHERS[name]

    def recipe() -> Config:
        config = replace(in1k(), teacher=TeacherConfig(model, image_size=size))
        return _change(config, recipe.__name__, {"train.compile": True})

    recipe.__name__ = f"in1k_vit_s_{name}"
    figure = f"The paper: {_FIGURES[name]}." if name in _FIGURES else "We do not know the paper's figure."
    recipe.__doc__ = f"""in1k_vit_s_textteacher with the embedding of {model} in the place of text.

        python -m tt_ray.train {recipe.__name__} --data.root IMAGENET
        8 GPUs; not run by us. {figure} (arXiv 2605.22098)
        """
    return recipe


def _on_in1k(in1k: Recipe) -> list[Recipe]:
    def in1k_vit_s_logits() -> Config:
        """Plain logit distillation (arXiv 1503.02531) on ImageNet-1k from DeiT's own teacher, a RegNetY-16GF.

        python -m tt_ray.train in1k_vit_s_logits --data.root IMAGENET
        8 GPUs; not run by us. Needs WordNet ids as classes, as ImageNet's folders are called. At DeiT's soft
        temperature of 3 (arXiv 2012.12877).
        """
        config = replace(in1k(), teacher=TeacherConfig("timm:regnety_160.deit_in1k", "logits", 3.0))
        return _change(config, "in1k_vit_s_logits", {"text.balance": False, "train.compile": True})

    def in1k_vit_s_noise() -> Config:
        """in1k_vit_s_textteacher with half of the training labels replaced.

        python -m tt_ray.train in1k_vit_s_noise --data.root IMAGENET --text.embeddings STORE
        8 GPUs; not run by us. The paper: +8.4 points top-1 over the same without text (arXiv 2605.22098).
        """
        return _change(in1k(), "in1k_vit_s_noise", {"data.label_noise": 0.5})

    def in1k_vit_s_subset() -> Config:
        """in1k_vit_s_textteacher on a tenth of the training images of each class.

        python -m tt_ray.train in1k_vit_s_subset --data.root IMAGENET --text.embeddings STORE
        8 GPUs; not run by us. The paper compares sub-sampled sets too; we do not know its figure
        (arXiv 2605.22098).
        """
        return _change(in1k(), "in1k_vit_s_subset", {"data.subset": 0.1})

    def in1k_vit_s_unlabelled() -> Config:
        """in1k_vit_s_textteacher with the labels of a tenth of the training images, and the captions of all.

        python -m tt_ray.train in1k_vit_s_unlabelled --data.root IMAGENET --text.embeddings STORE
        8 GPUs; not run by us. The paper compares this too; we do not know its figure (arXiv 2605.22098).
        """
        return _change(in1k(), "in1k_vit_s_unlabelled", {"data.unlabelled": 0.9})

    def in1k_vit_s_borlan() -> Config:
        """BorLan's class-wise Gaussians of caption embeddings; likewise with --text.loss vl2litetext.

        python -m tt_ray.train in1k_vit_s_borlan --data.root IMAGENET --text.embeddings STORE
        8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
        """
        return _change(in1k(), "in1k_vit_s_borlan", {"text.loss": "borlan"})

    def in1k_vit_s_vl2lite() -> Config:
        """VL2Lite: CLIP B/16's projected text and image embeddings together.

        python -m tt_ray.train in1k_vit_s_vl2lite --data.root IMAGENET --text.captions TABLE
        8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
        """
        clip = "openai/clip-vit-base-patch16+projection"
        changes = {"teacher.model": f"hf:{clip}", "text.loss": "vl2lite", "text.encoder": clip, "train.compile": True}
        return _change(in1k(), "in1k_vit_s_vl2lite", changes)

    return [
        *(in1k_vit_s_logits, in1k_vit_s_noise, in1k_vit_s_subset, in1k_vit_s_unlabelled, in1k_vit_s_borlan),
        in1k_vit_s_vl2lite,
    ]


def _change(config: Config, name: str, changes: dict[str, object]) -> Config:
    for path, value in {**changes, "run.name": name}.items():
        config = config.override(path, value)
    return config
