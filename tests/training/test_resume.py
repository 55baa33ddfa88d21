"""Runs of several workers, of which the first alone sees the run folder: resumed, they end as undisturbed ones do.

What does not fit, or is not finite, ends them all with the same words.
"""

import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.toy import FORKS, largest_difference, toy_config, weights
from tt_ray.config import Config
from tt_ray.data.prepare import Data, open_data
from tt_ray.terminal.errors import Interrupted, NonFiniteLoss, UserError
from tt_ray.training.checkpoint import load_checkpoint
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.snapshot import HostMemory, snapshot
from tt_ray.training.trainer import Trainer, train

pytestmark = pytest.mark.slow

STRATEGIES = ("ddp", "fsdp")
RUNS = ("whole", "parted", "bad")
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def _data(config: Config) -> Data:
    return open_data(config, Path(config.text.embeddings))


def _trained(config: Config, until: int = 0) -> dict[str, Any]:
    if rank := int(os.environ["RANK"]):  # on another machine, which sees nothing
        config = config.override("run.storage", f"{config.run.storage}/machine-{rank}")
    return train(config, _data(config), LocalContext.start(use_gpu=False), until)


def _overflowing(config: Config) -> str:
    """How a run ends whose weights overflow in step 7, before a checkpoint."""
    original = Trainer.step

    def overflowing(self: Trainer, batch: Any, step: int) -> Tensor:
        columns = original(self, batch, step)
        if step == 7:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("inf"))
        return columns

    Trainer.step = overflowing
    try:
        _trained(config)
    except NonFiniteLoss as error:
        return str(error)
    finally:
        Trainer.step = original
    raise AssertionError("it was trained to its end")


def _loaded(config: Config, checkpoint: Path) -> tuple[str, dict[str, int]]:
    """Why a checkpoint does not fit, or what this worker holds after loading it: numbers of a snapshot, and of moments.

    Those are of the memory that they are in, of which they may be a part.
    """
    trainer = Trainer(config, _data(config), LocalContext.start(use_gpu=False))
    assert trainer.ema is not None
    state: tuple[Any, Any, Any] = trainer.model, trainer.optimizer, trainer.ema.module
    try:
        load_checkpoint(checkpoint if dist.get_rank() == 0 else Path("not-here"), *state)
    except UserError as error:
        return str(error), {}
    copies = snapshot(*state, HostMemory()).tensors
    moments = [each["exp_avg"] for each in trainer.optimizer.state.values()]
    local = [moment.to_local() if isinstance(moment, DTensor) else moment for moment in moments]
    return "", {
        "copied": sum(each.numel() for file in copies.values() for each in file.values()),
        "moments": sum(moment.untyped_storage().nbytes() // 4 for moment in local),
    }


def _worker(environment: dict[str, str], folder: Path) -> None:
    """Everything at one width, since importing takes most of the time."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    answers = dict[str, Any]()
    for strategy in STRATEGIES:
        whole, parted, bad = (Config.from_yaml(folder / f"{strategy}-{name}.yaml") for name in RUNS)
        if environment["RANK"] == "0":
            for config in (whole, parted, bad):
                start_run(config)
        _trained(whole)
        with pytest.raises(Interrupted):
            _trained(parted, until=1)
        _trained(parted)
        if environment["WORLD_SIZE"] == "2":
            newest = whole.run_dir / "checkpoints" / "step-00000012"
            other = whole.override("model.kwargs", {**whole.model.kwargs, "embed_dim": 36})
            answers[strategy] = {
                "overflow": _overflowing(bad),
                "misfit": _loaded(other, newest)[0],
                "held": _loaded(whole, newest)[1],
            }
    torch.save(answers, folder / f"{environment['RANK']}.pt")
    dist.destroy_process_group()


def _run(folder: Path, world: int) -> list[Any]:
    """All runs, in `folder`, and what each worker says of them."""
    for strategy in STRATEGIES:
        settings = {"run__strategy": strategy, "run__num_workers": world, "run__checkpoint_every": 4, "train__ema": 0.9}
        for name in RUNS:
            toy_config(folder / f"{strategy}-{name}", **settings).to_yaml(folder / f"{strategy}-{name}.yaml")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        FORKS.Process(target=_worker, args=({**environment, "RANK": str(rank)}, folder)) for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The runs of two workers."""
    folder = tmp_path_factory.mktemp("two")
    return folder, _run(folder, 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of four workers."""
    _run(folder := tmp_path_factory.mktemp("four"), 4)
    return folder


def _apart(folder: Path, strategy: str) -> float:
    """By how much the state of a resumed run differs from that of an undisturbed one."""
    whole, parted = (Config.from_yaml(folder / f"{strategy}-{name}.yaml") for name in RUNS[:2])
    return max(largest_difference(weights(whole, file), weights(parted, file)) for file in FILES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_resume_bit_for_bit_where_one_sees_the_folder(strategy: str, two: tuple[Path, list[Any]]) -> None:
    assert _apart(two[0], strategy) == 0
    assert not list(two[0].rglob("machine-*")), "the other worker has written nothing"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_four_resume_bit_for_bit_where_one_sees_the_folder(strategy: str, four: Path) -> None:
    assert _apart(four, strategy) == 0
    assert not list(four.rglob("machine-*"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_workers_end_with_the_same_words(strategy: str, two: tuple[Path, list[Any]]) -> None:
    (overflow,), (misfit,) = ({each[strategy][key] for each in two[1]} for key in ("overflow", "misfit"))
    good = r"the last good checkpoint is \S+/step-00000004"
    assert re.fullmatch(rf"weights \(\S+\) are not finite after step 7; {good}", overflow)
    assert "step-00000012 does not fit this run's configuration: " in misfit and "shape" in misfit


def test_nobody_else_has_a_copy_and_a_part_is_no_view_of_the_whole(two: tuple[Path, list[Any]]) -> None:
    replicas, parts = ([each[strategy]["held"] for each in two[1]] for strategy in STRATEGIES)
    for held in (replicas, parts):
        assert held[0]["copied"] and not held[1]["copied"]
    assert replicas[0]["copied"] == parts[0]["copied"]
    assert sum(each["moments"] for each in parts) == replicas[0]["moments"]
