"""The model is timm's, exactly; the text head beside it changes nothing of it."""

import random
import shutil

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tt_ray.config import Config, DataConfig, HeadConfig, ModelConfig, TextConfig
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.models.classifier import TextHead, build_backbone, build_model
from tt_ray.terminal.errors import UserError

CLASSES, DIM, SIZE = 5, 7, 32
VIT = ModelConfig("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2})
MODELS = {
    "vit": VIT,
    "deit": ModelConfig("deit_tiny_patch16_224", dict(VIT.kwargs)),
    "deit3": ModelConfig("deit3_small_patch16_224", {**VIT.kwargs, "init_values": 1e-4, "qkv_bias": True}),
    "swin": ModelConfig("swin_tiny_patch4_window7_224", {"embed_dim": 24}),
    "convnext": ModelConfig("convnext_atto"),
    "resnet": ModelConfig("resnet10t"),
}


def _config(model: ModelConfig = VIT, weight: float = 0.5, loss: str = "clip") -> Config:
    return Config(data=DataConfig(image_size=SIZE), model=model, text=TextConfig(weight=weight, loss=loss))


def _images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", MODELS)
def test_the_backbone_is_timms_and_the_head_changes_nothing(name: str) -> None:
    taught = build_model(_config(MODELS[name]), CLASSES, DIM).eval()
    plain = build_model(_config(MODELS[name], weight=0.0), CLASSES, 0).eval()
    assert plain.text_head is None and _equal(taught.backbone, plain.backbone)
    own = timm.create_model(MODELS[name].name, num_classes=CLASSES, **_timm_arguments(name)).eval()
    own.load_state_dict(taught.backbone.state_dict())
    with torch.no_grad():
        outputs, baseline, expected = taught(_images()), plain(_images()), own(_images())
    assert expected.shape == (3, CLASSES) and torch.equal(outputs.logits, expected)
    assert torch.equal(baseline.logits, expected) and baseline.text is None and baseline.scalars is None
    assert outputs.features.shape == (3, own.get_classifier().in_features)
    assert outputs.text is not None and outputs.text.shape == (3, DIM)


def _timm_arguments(name: str) -> dict:
    size = {} if name in ("convnext", "resnet") else {"img_size": SIZE}
    return {**MODELS[name].kwargs, **size}


def test_drop_and_drop_path_reach_timm() -> None:
    model = ModelConfig(VIT.name, dict(VIT.kwargs), drop_path=0.2, drop=0.5)
    backbone = build_backbone(_config(model), CLASSES)
    assert (backbone.head_drop.p, backbone.blocks[-1].drop_path1.drop_prob) == (0.5, pytest.approx(0.2))
    taught = build_model(_config(model), CLASSES, DIM).train()
    torch.manual_seed(0)
    outputs = taught(_images())
    torch.manual_seed(0)
    assert torch.equal(outputs.logits, taught.backbone(_images()))
    assert (outputs.features == 0).any(), "dropout before the classifier acts on what the text head sees, too"


def test_the_seed_decides_the_weights() -> None:
    config = _config()
    first, again = build_model(config, CLASSES, DIM), build_model(config, CLASSES, DIM)
    other = build_model(config.override("train.seed", 1), CLASSES, DIM)
    assert _equal(first, again)
    assert not _equal(first.backbone, other.backbone)
    assert first.text_head is not None and other.text_head is not None and not _equal(first.text_head, other.text_head)


def test_building_leaves_global_random_numbers_alone() -> None:
    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    build_model(_config(), CLASSES, DIM)
    assert states() == before


def test_weights_do_not_depend_on_global_random_numbers() -> None:
    first = build_model(_config(), CLASSES, DIM)
    torch.manual_seed(1234)
    assert _equal(first, build_model(_config(), CLASSES, DIM))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (ModelConfig("vit_tinny_patch16_224"), ["model.name is 'vit_tinny_patch16_224'", "vit_tiny_patch16_224"]),
        (ModelConfig("deit_tiny_distilled_patch16_224"), ["model.name is 'deit_tiny_distilled_patch16_224'", "linear"]),
        (ModelConfig(VIT.name, {"dpeth": 2}), ["timm cannot build", VIT.name, "dpeth"]),
        (ModelConfig(VIT.name, {"embed_dim": 25, "num_heads": 2}), ["timm cannot build", "embed_dim"]),
        (ModelConfig("hf-hub:timm/resnet10t.c3_in1k"), ["model.name"]),
    ],
)
def test_models_that_cannot_be_taught_are_refused(model: ModelConfig, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build_backbone(_config(model), CLASSES)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("head", "widths"),
    [
        (HeadConfig(), [(24, DIM)]),
        (HeadConfig(kind="linear", depth=4), [(24, DIM)]),
        (HeadConfig(kind="mlp", depth=1, hidden_dim=11), [(24, DIM)]),
        (HeadConfig(kind="mlp", depth=2, hidden_dim=11), [(24, 11), (11, DIM)]),
        (HeadConfig(kind="mlp", depth=4, hidden_dim=11), [(24, 11), (11, 11), (11, 11), (11, DIM)]),
    ],
)
def test_head_has_its_depth_and_width(head: HeadConfig, widths: list[tuple[int, int]]) -> None:
    layers = list(TextHead(head, 24, DIM).layers)
    linear, between = layers[::2], layers[1::2]
    assert [(layer.in_features, layer.out_features) for layer in linear] == widths
    assert all(layer.bias is not None for layer in linear)
    assert [type(layer) for layer in between] == [nn.GELU] * (len(widths) - 1)


