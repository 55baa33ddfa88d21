"""How a model comes to the devices of its workers, in which precision; whole runs of several: test_trainer.py."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.toy import largest_difference, toy_config
from tests.training.test_collectives import on_workers
from tt_ray.config import Config
from tt_ray.data.loader import TrainBatches
from tt_ray.data.prepare import open_data
from tt_ray.models.classifier import TaughtClassifier
from tt_ray.training.checkpoint import Position, load_checkpoint, save_checkpoint
from tt_ray.training.context import LocalContext
from tt_ray.training.optim import clip_gradients
from tt_ray.training.parallelism import mesh_of
from tt_ray.training.snapshot import HostMemory, snapshot
from tt_ray.training.trainer import Trainer


@pytest.fixture
def two_workers() -> Iterator[None]:
    """A process group whose other worker is a pretence."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def test_a_sharded_model_is_never_whole_on_a_device(
    two_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, moves = TaughtClassifier.to, list[tuple[Any, ...]]()
    monkeypatch.setattr(
        TaughtClassifier, "to", lambda self, *to, **how: (moves.append(to), original(self, *to, **how))[1]
    )
    config = toy_config(tmp_path, "shapes_baseline", run__strategy="fsdp", run__num_workers=2, train__ema=0.9)
    trainer = Trainer(config, open_data(config, None), LocalContext(0, 2, torch.device("cpu")))
    assert trainer.ema is not None
    assert moves == []
    for model in (trainer.model, trainer.ema.module):
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


# By name: settings, how far the weights may be from those of the case before the colon, and the shape of the mesh.
SHARED: dict[str, tuple[dict[str, Any], str, float, tuple[int, ...]]] = {
    "whole": ({}, "whole", 0.0, ()),
    "sharded": ({"run__strategy": "fsdp"}, "whole", 2e-5, (4,)),
    "by node": ({"run__strategy": "hsdp"}, "whole", 2e-5, (2, 2)),
    "whole, bf16 gradients": ({"train__reduce_precision": "bf16"}, "whole", 2e-3, ()),
    "sharded, bf16 gradients": ({"train__reduce_precision": "bf16", "run__strategy": "fsdp"}, "whole", 2e-3, (4,)),
    "whole, bf16": ({"train__precision": "bf16"}, "whole", 1e-2, ()),
    "sharded, bf16": ({"train__precision": "bf16", "run__strategy": "fsdp"}, "whole, bf16", 2e-3, (4,)),
    "by node, all bf16": (
        {"train__precision": "bf16", "train__reduce_precision": "bf16", "run__strategy": "hsdp"},
        "whole, bf16",
        5e-3,
        (2, 2),
    ),
    "by node, bf16, in parts": (
        {"train__precision": "bf16", "run__strategy": "hsdp", "train__max_batch_per_worker": 1},
        "whole, bf16",
        5e-3,
        (2, 2),
    ),
}


def _shared(rank: int, folder: Path, configs: dict[str, Config]) -> dict[str, Any]:
    """Some steps of each case on one of four workers of two nodes, and a checkpoint that all of them read again."""
    found = {}
    for name, config in configs.items():
        data = open_data(config, Path(config.text.embeddings))
        trainer = Trainer(config, data, LocalContext(rank, 4, torch.device("cpu")))
        batches = TrainBatches(data.train, data.targets, trainer.order, config)
        trainer.model.train()
        losses = [float(trainer.step(batches[step], step)[0]) for step in range(4)]
        gathered = [parameter.dtype for parameter in trainer.model.parameters()]
        assert set(gathered) == {torch.float32}, "what the optimiser updates"
        state = snapshot(trainer.model, trainer.optimizer, None, HostMemory())
        if rank == 0:
            save_checkpoint(folder / name, Position(4, 0, 32), state, {}, "")
        dist.barrier()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()
        trainer.optimizer.state.clear()
        load_checkpoint(folder / name, trainer.model, trainer.optimizer, None)
        restored = snapshot(trainer.model, trainer.optimizer, None, HostMemory())
        first = next(trainer.model.parameters())
        mesh = tuple(first.device_mesh.shape) if isinstance(first, DTensor) else ()
        found[name] = (state.tensors, restored.tensors, losses, mesh)
    return found


