"""Recipes on ImageNet-1k for 8 GPUs: the paper's main setting, and what it compares with. None was run by us.

Without its teacher each is its own baseline: --text.weight 0.
"""

from dataclasses import replace

from tt_ray.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TeacherConfig,
    TextConfig,
    TrainConfig,
)
from tt_ray.recipes.changes import change


def in1k_vit_s_textteacher() -> Config:
    """ViT-S/16 on ImageNet-1k, 300 epochs, captions embedded by BERT-large: the paper's main setting.

    python -m tt_ray.train in1k_vit_s_textteacher --data.root IMAGENET --text.embeddings STORE
    8 GPUs; not run by us. The paper: 32 min per epoch against 31 for the baseline, up to +2.7 points top-1
    (arXiv 2605.22098). IMAGENET has train/ and val/ with a folder per class. The model is compiled, and computes in
    bf16 (train.precision auto); the paper's in fp16.
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
        train=TrainConfig(epochs=300, batch_size=2048, compile=True, eval_every=5),
        run=RunConfig(name="in1k_vit_s_textteacher", num_workers=8, use_gpu=True, log_every=50),
    )


def in1k_vit_s_baseline() -> Config:
    """in1k_vit_s_textteacher without text: DeiT III's supervised recipe.

    python -m tt_ray.train in1k_vit_s_baseline --data.root IMAGENET
    8 GPUs; not run by us.
    """
    return change(in1k_vit_s_textteacher(), "in1k_vit_s_baseline", {"text.weight": 0.0})


def in1k_vit_s_clip_b() -> Config:
    """in1k_vit_s_textteacher with the embedding of hf:openai/clip-vit-base-patch16+projection instead of text.

    python -m tt_ray.train in1k_vit_s_clip_b --data.root IMAGENET
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_clip_b", "hf:openai/clip-vit-base-patch16+projection")


def in1k_vit_s_clip_l() -> Config:
    """in1k_vit_s_textteacher with the embedding of hf:openai/clip-vit-large-patch14+projection instead of text.

    python -m tt_ray.train in1k_vit_s_clip_l --data.root IMAGENET
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_clip_l", "hf:openai/clip-vit-large-patch14+projection")


def in1k_vit_s_dino_b() -> Config:
    """in1k_vit_s_textteacher with the embedding of timm:vit_base_patch8_224.dino instead of text.

    python -m tt_ray.train in1k_vit_s_dino_b --data.root IMAGENET
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_dino_b", "timm:vit_base_patch8_224.dino")