@pytest.mark.parametrize("loss", ["clip", "siglip", "clip_learned"])
def test_head_holds_the_learned_scalars(loss: str) -> None:
    outputs = build_model(_config(loss=loss), CLASSES, DIM)(_images())
    assert (outputs.scalars is None) == (not ALIGNMENT_LOSSES[loss].learned)
    if outputs.scalars is not None:
        assert outputs.scalars.tolist() == pytest.approx(ALIGNMENT_LOSSES[loss].learned)


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_decay_names_what_timm_names(name: str) -> None:
    taught = build_model(_config(MODELS[name], loss="siglip"), CLASSES, DIM)
    timms = getattr(taught.backbone, "no_weight_decay", set)()
    assert {"text_head.scalars", *(f"backbone.{entry}" for entry in timms)} == taught.no_weight_decay()
    if name in ("vit", "deit"):
        assert {"backbone.pos_embed", "backbone.cls_token"} <= taught.no_weight_decay()
    plain = build_model(_config(MODELS[name], weight=0.0), CLASSES, 0)
    assert plain.no_weight_decay() == {f"backbone.{entry}" for entry in timms}


def _check_compiled() -> None:
    model = ModelConfig(VIT.name, {**VIT.kwargs, "depth": 1})
    eager, compiled = (build_model(_config(model), CLASSES, DIM) for _ in range(2))
    compiled.compile_backbone()
    names = set(eager.state_dict())
    assert set(compiled.state_dict()) == names, "checkpoints of compiled and eager models are the same"
    grads = []
    for taught in (eager, compiled):
        outputs = taught(_images())
        assert outputs.text is not None
        losses = (outputs.logits.square().sum(), outputs.text.square().sum())
        grads.append([torch.autograd.grad(loss, outputs.features, retain_graph=True)[0] for loss in losses])
        (losses[0] + losses[1]).backward()
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
    for (name, one), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
def test_compiled_backbone_keeps_the_path_from_features_to_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: real(function, backend="aot_eager"))
    _check_compiled()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_compiled_backbone_with_the_real_compiler() -> None:
    _check_compiled()


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_activations_that_are_computed_again_give_the_same_gradients(name: str) -> None:
    """Bit for bit, with the same random numbers in both forward passes."""
    found = []
    for again in (False, True):
        config = _config(MODELS[name]).override({"model.drop_path": 0.3, "train.activation_checkpointing": again})
        taught, ran = build_model(config, CLASSES, DIM), list[int]()
        for module in taught.backbone.modules():
            module.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        torch.manual_seed(7)
        outputs = taught(_images(8))
        assert outputs.text is not None
        (outputs.logits.square().sum() + outputs.text.square().sum()).backward()
        found.append(([parameter.grad for parameter in taught.parameters()], len(ran)))
    (kept, once), (computed, twice) = found
    assert twice > 1.3 * once
    assert all(one is not None and torch.equal(one, other) for one, other in zip(kept, computed, strict=True))


def test_models_without_blocks_to_compute_again_are_refused() -> None:
    config = _config(ModelConfig("hrnet_w18_small"), weight=0.0)
    build_model(config, CLASSES, 0)
    with pytest.raises(UserError, match=r"^model\.name is 'hrnet_w18_small', .*--train\.activation_checkpointing"):
        build_model(config.override("train.activation_checkpointing", True), CLASSES, 0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_the_compilers_mode_is_the_fields(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = list[str]()
    monkeypatch.setattr(torch, "compile", lambda function, mode: (modes.append(mode), function)[1])
    build_model(_config(), CLASSES, DIM).compile_backbone(mode)
    assert modes == [mode]
