"""A batch in parts: one forward pass where the loss adds up, and the gradient of the way that needs two in any case."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.toy import toy_config, toy_teacher
from tests.training.test_collectives import on_workers
from tt_ray.config import Config
from tt_ray.data.loader import TrainBatches
from tt_ray.data.prepare import Data, open_data
from tt_ray.training.context import LocalContext
from tt_ray.training.objective import Objective
from tt_ray.training.step import Learner, common_precision

# By name: whether the loss adds up over parts, and the settings. Parts draw their own random numbers.
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "no text": (True, {"text__weight": 0.0}),
    "no text in this epoch": (True, {"text__loss": "siglip", "text__schedule": "jump-0-1-0"}),
    "held, no text in this epoch": (True, {"text__on_device": True, "text__schedule": "jump-0-1-0"}),
    "cos": (True, {"text__loss": "cos", "text__balance": False}),
    "lncos, mixed": (True, {"text__loss": "lncos", "text__balance": False, "data__mixup": 0.8}),
    "l2, half unlabelled": (True, {"text__loss": "l2", "text__balance": False, "data__unlabelled": 0.5}),
    "l2, unlabelled, mixed": (
        True,
        {"text__loss": "l2", "text__balance": False, "data__unlabelled": 0.5, "data__cutmix": 1.0},
    ),
    "borlan": (True, {"text__loss": "borlan", "text__balance": False}),
    "borlan, held": (True, {"text__loss": "borlan", "text__balance": False, "text__on_device": True}),
    "teacher's embedding": (True, {"teacher__model": "TEACHER", "text__loss": "cos", "text__balance": False}),
    "teacher's logits": (
        True,
        {"teacher__model": "TEACHER", "teacher__target": "logits", "text__balance": False, "data__mixup": 0.8},
    ),
    "cos, balanced": (False, {"text__loss": "cos"}),
    "clip": (False, {"text__loss": "clip", "text__balance": False}),
    "clip, local": (False, {"text__loss": "clip", "text__balance": False, "text__negatives": "local"}),
    "kl": (False, {"text__loss": "kl", "text__balance": False}),
}
LIMITS = {1: 3, 2: 3, 3: 1}
"""Images of a part, by the number of workers."""
Step = tuple[int, Tensor, dict[str, Tensor]]
"""Forward passes, the step's columns, and gradients by name."""


def _configs(folder: Path, limit: int) -> dict[str, Config]:
    teacher = str(toy_teacher(folder / "teacher"))
    configs = {}
    for name, (_, settings) in CASES.items():
        settings = {key: teacher if value == "TEACHER" else value for key, value in settings.items()}
        settings |= {"optim__grad_clip": 0.0, "model__drop_path": 0.2, "text__normalize_mean": True}
        configs[name] = toy_config(folder, train__max_batch_per_worker=limit, **settings)
    return configs


def _step(config: Config, data: Data, rank: int, world: int) -> Step:
    """A step of the second epoch, in which a jump has ended."""
    learner = Learner(config, data, LocalContext(rank, world, torch.device("cpu")))
    learner.model.train()
    passes, gradients = list[int](), dict[str, Tensor]()

    def note(*_: Any) -> None:
        for name, parameter in learner.model.named_parameters():
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad.clone()

    learner.net.register_forward_hook(lambda *_: passes.append(1))
    learner.optimizer.register_step_pre_hook(note)
    targets = None if learner.text_teacher.held else data.targets
    step = learner.order.steps_per_epoch
    columns = learner.step(TrainBatches(data.train, targets, learner.order, config)[step], step)
    return len(passes), columns, gradients


def _both_ways(rank: int, world: int, configs: dict[str, Config]) -> dict[str, tuple[Step, Step]]:
    found = {}
    for name, config in configs.items():
        data = open_data(config, Path(config.text.embeddings) if config.reads_text else None)
        chosen = _step(config, data, rank, world)
        with mock.patch.object(Objective, "adds_up", lambda *_: False):
            found[name] = chosen, _step(config, data, rank, world)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_run_once_where_the_loss_adds_up_to_the_gradient_of_two_passes(world: int, tmp_path: Path) -> None:
    """Of batches of 8: three workers have 2, 2 and 4 images, so that some have none in the last part."""
    torch.set_num_threads(1)
    configs = _configs(tmp_path, LIMITS[world])
    every = [_both_ways(0, 1, configs)] if world == 1 else on_workers(tmp_path, world, _both_ways, world, configs)
    parts = {1: 3, 2: 2, 3: 4}[world]
    for found in every:
        for name, ((passes, columns, gradients), (twice, other, expected)) in found.items():
            assert (passes, twice) == (parts if CASES[name][0] else 2 * parts, 2 * parts), name
            torch.testing.assert_close(columns, other, rtol=1e-5, atol=1e-7, msg=name)
            assert any(bool(gradient.any()) for gradient in gradients.values()), name
            for parameter, gradient in gradients.items():
                largest_entry = float(expected[parameter].abs().max())
                distance = float((gradient - expected[parameter]).abs().max())
                assert distance <= 1e-5 * largest_entry + 1e-7, (name, parameter, distance, largest_entry)


@pytest.mark.parametrize(
    ("others", "own", "common"), [(0.0, "bf16", "bf16"), (1.0, "bf16", "fp32"), (1.0, "fp32", "fp32")]
)
def test_workers_on_cards_of_several_kinds_compute_in_one_precision(
    others: float, own: str, common: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tt_ray.training.step.precision_on", lambda *_: own)
    monkeypatch.setattr("tt_ray.training.step.sum_over_workers", lambda tensor: tensor + others)
    assert common_precision(torch.device("cpu"), "auto") == common


@pytest.mark.parametrize(("mode", "marks"), [("default", 0), ("max-autotune-no-cudagraphs", 0), ("reduce-overhead", 2)])
def test_each_step_begins_graphs_anew_where_there_are_some(
    mode: str, marks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: seen.append("begin"))
    config = toy_config(tmp_path, "shapes_baseline", train__compile=True, train__compile_mode=mode)
    data = open_data(config, None)
    learner = Learner(config, data, LocalContext(0, 1, torch.device("cpu")))
    for step in range(2):
        learner.step(TrainBatches(data.train, None, learner.order, config)[step], step)
    assert len(seen) == marks
