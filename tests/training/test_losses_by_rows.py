"""Losses by rows on 1 to 4 real processes (gloo) with unequal shares: value and gradient are those of one process."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.test_losses import extras
from tests.toy import toy_config
from tests.training.test_collectives import on_workers
from tt_ray.config import Config, TextConfig
from tt_ray.data.loader import TrainBatches
from tt_ray.data.prepare import find_store, open_data, open_images
from tt_ray.losses import ALIGNMENT_LOSSES, Loss
from tt_ray.models.classifier import Outputs
from tt_ray.training.context import LocalContext
from tt_ray.training.losses_by_rows import BY_ROWS, Part, loss_by_rows
from tt_ray.training.objective import PARTS, Objective
from tt_ray.training.step import Learner

BATCH, DIM, CLASSES = 12, 4, 3
WHOLE = [name for name, loss in ALIGNMENT_LOSSES.items() if not loss.per_image]
SHARES = {1: (12,), 2: (7, 5), 3: (6, 1, 5), 4: (2, 5, 4, 1)}
DTYPE = torch.float64


def _rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, BATCH, DIM, generator=generator, dtype=DTYPE)
    return 1.5 * pred, target + 0.1


def _scalars(loss: Loss) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=DTYPE, requires_grad=True) for value in loss.learned)


def _options(loss: Loss, temperature: float) -> dict[str, float]:
    return {"temperature": temperature} if temperature and loss.contrastive and not loss.learned else {}


def _by_rows(rank: int, shares: tuple[int, ...], temperature: float) -> dict[str, list[Tensor]]:
    """Value and gradients of each loss: at own rows and at learned scalars; with looked up targets, then without."""
    found = {}
    pred, target = _rows()
    for name in WHOLE:
        loss = ALIGNMENT_LOSSES[name]
        needs = [each.split(shares)[rank] for each in extras(name, BATCH, DIM)]
        found[name] = []
        for every in (target, None):
            own, scalars = pred.split(shares)[rank].clone().requires_grad_(), _scalars(loss)
            options, part = _options(loss, temperature), Part(shares, every)
            value = loss_by_rows(loss, part, own, target.split(shares)[rank], scalars, *needs, **options)
            first = torch.autograd.grad(value, [own, *scalars], retain_graph=True)  # as the balance does
            second = torch.autograd.grad(2 * value, [own, *scalars])
            assert all(torch.equal(2 * one, other) for one, other in zip(first, second, strict=True))
            with torch.inference_mode():
                again = loss_by_rows(loss, part, own, target.split(shares)[rank], scalars, *needs, **options)
            found[name] += [value.detach(), again.clone(), *first]
    return found


def test_every_loss_of_the_table_that_is_no_mean_over_images_has_rows() -> None:
    assert set(BY_ROWS) == {ALIGNMENT_LOSSES[name].function for name in WHOLE}


@pytest.mark.slow
@pytest.mark.parametrize(("world", "temperature"), [(1, 0.0), (2, 0.3), (3, 0.0), (4, 0.3)])
def test_value_and_gradient_are_those_of_one_process(world: int, temperature: float, tmp_path: Path) -> None:
    shares = SHARES[world]
    workers = on_workers(tmp_path, world, _by_rows, shares, temperature)
    for name in WHOLE:
        loss = ALIGNMENT_LOSSES[name]
        pred, target = _rows()
        pred.requires_grad_()
        scalars = _scalars(loss)
        value = loss(pred, target, *scalars, *extras(name, BATCH, DIM), **_options(loss, temperature))
        expected = [value.detach(), *torch.autograd.grad(value, [pred, *scalars])]
        count = len(expected) + 1
        for start in (0, count):
            mine = [worker[name][start : start + count] for worker in workers]
            for each in mine:
                for found in each[:2]:
                    torch.testing.assert_close(found, expected[0], rtol=1e-6, atol=0)
            # The mean of parameter gradients over workers divides by their number again.
            rows = torch.cat([each[2] for each in mine]) / world
            torch.testing.assert_close(rows, expected[1], rtol=1e-6, atol=1e-9)
            for place, scalar in enumerate(expected[2:], 3):
                mean = torch.stack([each[place] for each in mine]).mean(0)
                torch.testing.assert_close(mean, scalar, rtol=1e-6, atol=1e-9)


class _Largest(TorchDispatchMode):
    """The most elements that any tensor has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


def _largest(rank: int, shares: tuple[int, ...]) -> list[int]:
    found = []
    for name in WHOLE:
        generator = torch.Generator().manual_seed(rank)
        pred, target = torch.randn(2, shares[rank], 2, generator=generator)
        loss = ALIGNMENT_LOSSES[name]
        scalars = tuple(torch.tensor(value) for value in loss.learned)
        needs = [target.clone() for _ in loss.needs]
        with _Largest() as largest:
            loss_by_rows(loss, Part(shares), pred.requires_grad_(), target, scalars, *needs).backward()
        found.append(largest.elements)
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_both_functions_of_a_loss_take_the_same(name: str) -> None:
    """A row of a user's own may learn fewer scalars than ours, or none."""
    function = ALIGNMENT_LOSSES[name].function
    whole, rows = (inspect.signature(each).parameters for each in (function, BY_ROWS[function]))
    assert [(each.name, each.default) for each in rows.values()][1:] == [
        (each.name, each.default) for each in whole.values()
    ]