def _as_node(rank: int, *arguments: Any) -> Any:
    socket.gethostname = lambda: f"node-{rank // 2}"
    return _shared(rank, *arguments)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four workers has found."""
    folder = tmp_path_factory.mktemp("shared")
    # SGD: the first steps of others turn a rounding error of a tiny gradient into a full step.
    fixed = {"optim__name": "sgd", "optim__lr": 0.05, "text__loss": "siglip", "run__num_workers": 4}
    configs = {name: toy_config(folder, **fixed, **settings) for name, (settings, *_) in SHARED.items()}
    return on_workers(folder, 4, _as_node, folder, configs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_every_way_to_share_a_model_trains_it_alike(name: str, shared: list[dict[str, Any]]) -> None:
    _, like, limit, shape = SHARED[name]
    state, restored, losses, mesh = shared[0][name]
    assert mesh == shape
    assert all(value.dtype == torch.float32 for value in state["model"].values())
    distance = largest_difference(state["model"], shared[0][like][0]["model"])
    assert distance <= limit, distance
    assert ("bf16" not in name) or distance > 0 or like == name, "it was computed in another precision"
    assert losses == pytest.approx(shared[0][like][2], rel=max(limit, 1e-5) * 5)
    for file in ("model", "optimizer"):
        assert largest_difference(state[file], restored[file]) == 0
    # Worker 0 alone holds all of it, in main memory.
    assert not any(tensors for other in shared[1:] for tensors in other[name][0].values())


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (["a", "a", "b", "b"], (2, 2)),
        (["a", "b", "a", "b"], (2, 2)),
        (["a", "a", "a", "b"], (4,)),
        (["a", "a", "a", "a"], (4,)),
        (["a", "b", "c", "d"], (4,)),
    ],
)
def test_nodes_have_a_copy_each_where_they_have_as_many_workers(
    names: list[str], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(every: list[str], own: str) -> None:
        every[:] = names

    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        monkeypatch.setattr(dist, "all_gather_object", gather)
        mesh = mesh_of("hsdp", torch.device("cpu"))
        assert mesh is not None and tuple(mesh.shape) == shape
        assert shape == (4,) or [names[rank] for rank in mesh.mesh[0].tolist()] == ["a", "a"]
        assert mesh_of("ddp", torch.device("cpu")) is None
    finally:
        dist.destroy_process_group()


def test_vectors_are_not_gathered_in_bf16(two_workers: None, tmp_path: Path) -> None:
    """Norms, scales and the loss's learned scalars compute in float32 under autocast, too."""
    config = toy_config(
        tmp_path, run__strategy="fsdp", train__precision="bf16", text__loss="siglip", run__num_workers=2
    )
    trainer = Trainer(config, open_data(config, Path(config.text.embeddings)), LocalContext(0, 2, torch.device("cpu")))
    with torch.no_grad(), trainer.autocast():
        trainer.net(torch.zeros(2, 3, 16, 16))  # leaves the outermost parameters whole
    whole = {name: value for name, value in trainer.model.named_parameters() if not isinstance(value, DTensor)}
    assert {"text_head.scalars", "backbone.head.weight"} <= whole.keys()
    assert {name: value.dtype for name, value in whole.items()} == {
        name: torch.bfloat16 if value.ndim > 1 else torch.float32 for name, value in whole.items()
    }


def test_fused_steps_take_sharded_parameters(two_workers: None, tmp_path: Path) -> None:
    config = toy_config(tmp_path, "shapes_baseline", run__strategy="fsdp", run__num_workers=2)
    after = []
    for fused in (False, True):
        trainer = Trainer(config, open_data(config, None), LocalContext(0, 2, torch.device("cpu")))
        optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.1, fused=fused)
        for _ in range(2):
            for parameter in trainer.model.parameters():
                parameter.grad = torch.ones_like(parameter)
            clip_gradients(trainer.model.parameters(), 1.0)
            optimizer.step()
        after.append([cast(DTensor, parameter).to_local() for parameter in trainer.model.parameters()])
    torch.testing.assert_close(after[0], after[1])
