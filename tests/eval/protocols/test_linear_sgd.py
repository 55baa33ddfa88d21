"""Heads against torch's SGD, inputs against the model's own tokens, and the whole protocol on a toy task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eval.contract import EvalConfig, Result
from eval.protocols import linear_sgd
from eval.protocols.linear_sgd import RATES, Heads, Options, Views, inputs
from tests.eval.toy_task import ToyTask, coloured, toy_backbone
from tt_ray.terminal.errors import UserError

TOY = Options(rates=(1e-3, 0.1, 1.0), steps=12, batch_size=24, smallest_cut=0.5)


def run(tmp_path: Path, options: Options = TOY, **changes: Any) -> Result:
    toy: Any = changes.pop("task", None) or ToyTask()
    backbone = changes.pop("backbone", None) or toy_backbone()
    return linear_sgd.evaluate(backbone, toy, EvalConfig(options, tmp_path, **changes))


def test_heads_are_trained_as_by_torchs_sgd() -> None:
    torch.manual_seed(0)
    rates = torch.tensor([0.01, 0.5])
    heads = Heads(7, 4, rates, seed=3)
    assert torch.equal(heads.weights[0], heads.weights[1]) and 0.005 < heads.weights[0].std() < 0.02
    assert not heads.bias.any()
    layers = [nn.Linear(7, 4) for _ in rates]
    for layer in layers:
        layer.weight.data.copy_(heads.weights[0])
        layer.bias.data.zero_()
    groups = [{"params": layer.parameters(), "lr": float(rate)} for layer, rate in zip(layers, rates, strict=True)]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    for step in range(6):
        x, labels = torch.randn(5, 7), torch.randint(4, (5,))
        heads.step(x, labels, (1 + np.cos(np.pi * step / 6)) / 2, 0.9)
        optimiser.zero_grad()
        sum(nn.functional.cross_entropy(layer(x), labels) for layer in layers).backward()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()
    for place, layer in enumerate(layers):
        torch.testing.assert_close(heads.weights[place], layer.weight.data)
        torch.testing.assert_close(heads.bias[place, 0], layer.bias.data)


def test_inputs_are_the_models_tokens() -> None:
    backbone, images = toy_backbone(), torch.randn(3, 3, 16, 16)
    model: Any = backbone.model
    with torch.inference_mode():
        found = inputs(backbone, images, Options())
        tokens = model.forward_features(images)
    one, two = "class token of 1 block", "class token of 2 blocks"  # there are two blocks
    assert list(found) == [one, f"{one} + patches", two, f"{two} + patches"]
    assert torch.equal(found[one], tokens[:, 0])
    assert torch.equal(found[f"{one} + patches"], torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert torch.equal(found[two][:, 24:], tokens[:, 0]) and not torch.equal(found[two][:, :24], tokens[:, 0])
    assert found[f"{two} + patches"].shape == (3, 72)


def test_models_without_a_class_token_give_the_pooled_feature() -> None:
    backbone, images = toy_backbone(name="resnet10t"), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        found = inputs(backbone, images, Options())
        assert list(found) == ["pooled"] and torch.equal(found["pooled"], backbone.pooled(images))


def test_views_come_from_the_seed_and_every_image_comes_once_a_round() -> None:
    source = coloured(10, 1)
    options = replace(TOY, batch_size=4)
    first, again, other = (Views(source, 16, options, seed) for seed in (0, 0, 1))
    assert torch.equal(first[5][0], again[5][0]) and not torch.equal(first[5][0], other[5][0])
    rows = np.array([first._row(place) for place in range(20)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10)) and (rows[:10] != rows[10:]).any()
    images, labels = first[0]
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(labels, torch.from_numpy(source.labels[rows[:4]]))


def test_the_protocol_learns_colours(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.metrics["top1"] > 90 and result.n == 45 and result.predictions is not None
    assert result.metrics["top1"] == pytest.approx(100 * (result.predictions == result.labels).mean())
    assert len(result.chosen["heads"]) == 12 and result.chosen["validation"] == max(result.chosen["heads"].values())
    again = run(tmp_path, batch_size=7, num_loaders=1)
    assert again.chosen["heads"] == result.chosen["heads"]
    assert (again.predictions == result.predictions).all()


def test_the_test_split_has_no_say(tmp_path: Path) -> None:
    shifted = ToyTask(shift=1)
    first, second = run(tmp_path), run(tmp_path, task=shifted)
    assert first.chosen == second.chosen and first.metrics["top1"] > 90 > second.metrics["top1"]
    assert shifted.log.index("test") == len(shifted.log) - 1


def test_official_validation_images_choose(tmp_path: Path) -> None:
    task = ToyTask(has_val=True)
    assert run(tmp_path, task=task).metrics["top1"] > 90
    assert task.log == ["train", "val", "test"]


def test_heads_that_diverge_are_left_out(tmp_path: Path) -> None:
    result = run(tmp_path, replace(TOY, rates=(0.1, float("inf"))))
    assert result.chosen["lr"] == 0.1 and len(result.chosen["heads"]) == 4
    with pytest.raises(UserError, match="all heads diverged"):
        run(tmp_path, replace(TOY, rates=(float("inf"),), steps=2))


def test_the_defaults_are_the_papers() -> None:
    assert len(RATES) == 13 and RATES[0] == 1e-5 and RATES[-1] == 0.1
    options = Options()
    assert len(options.rates) * len(options.blocks) * len(options.patches) == 52 and options.steps == 12_500


@pytest.mark.parametrize("wrong", [{"rates": ()}, {"steps": 0}, {"blocks": (0,)}, {"smallest_cut": 0.0}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="linear_sgd"):
        Options(**wrong)


def test_sets_without_training_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training images"):
        run(tmp_path, task=ToyTask(evaluation_only=True))


def test_bf16_is_near_float32(tmp_path: Path) -> None:
    full, half = (run(tmp_path, precision=precision) for precision in ("fp32", "bf16"))
    assert full.metrics["top1"] == pytest.approx(half.metrics["top1"], abs=10)
    assert 0 < abs(full.metrics["ece"] - half.metrics["ece"]) < 1


def test_a_gpu_has_loaders_that_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvalConfig(TOY, Path(), device="cuda")
    for threads, given, processes in ((1, 0, 1), (4, 0, 3), (4, 7, 7)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert linear_sgd._loaders(replace(config, num_loaders=given)) == (processes, True)
    assert linear_sgd._loaders(replace(config, device="cpu")) == (0, False)