@pytest.mark.slow
def test_no_worker_has_more_than_its_rows_of_the_products(tmp_path: Path) -> None:
    shares = (20, 44)
    for rank, found in enumerate(on_workers(tmp_path, 2, _largest, shares)):
        assert max(found) <= shares[rank] * sum(shares), found


@pytest.mark.parametrize("name", WHOLE)
def test_one_process_has_the_gradients_of_degenerate_rows(name: str) -> None:
    """The same subgradients as in one process where a root or a norm is 0."""
    target = _rows()[1]
    loss, pred = ALIGNMENT_LOSSES[name], target.clone().requires_grad_()
    more = extras(name, BATCH, DIM)
    value = loss_by_rows(loss, Part((BATCH,)), pred, target, _scalars(loss), *more)
    (found,) = torch.autograd.grad(value, pred)
    (expected,) = torch.autograd.grad(loss(pred, target, *_scalars(loss), *more), pred)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def _own_loss(pred: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """A user's: compares all images and asks for labels."""
    return F.cross_entropy(pred @ target.T, torch.arange(len(pred))) + (pred * labels[:, None]).mean()


Case = tuple[str, bool, bool]


def _objective(rank: int, shares: tuple[int, ...], case: Case, alone: bool = False) -> tuple[Tensor, Tensor]:
    """Gradient at own features of the whole objective, balanced, and its parts; or, alone, those of all images.

    A case is the loss, "" for a user's, whether targets are looked up, and whether labels are mixed; where they are
    not, the first image of each worker that has several has no label.
    """
    name, looked_up, mixed = case
    loss = ALIGNMENT_LOSSES[name] if name else Loss(_own_loss, needs=("labels",))
    starts = [sum(shares[:worker]) for worker, share in enumerate(shares) if share > 1]
    labels = torch.arange(BATCH) % CLASSES
    given = 0.7 * F.one_hot(labels, CLASSES) + 0.3 * F.one_hot(labels.flip(0), CLASSES)
    labelled = tuple(share - (share > 1) for share in shares)
    if not mixed:
        given = labels.index_fill(0, torch.tensor(starts), -1)
    objective = Objective.of(Config(text=TextConfig(loss="kl")))._replace(
        loss=loss,
        shares=() if alone else shares,
        labelled=() if mixed else (sum(labelled),) if alone else labelled,
    )
    features, target = (each.float() for each in _rows())
    if not alone:
        features, given = features.split(shares)[rank], given.split(shares)[rank]
        target = target if looked_up else target.split(shares)[rank]
    features = features.clone().requires_grad_()
    scalars = torch.tensor(loss.learned) if loss.learned else None
    logits = features @ torch.linspace(-1, 1, DIM * CLASSES).reshape(DIM, CLASSES)
    total, parts = objective(Outputs(features, logits, features * 1.3, scalars), given, target, 0.4)
    total.backward()
    assert features.grad is not None
    return features.grad, parts


def _objectives(rank: int, shares: tuple[int, ...], cases: list[Case]) -> list[tuple[Tensor, Tensor]]:
    return [_objective(rank, shares, case) for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_objective_is_that_of_one_process(world: int, tmp_path: Path) -> None:
    shares = SHARES[world]
    cases = [(name, same, same) for name in WHOLE if name != "vl2lite" for same in (False, True)]
    cases += [("", False, False), ("", True, False)]
    workers = on_workers(tmp_path, world, _objectives, shares, cases)
    for number, case in enumerate(cases):
        gradient, parts = _objective(0, shares, case, alone=True)
        found = [worker[number] for worker in workers]
        torch.testing.assert_close(torch.cat([each[0] for each in found]) / world, gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.stack([each[1] for each in found]).mean(0), parts, rtol=1e-5, atol=1e-6)


def _steps(rank: int, world: int, folder: Path, settings: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """What each of three steps of a run reports, and how many rows of text were gathered in each exchange."""
    config = toy_config(folder, train__batch_size=10, **settings)
    data = open_data(config, find_store(config, open_images(config)[0]))
    learner = Learner(config, data, LocalContext(rank, world, torch.device("cpu")))
    learner.model.train()
    batches = TrainBatches(data.train, None if learner.text_teacher.held else data.targets, learner.order, config)
    widths = []
    with pytest.MonkeyPatch.context() as patch:
        gather = dist.all_gather
        patch.setattr(dist, "all_gather", lambda out, own, **how: (widths.append(own.ndim), gather(out, own, **how))[1])
        reported = [learner.step(batches[step], step) for step in range(3)]
    return torch.stack(reported), widths


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"text__on_device": True, "data__cutmix": 1.0, "text__loss": "clip_learned"},
        {"train__max_batch_per_worker": 2, "text__loss": "siglip", "data__unlabelled": 0.4},
        {"text__on_device": True, "train__max_batch_per_worker": 3, "data__mixup": 0.8, "text__loss": "vl2litetext"},
    ],
)
def test_steps_of_a_run_are_those_of_one_worker(settings: dict[str, Any], tmp_path: Path) -> None:
    """Unequal shares (4, 6); looked up on the device, no row of text is exchanged, but its number."""
    alone, _ = _steps(0, 1, tmp_path, settings)
    for found, widths in on_workers(tmp_path, 2, _steps, 2, tmp_path, settings):
        # Cross-entropy is reported as each worker's own.
        columns = [PARTS.index("loss_text"), PARTS.index("balance"), len(PARTS)]
        torch.testing.assert_close(found[:, columns], alone[:, columns], rtol=1e-4, atol=1e-5)
        assert widths == [1 if "text__on_device" in settings else 2] * 3
