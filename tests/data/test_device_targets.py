"""Targets on the device are those of the loader, and a run with them ends the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_text_targets import LABELS, SAME, _config, _source, store
from tests.toy import largest_difference, run_toy, toy_config, weights
from tt_ray.data import text_targets
from tt_ray.data.text_targets import build_targets, hold_targets
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.terminal.errors import UserError

assert store  # the fixture
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"text__normalize_mean": False},
        {"text__normalize_std": "full"},
        {"text__control": "shuffle"},
        {"text__control": "random_class"},
        {"head__out_dim": 3},
    ],
)
def test_they_are_the_loaders(
    store: EmbeddingStore, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_targets, "_BLOCK", 7)
    ids = [*SAME[30:], "none", *SAME[:9], SAME[3]]
    config = _config(text__max_missing=0.5, **change)
    targets, _ = build_targets(store, _source(ids), LABELS[np.arange(len(ids)) % len(LABELS)], config)
    held = hold_targets(targets, True, CPU)
    assert held is not None and len(held.embeddings) <= 20, "only what is used is held"
    rows = torch.tensor([3, 3, 0, len(targets) - 1, 5])
    expected = targets[rows.numpy()]
    assert held[rows].dtype == torch.float32
    torch.testing.assert_close(held[rows], expected, rtol=0, atol=1e-5 if "head__out_dim" in change else 0)


def test_a_run_ends_the_same(tmp_path: Path) -> None:
    mixed = {"data__mixup": 0.8, "train__max_batch_per_worker": 5}
    ends = []
    for held in (False, True):
        config = toy_config(tmp_path / str(held), **mixed, text__on_device=held)
        run_toy(config)
        ends.append(weights(config))
    assert largest_difference(*ends) == 0


def test_what_does_not_fit_is_told(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    targets, _ = build_targets(store, _source(SAME), LABELS, _config())
    monkeypatch.setattr(text_targets, "DeviceTargets", full)
    with pytest.raises(UserError, match="text.on_device: 0.0 GiB of embeddings do not fit on cpu: leave it off"):
        hold_targets(targets, True, CPU)
    assert hold_targets(targets, False, CPU) is None and hold_targets(None, True, CPU) is None
