"""Learning rate by step, what is decayed, and clipping."""

import math

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch._subclasses import FakeTensorMode

from tt_ray.config import Config, DataConfig, HeadConfig, ModelConfig, OptimConfig, TextConfig
from tt_ray.models.classifier import TaughtClassifier, build_model
from tt_ray.terminal.errors import UserError
from tt_ray.training.optim import build_optimizer, build_scheduler, clip_gradients, learning_rate


def _rates(config: OptimConfig, epochs: int, steps: int) -> list[float]:
    optimizer = build_optimizer(config, nn.Linear(2, 2))
    scheduler = build_scheduler(config, optimizer, epochs, steps)
    rates = []
    for step in range(epochs * steps + 2):
        scheduler.step_update(step)
        rates.append(learning_rate(optimizer))
        assert all(group["lr"] == rates[-1] for group in optimizer.param_groups)
    return rates


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 1.0, 2.3])
@pytest.mark.parametrize(("epochs", "steps"), [(4, 10), (7, 3)])
def test_linear_warm_up_then_cosine(warmup_epochs: float, epochs: int, steps: int) -> None:
    config = OptimConfig(lr=3e-3, warmup_lr=1e-6, min_lr=1e-5, warmup_epochs=warmup_epochs)
    rates, total, warmup = _rates(config, epochs, steps), epochs * steps, round(warmup_epochs * steps)
    for step in range(total):
        expected = 1e-5 + (3e-3 - 1e-5) * (1 + math.cos(math.pi * step / total)) / 2
        if step < warmup:
            expected = 1e-6 + (3e-3 - 1e-6) * step / warmup
        assert rates[step] == pytest.approx(expected, rel=1e-9), step
    assert rates[0] == pytest.approx(1e-6 if warmup else 3e-3)
    assert rates[total] == rates[total + 1] == pytest.approx(1e-5)


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    config = OptimConfig(warmup_epochs=1.0)
    optimizer = build_optimizer(config, nn.Linear(2, 2))
    scheduler, straight = build_scheduler(config, optimizer, 3, 5), _rates(config, 3, 5)
    for step in (14, 0, 7, 2):
        # As after a resume, which restores the groups of a later or earlier step.
        for group in optimizer.param_groups:
            group["lr"] = 123.0
        scheduler.step_update(step)
        assert learning_rate(optimizer) == straight[step]


def _model(loss: str = "siglip") -> TaughtClassifier:
    kwargs = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    config = Config(
        data=DataConfig(image_size=16),
        model=ModelConfig("vit_tiny_patch16_224", kwargs),
        text=TextConfig(loss=loss),
        head=HeadConfig(kind="mlp", hidden_dim=6),
    )
    return build_model(config, 3, 5)


def _decays(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(config, model).param_groups
    return {names[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_matrices_decay_and_nothing_else(name: str) -> None:
    model = _model()
    decays = _decays(model, OptimConfig(name=name, weight_decay=0.07))
    assert decays.keys() == dict(model.named_parameters()).keys()
    spared = {"backbone.pos_embed", "backbone.cls_token", "text_head.scalars"}
    for parameter, decay in decays.items():
        matrix = parameter.endswith(".weight") and "norm" not in parameter
        assert (parameter in spared) or matrix or parameter.endswith(".bias") or "norm" in parameter
        assert decay == (0.07 if matrix and parameter not in spared else 0.0), parameter
    assert spared <= decays.keys()
    assert decays["text_head.layers.0.weight"] == decays["text_head.layers.2.weight"] == 0.07


def test_layers_learn_more_slowly_the_earlier_they_are() -> None:
    model, config = _model(), OptimConfig(layer_decay=0.5, weight_decay=0.07, warmup_epochs=1.0)
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config, optimizer, 2, 5)
    plain = _rates(OptimConfig(warmup_epochs=1.0), 2, 5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    # Stem, the only block, and the final norm with the classifier; the text head is none of the backbone's layers.
    layers = {"backbone.patch_embed": 0.25, "backbone.blocks.0": 0.5, "backbone.head": 1.0, "text_head": 1.0}
    for step in (0, 3, 7):
        scheduler.step_update(step)
        assert learning_rate(optimizer) == pytest.approx(plain[step])
        rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates.keys() == names_of(model)
        for prefix, factor in layers.items():
            found = [rate for name, rate in rates.items() if name.startswith(prefix)]
            assert found == pytest.approx([factor * plain[step]] * len(found)) and found, prefix
    assert _decays(model, config) == _decays(model, OptimConfig(weight_decay=0.07))


def names_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_without_layer_decay_groups_are_as_timm_makes_them() -> None:
    assert [sorted(group) for group in build_optimizer(OptimConfig(), _model()).param_groups] == [
        sorted(group) for group in create_optimizer_v2(_model(), "adamw", weight_decay=0.05).param_groups
    ]


@pytest.mark.parametrize(("name", "has_eps"), [("adamw", True), ("lamb", True), ("sgd", False), ("lion", False)])
def test_rate_and_eps_reach_the_optimiser(name: str, has_eps: bool) -> None:
    optimizer = build_optimizer(OptimConfig(name=name, lr=0.25, eps=3e-5), nn.Linear(2, 2))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group.get("eps") for group in optimizer.param_groups] == [3e-5 if has_eps else None] * 2


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb", "lion", "adafactor", "nadamw"])
def test_torchs_optimisers_are_fused_on_a_gpu_and_as_ever_on_a_cpu(name: str) -> None:
    with FakeTensorMode():  # tensors without memory, on devices that are not there
        on_gpu = build_optimizer(OptimConfig(name=name), nn.Linear(2, 2, device="cuda"))
    fused = name in ("adamw", "adam", "sgd")
    assert all(bool(group.get("fused")) is fused for group in on_gpu.param_groups)
    on_cpu = build_optimizer(OptimConfig(name=name), nn.Linear(2, 2))
    assert not any(group.get("fused") for group in on_cpu.param_groups)


@pytest.mark.parametrize("overflows", [False, True])
def test_a_fused_step_after_unscaling_and_clipping_is_the_plain_one(
    overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler hands its scale to fused kernels: not once more after `unscale_`; torch has such kernels for CPUs."""
    after = []
    for fused in (False, True):
        torch.manual_seed(0)
        model, scaler = nn.Linear(3, 2), torch.amp.GradScaler("cpu")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        for step in range(3):
            loss = model(torch.ones(2, 3)).square().sum() * (float("inf") if overflows and step == 1 else 1)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clip_gradients(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        after.append([*model.parameters(), torch.tensor(scaler.get_scale())])
    for one, other in zip(*after, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


def test_unknown_optimiser_names_near_ones() -> None:
    with pytest.raises(UserError, match=r"optim\.name is 'adamm'; did you mean .*adam"):
        build_optimizer(OptimConfig(name="adamm"), nn.Linear(2, 2))


@pytest.mark.parametrize(("largest", "after"), [(0.0, 13.0), (1.0, 1.0), (12.0, 12.0), (20.0, 13.0)])
def test_clipping_returns_the_norm_before(largest: float, after: float) -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    norm = clip_gradients(iter(parameters), largest)
    assert isinstance(norm, torch.Tensor) and norm.item() == pytest.approx(13.0)
    clipped = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert torch.cat(clipped).norm().item() == pytest.approx(after, rel=1e-4)
    torch.testing.assert_close(torch.cat(clipped), torch.tensor([3.0, 4.0, 12.0]) * after / 13, rtol=1e-4, atol=0)
    assert parameters[2].grad is None
