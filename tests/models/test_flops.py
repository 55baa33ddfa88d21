"""Counts against hand counts of a ViT, against published figures, and with fused and plain attention."""

import timm
import torch
from timm.layers import set_fused_attn
from torch import nn

from tt_ray.models.flops import Counts, count

WIDTH, DEPTH, HEADS, PATCH, SIZE, CLASSES = 24, 2, 2, 8, 32, 5


def vit() -> nn.Module:
    kwargs = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": SIZE}
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **kwargs)


def test_a_vit_counted_by_hand() -> None:
    patches = (SIZE // PATCH) ** 2
    tokens = patches + 1
    # qkv, projection, both layers of the MLP; scores and their product with the values, over all heads.
    block = tokens * WIDTH * WIDTH * (3 + 1 + 4 + 4) + 2 * tokens * tokens * WIDTH
    macs = patches * 3 * PATCH**2 * WIDTH + DEPTH * block + WIDTH * CLASSES
    outputs = tokens * WIDTH * (3 + 1 + 1 + 4 + 1) + HEADS * tokens * tokens
    activations = patches * WIDTH + DEPTH * outputs + CLASSES
    model = vit()
    params = sum(parameter.numel() for parameter in model.parameters())
    assert count(model, SIZE) == Counts(params, 2 * macs, activations, SIZE)


def test_fused_attention_counts_as_plain_attention_does() -> None:
    fused = count(vit(), SIZE)
    set_fused_attn(False)
    try:
        plain = count(vit(), SIZE)
    finally:
        set_fused_attn(True)
    assert fused == plain


def test_published_figures_of_vit_s() -> None:
    """timm's model card of vit_small_patch16_224: 22.1 M parameters, 4.6 GMACs, 11.9 M activations."""
    found = count(timm.create_model("vit_small_patch16_224"), 224)
    assert (round(found.params / 1e6, 1), round(found.flops / 2e9, 1)) == (22.1, 4.6)
    assert 11.9 <= found.activations / 1e6 < 12


def test_the_model_is_left_as_it_was() -> None:
    model = timm.create_model("resnet18", num_classes=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, 32)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
