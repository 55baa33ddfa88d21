"""Batch norm of all workers is that of one process with all images, whatever each of them has."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tests.toy import largest_difference
from tests.training.test_collectives import on_workers
from tt_ray.training.batch_norm import SyncedBatchNorm, synchronize_batch_norms
from tt_ray.training.collectives import world_size

SHARES = {1: (12,), 2: (7, 5), 3: (6, 1, 5), 4: (2, 0, 9, 1)}
_WORLD = "tt_ray.training.batch_norm.world_size"


def _model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind in ("test_resnet", "test_efficientnet"):
        model = timm.create_model(kind, num_classes=3)
    else:
        norms: dict[str, nn.Module] = {
            "rows": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 32 * 32)),
            "averaged": nn.BatchNorm2d(3, momentum=None),
            "bare": nn.BatchNorm2d(3, affine=False),
            "forgetful": nn.BatchNorm2d(3, track_running_stats=False),
            "activated": BatchNormAct2d(3),
        }
        model = nn.Sequential(nn.Conv2d(3, 3, 1), norms[kind], nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    # Twice as precise as in training, so that what differs is wrong, and not rounded.
    return model.double().train()


KINDS = ["rows", "averaged", "bare", "forgetful", "activated", "test_resnet", "test_efficientnet"]


def _images() -> Tensor:
    # Far from 0, where sums of squares would cancel.
    return 30 + torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _trained(model: nn.Module, shares: tuple[int, ...], rank: int, low: bool = False) -> dict[str, Tensor]:
    """Gradients, buffers and the images' gradient after two steps; the loss of a worker counts its images."""
    images = (_images().float() if low else _images()).split(shares)[rank].requires_grad_()
    targets = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).split(shares)[rank]
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = model(images)
        (F.mse_loss(out.double(), targets.double(), reduction="sum") / 36).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert images.grad is not None
    return {**found, **dict(model.named_buffers()), "images": images.grad}


def _on_worker(rank: int, shares: tuple[int, ...]) -> dict[str, dict[str, Tensor]]:
    found = {}
    for kind in KINDS:
        model = _model(kind)
        names = list(model.state_dict())
        synchronize_batch_norms(model)
        synced = [module for module in model.modules() if isinstance(module, SyncedBatchNorm)]
        assert bool(synced) is (world_size() > 1) and list(model.state_dict()) == names
        found[kind] = _trained(model, shares, rank)
        model.eval()
        with torch.no_grad():
            found[kind]["evaluated"] = model(_images())
    low = _model("test_resnet").float()
    synchronize_batch_norms(low)
    found["bf16"] = _trained(low, shares, rank, low=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_gradients_and_statistics_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    shares = SHARES[world]
    (one,), every = [_on_worker(0, (12,))], on_workers(tmp_path, world, _on_worker, shares)
    for kind, expected in one.items():
        for name, value in expected.items():
            parts = [worker[kind][name] for worker in every]
            if name == "images":
                found = torch.cat(parts)
            elif "running" in name or "tracked" in name or name == "evaluated":
                assert all(torch.equal(part, parts[0]) for part in parts), f"{kind} {name}"
                found = parts[0]
            else:
                found = torch.stack(parts).sum(0)
            distance, largest = float((found - value).abs().max()), float(value.abs().max())
            assert distance <= (0.2 if kind == "bf16" else 1e-9) * largest + 1e-12, (kind, name, distance, largest)


def test_one_worker_keeps_its_own() -> None:
    model = _model("test_resnet")
    kinds = [type(module) for module in model.modules()]
    synchronize_batch_norms(model)
    assert [type(module) for module in model.modules()] == kinds


def test_weights_are_those_of_the_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are saved, exported and read by timm."""
    model, plain = _model("test_efficientnet"), _model("test_efficientnet")
    monkeypatch.setattr(_WORLD, lambda: 2)
    synchronize_batch_norms(model)
    assert not any(type(module) in (nn.BatchNorm2d, BatchNormAct2d) for module in model.modules())
    assert largest_difference(model.state_dict(), plain.state_dict()) == 0
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(_images()), plain.eval()(_images()), rtol=0, atol=0)