def in1k_vit_s_dinov2_b() -> Config:
    """in1k_vit_s_textteacher with the embedding of timm:vit_base_patch14_dinov2.lvd142m instead of text.

    python -m tt_ray.train in1k_vit_s_dinov2_b --data.root IMAGENET
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_dinov2_b", "timm:vit_base_patch14_dinov2.lvd142m", 224)


def in1k_vit_s_dinov2_l() -> Config:
    """in1k_vit_s_textteacher with the embedding of timm:vit_large_patch14_dinov2.lvd142m instead of text.

    python -m tt_ray.train in1k_vit_s_dinov2_l --data.root IMAGENET
    8 GPUs; not run by us. The paper: 48 min per epoch against 31 for the baseline (1.55x); TextTeacher
    reaches its 79.1 % in 66 % of the time (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_dinov2_l", "timm:vit_large_patch14_dinov2.lvd142m", 224)


def in1k_vit_s_dinov3_b() -> Config:
    """in1k_vit_s_textteacher with the embedding of timm:vit_base_patch16_dinov3.lvd1689m instead of text.

    python -m tt_ray.train in1k_vit_s_dinov3_b --data.root IMAGENET
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_dinov3_b", "timm:vit_base_patch16_dinov3.lvd1689m", 224)


def in1k_vit_s_dinov3_l() -> Config:
    """in1k_vit_s_textteacher with the embedding of timm:vit_large_patch16_dinov3.lvd1689m instead of text.

    python -m tt_ray.train in1k_vit_s_dinov3_l --data.root IMAGENET
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_dinov3_l", "timm:vit_large_patch16_dinov3.lvd1689m", 224)


def in1k_vit_s_coca_l() -> Config:
    """in1k_vit_s_textteacher with the embedding of CoCa-L, which also wrote the paper's captions, instead of text.

    python -m tt_ray.train in1k_vit_s_coca_l --data.root IMAGENET
    8 GPUs; not run by us. Needs open_clip (pip install "tt-ray[coca]"). We do not know the paper's figure
    (arXiv 2605.22098).
    """
    return _taught_by("in1k_vit_s_coca_l", "open_clip:coca_ViT-L-14/mscoco_finetuned_laion2B-s13B-b90k")


def in1k_vit_s_logits() -> Config:
    """Plain logit distillation (arXiv 1503.02531) on ImageNet-1k from DeiT's own teacher, a RegNetY-16GF.

    python -m tt_ray.train in1k_vit_s_logits --data.root IMAGENET
    8 GPUs; not run by us. Needs WordNet ids as classes, as ImageNet's folders are called. At DeiT's soft
    temperature of 3 (arXiv 2012.12877).
    """
    config = replace(in1k_vit_s_textteacher(), teacher=TeacherConfig("timm:regnety_160.deit_in1k", "logits", 3.0))
    return change(config, "in1k_vit_s_logits", {"text.balance": False})


def in1k_vit_s_noise() -> Config:
    """in1k_vit_s_textteacher with half of the training labels replaced.

    python -m tt_ray.train in1k_vit_s_noise --data.root IMAGENET --text.embeddings STORE
    8 GPUs; not run by us. The paper: +8.4 points top-1 over the same without text (arXiv 2605.22098).
    """
    return change(in1k_vit_s_textteacher(), "in1k_vit_s_noise", {"data.label_noise": 0.5})


def in1k_vit_s_subset() -> Config:
    """in1k_vit_s_textteacher on a tenth of the training images of each class.

    python -m tt_ray.train in1k_vit_s_subset --data.root IMAGENET --text.embeddings STORE
    8 GPUs; not run by us. The paper compares sub-sampled sets too; we do not know its figure
    (arXiv 2605.22098).
    """
    return change(in1k_vit_s_textteacher(), "in1k_vit_s_subset", {"data.subset": 0.1})


def in1k_vit_s_unlabelled() -> Config:
    """in1k_vit_s_textteacher with the labels of a tenth of the training images, and the captions of all.

    python -m tt_ray.train in1k_vit_s_unlabelled --data.root IMAGENET --text.embeddings STORE
    8 GPUs; not run by us. The paper compares this too; we do not know its figure (arXiv 2605.22098).
    """
    return change(in1k_vit_s_textteacher(), "in1k_vit_s_unlabelled", {"data.unlabelled": 0.9})


def in1k_vit_s_borlan() -> Config:
    """BorLan's class-wise Gaussians of caption embeddings; likewise with --text.loss vl2litetext.

    python -m tt_ray.train in1k_vit_s_borlan --data.root IMAGENET --text.embeddings STORE
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    return change(in1k_vit_s_textteacher(), "in1k_vit_s_borlan", {"text.loss": "borlan"})


def in1k_vit_s_vl2lite() -> Config:
    """VL2Lite: CLIP B/16's projected text and image embeddings together.

    python -m tt_ray.train in1k_vit_s_vl2lite --data.root IMAGENET --text.captions TABLE
    8 GPUs; not run by us. We do not know the paper's figure (arXiv 2605.22098).
    """
    clip = "openai/clip-vit-base-patch16+projection"
    changes = {"teacher.model": f"hf:{clip}", "text.loss": "vl2lite", "text.encoder": clip}
    return change(in1k_vit_s_textteacher(), "in1k_vit_s_vl2lite", changes)


def _taught_by(name: str, model: str, image_size: int = 0) -> Config:
    """The main recipe with an online vision teacher; 0 is the teacher's own size of images."""
    config = replace(in1k_vit_s_textteacher(), teacher=TeacherConfig(model, image_size=image_size))
    return change(config, name, {})
