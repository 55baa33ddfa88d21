"""Two real processes (gloo) against one: sums, gathered rows with their gradients, and local negatives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.toy import FORKS
from tests.training.test_objective import _batch, _gradients, _losses_by_hand, _model, _norms
from tt_ray.config import Config, OptimConfig, TextConfig
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.training.collectives import (
    all_sum,
    gather_ahead,
    gather_rows,
    log_softmax_over_workers,
    numbers_of_workers,
    sum_over_workers,
    world_size,
)
from tt_ray.training.objective import Objective

pytestmark = pytest.mark.slow

SHARES = (4, 2)
ROWS = torch.arange(18, dtype=torch.float32).reshape(6, 3)


def _work(function: Callable[..., Any], rank: int, world: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def on_workers(folder: Path, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns on each of `world` workers."""
    workers = [FORKS.Process(target=_work, args=(function, rank, world, folder, arguments)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def on_two(folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns on each of two workers."""
    return on_workers(folder, len(SHARES), function, *arguments)


def _sum(rank: int) -> tuple[int, Tensor, Tensor]:
    mine = torch.tensor([rank + 1.0, 10.0])
    return world_size(), sum_over_workers(mine), mine


def test_a_sum_is_everybodys_and_leaves_the_own_value_alone(tmp_path: Path) -> None:
    for rank, (world, total, mine) in enumerate(on_two(tmp_path, _sum)):
        assert world == 2 and total.tolist() == [3, 20] and mine.tolist() == [rank + 1, 10]


def _gather(rank: int, shares: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    local = ROWS.split(shares)[rank].clone().requires_grad_()
    whole = gather_rows(local, () if len(set(shares)) == 1 else shares)
    # A global loss, the same on both workers, in which rows of one meet rows of the other.
    (whole @ whole.T).square().sum().backward()
    assert local.grad is not None
    return whole.detach(), local.grad


@pytest.mark.parametrize("shares", [(3, 3), SHARES, (1, 5)])
def test_gathered_rows_have_the_gradient_of_the_global_loss(shares: tuple[int, ...], tmp_path: Path) -> None:
    alone = ROWS.clone().requires_grad_()
    (alone @ alone.T).square().sum().backward()
    assert alone.grad is not None
    first, second = on_two(tmp_path, _gather, shares)
    assert torch.equal(first[0], ROWS) and torch.equal(second[0], ROWS)
    # Twice: the mean of parameter gradients over the two workers halves it again.
    torch.testing.assert_close(torch.cat([first[1], second[1]]) / 2, alone.grad)


def _exchanges(rank: int, shares: tuple[int, ...]) -> dict[str, Any]:
    local = ROWS.sin().split(shares)[rank].clone().requires_grad_()
    ahead = gather_ahead(local, shares)
    logs = log_softmax_over_workers(local)
    norm = all_sum(local.square().sum()).sqrt()
    # Each worker's own use of what all have a part in.
    (grad,) = torch.autograd.grad((logs * (rank + 1)).square().sum() + (rank + 2) * norm, local)
    return {"logs": logs.detach(), "grad": grad, "ahead": ahead(), "numbers": numbers_of_workers(rank, shares[rank])}


@pytest.mark.parametrize("shares", [(3, 3), (3, 1, 2)])
def test_sums_and_softmaxes_of_all_have_the_gradient_of_what_all_make_of_them(
    shares: tuple[int, ...], tmp_path: Path
) -> None:
    rows = ROWS.sin().requires_grad_()
    logs, norm = rows.log_softmax(0), rows.norm()
    losses = [(part * (rank + 1)).square().sum() + (rank + 2) * norm for rank, part in enumerate(logs.split(shares))]
    (expected,) = torch.autograd.grad(torch.stack(losses).sum(), rows)
    found = on_workers(tmp_path, len(shares), _exchanges, shares)
    torch.testing.assert_close(torch.cat([each["logs"] for each in found]), logs.detach())
    torch.testing.assert_close(torch.cat([each["grad"] for each in found]), expected)
    for each in found:
        assert torch.equal(each["ahead"], rows) and not each["ahead"].requires_grad
        assert each["numbers"] == [tuple(range(len(shares))), shares]


def _local_gradients(rank: int, loss: str) -> dict[str, Tensor]:
    config = Config(text=TextConfig(loss=loss, negatives="local"), optim=OptimConfig(label_smoothing=0.1))
    images, labels, text = (part.split(SHARES)[rank] for part in _batch())
    model = _model(loss)
    Objective.of(config)._replace(shares=SHARES)(model(images), labels, text, 0.3)[0].backward()
    return _gradients(model)


@pytest.mark.parametrize("loss", ["clip", "siglip", "cos"])
def test_with_local_negatives_workers_average_their_own_losses(loss: str, tmp_path: Path) -> None:
    images, labels, text = _batch()
    by_hand = _model(loss)
    outputs = by_hand(images)
    assert outputs.text is not None
    scalars = () if outputs.scalars is None else outputs.scalars.unbind()
    parts = zip(SHARES, outputs.text.split(SHARES), text.split(SHARES), strict=True)
    loss_text = sum(rows / 6 * ALIGNMENT_LOSSES[loss](pred, target, *scalars) for rows, pred, target in parts)
    assert isinstance(loss_text, Tensor)
    loss_cls = _losses_by_hand(outputs, labels, text, loss)[0]
    norm_cls, norm_text = _norms([loss_cls, loss_text], outputs.features)
    (0.3 * norm_cls / norm_text * loss_text + 0.7 * loss_cls).backward()
    first, second = on_two(tmp_path, _local_gradients, loss)
    for name, expected in _gradients(by_hand).items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected, rtol=1e-4, atol=1e-6)


def test_one_worker_alone_neither_sums_nor_gathers() -> None:
    assert world_size() == 1 and sum_over_workers(ROWS) is ROWS and gather_rows(ROWS) is ROWS
