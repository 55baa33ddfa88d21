"""Other backbones, DeiT's preset, ImageNet-21k and CUB: rows over in1k_vit_s_textteacher. None was run by us.

Without text each is its own baseline: --text.weight 0.
"""

from tt_ray.recipes.imagenet import in1k_vit_s_textteacher
from tt_ray.recipes.rows import Row, recipes

_LAYER_SCALE = {"init_values": 1e-4}
# As the code does: batch norm is of all GPUs' images.
_ONE_NORM = {"train__sync_batchnorm": True}
_SAME = "Training as in the paper's main setting; we do not know its figure for this backbone (arXiv 2605.22098)."
_ADAMW = {"optim.name": "adamw", "optim.lr": 1e-3, "optim.weight_decay": 0.05, "optim.eps": 1e-8}
_DEIT = {
    **_ADAMW,
    "train.batch_size": 1024,
    "optim.grad_clip": 0.0,
    "data.augment": "deit",
    "data.mixup": 0.8,
    "data.cutmix": 1.0,
    "data.repeats": 3,
}
_CUB = {
    "data.source": "datasets",
    "data.root": "Donghyun99/CUB-200-2011",
    "data.val_split": "test",
    "train.epochs": 2000,
    "train.batch_size": 256,
    "train.eval_every": 50,
    "run.num_workers": 1,
}


def _backbone(name: str, model: str, what: str, kwargs: dict[str, object], **more: object) -> Row:
    own = {path.replace("__", "."): value for path, value in more.items()}
    changes = {"model.name": model, "model.kwargs": kwargs, "model.drop_path": 0.05, **own}
    about = f"{what} on ImageNet-1k, taught by captions: timm's {model}"
    return Row(name, about, in1k_vit_s_textteacher, changes, source=_SAME)


_VIT_B = _backbone("in1k_vit_b_textteacher", "deit3_base_patch16_224", "ViT-B/16", {**_LAYER_SCALE})
_VIT_L = _backbone("in1k_vit_l_textteacher", "deit3_large_patch16_224", "ViT-L/16", {**_LAYER_SCALE})
_ROWS = (
    _VIT_B,
    _VIT_L,
    # As the code has it: blocks are dropped in place of paths.
    _backbone(
        "in1k_resnet50_textteacher",
        "resnet50",
        "ResNet-50",
        {"drop_block_rate": 0.05},
        model__drop_path=0.0,
        **_ONE_NORM,
    ),
    _backbone("in1k_swin_t_textteacher", "swin_tiny_patch4_window7_224", "Swin-T", {}),
    _backbone("in1k_convnext_t_textteacher", "convnext_tiny", "ConvNeXt-T", {}),
    _backbone("in1k_xcit_s_textteacher", "xcit_small_12_p16_224", "XCiT-S12/16", {}, **_ONE_NORM),
    _backbone("in1k_nextvit_s_textteacher", "nextvit_small", "NextViT-S", {}, **_ONE_NORM),
    Row(
        "in1k_deit_s_textteacher",
        "DeiT's preset for ViT-S/16 (arXiv 2012.12877), taught by captions",
        in1k_vit_s_textteacher,
        {**_DEIT, "model.name": "deit_small_patch16_224"},
        source="Settings: the code's second preset. We do not know the paper's figure (arXiv 2605.22098).",
    ),
    Row(
        "in21k_vit_b_textteacher",
        "ViT-B/16 on the 10,450 classes of ImageNet-21k-P, 90 epochs, taught by captions",
        in1k_vit_s_textteacher,
        {**_VIT_B.changes, "train.epochs": 90},
        "--data.root IMAGENET21K --text.embeddings STORE",
        source="IMAGENET21K has train/ and val/ with a folder per class. Epochs: DeiT III's (arXiv 2204.07118); the "
        "paper's we do not know (arXiv 2605.22098).",
    ),
    Row(
        "cub_vit_s_textteacher",
        "ViT-S/16 on the 5,994 training images of CUB-200-2011, taught by captions of a table",
        in1k_vit_s_textteacher,
        _CUB,
        "--text.captions TABLE",
        "1 GPU",
        "TABLE: python -m tt_ray.caption_images with the same data. Epochs: the code's for small sets; we do not know "
        "the paper's figure (arXiv 2605.22098).",
    ),
)

RECIPES = recipes(_ROWS)
in1k_vit_b, in1k_vit_l = RECIPES[:2]
