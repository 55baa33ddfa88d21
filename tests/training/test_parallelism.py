"""How a model comes to the devices of its workers; that its training is the same: test_loop.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.toy import toy_config
from tt_ray.data.prepare import open_data
from tt_ray.models.classifier import TaughtClassifier
from tt_ray.training.context import LocalContext
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
    assert moves == [()], "only its memory format is changed before it is sharded"
    for model in (trainer.model, trainer.ema.module):
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
