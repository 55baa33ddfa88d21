"""Class statistics against numpy's, block by block, and the same however many workers share the rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tt_ray.training.class_statistics as module
from tests.toy import DIM, toy_config
from tt_ray.data.prepare import open_data
from tt_ray.training.class_statistics import class_statistics, class_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize("block", [7, 8192])
def test_statistics_are_numpys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    config = toy_config(tmp_path, data__label_noise=0.5, text__normalize_std="full")
    data = open_data(config, Path(config.text.embeddings))
    assert data.targets is not None
    labels, values = data.train.labels, data.targets[np.arange(48)].numpy()
    means, variances = class_statistics(data.targets, labels, 20, CPU)
    assert means.shape == variances.shape == (20, DIM) and means.dtype == torch.float32
    for number in range(20):
        rows = values[labels == number].astype(np.float64)
        mean, variance = (rows.mean(0), rows.var(0)) if len(rows) else (np.zeros(DIM), np.zeros(DIM))
        np.testing.assert_allclose(means[number], mean, atol=1e-6)
        np.testing.assert_allclose(variances[number], variance, atol=1e-6)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_workers_share_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    config = toy_config(tmp_path)
    data = open_data(config, Path(config.text.embeddings))
    assert data.targets is not None
    sums: list[torch.Tensor] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        sums.append(value)
        return torch.stack(sums).sum(0)

    whole = class_statistics(data.targets, data.train.labels, 16, CPU)
    monkeypatch.setattr(module, "sum_over_workers", keep)
    for rank in range(world):
        found = class_statistics(data.targets, data.train.labels, 16, CPU, rank, world)
    for one, other in zip(whole, found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_samples_variances_are_divided_by_one_less(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    data = open_data(config, Path(config.text.embeddings))
    assert data.targets is not None
    labels, values = np.arange(48) % 5, data.targets[np.arange(48)].numpy().astype(np.float64)
    labels[labels == 4] = 3
    labels[0] = 4  # a class of one, whose variance is 0
    _, variances = class_statistics(data.targets, labels, 6, CPU, sample=True)
    for number in range(4):
        np.testing.assert_allclose(variances[number], values[labels == number].var(0, ddof=1), rtol=1e-5)
    assert not variances[4:].any()


def test_balanced_weights_make_every_class_count_as_much() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1, 3, 3, -1, -1])
    weights = class_weights(labels, 5)
    np.testing.assert_allclose(weights, [8 / (3 * 5), 8 / 3, 0, 8 / (3 * 2), 0], rtol=1e-6)
    known = labels[labels >= 0]
    assert weights[known].mean().item() == pytest.approx(1)
    assert np.bincount(known, weights=weights[known].numpy())[[0, 1, 3]] == pytest.approx(8 / 3)
