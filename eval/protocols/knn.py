"""Protocol `knn`: weighted vote of the nearest training images in feature space.

Wu et al., 2018, arXiv 1805.01978, section 3.4, with the settings of DINO's and DINOv2's knn.py: features are
L2-normalised, neighbours are found by cosine, and each votes for its class with weight softmax(cosine / 0.07). k is
chosen among 10, 20, 100 and 200 on validation images; the test images are then classified once by training and
validation images together. `k=20` fixes it, which is what those papers report.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.contract import Corruption, EvalConfig, Result, Test, Traits
from eval.features.backbone import Backbone
from eval.features.cache import task_features, test_features
from eval.metrics import expected_calibration_error, score
from eval.tasks.registry import Task
from tt_ray.terminal.errors import UserError

TRAITS = Traits(version=1, cost=1.0, on_features=True, draws="validation")
# Cosines of a block of queries with a block of the bank: 32 MiB.
_QUERIES, _BANK = 1024, 8192
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """The recipe."""

    k: int = 0
    """Number of neighbours; 0 chooses it from `ks` on validation images."""
    ks: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours to choose from; those above the number of training images become that number."""
    temperature: float = 0.07
    """Temperature by which cosines are divided before they become weights."""

    def __post_init__(self) -> None:
        """Raises UserError for values that no vote could use."""
        if self.k < 0 or not self.ks or min(self.ks) < 1 or not self.temperature > 0:
            raise UserError(f"knn: k {self.k} and ks {self.ks} must be positive, and so must {self.temperature}")


class Neighbours(NamedTuple):
    """The nearest images of each query, nearest first; equally near ones in the order of the bank."""

    cosines: Tensor
    """(Q, k) float32."""
    rows: Tensor
    """Rows of the bank, (Q, k) int64."""


def evaluate(backbone: Backbone, task: Task, config: EvalConfig) -> Result:
    """Chooses k, then tests once."""
    return fit(backbone, task, config)(None)


def fit(backbone: Backbone, task: Task, config: EvalConfig) -> Test:
    """Chooses k on validation images: the smallest of equally good ones."""
    options: Options = config.options
    features = task_features(backbone, task, config)
    x, y = features.x, features.y
    chosen: dict[str, object] = {}
    k = options.k
    if not k:
        fit_y, val_y = y[features.fit], y[features.val]
        near = neighbours(Bank(x, features.fit), Bank(x, features.val), max(options.ks), config.device)
        found: dict[int, float] = {}
        for number, votes in class_votes(near, fit_y, task.classes, options.ks, options.temperature).items():
            found[number] = score(task, val_y, votes.argmax(1))[task.metric]
        k = max(found, key=lambda number: (found[number], -number))
        chosen["validation"] = found

    def test(corruption: Corruption | None) -> Result:
        test_x, test_y = features.test_x, features.test_y
        if corruption is not None:
            test_x, test_y = test_features(backbone, task, config, corruption)
        near = neighbours(Bank(x), Bank(test_x), k, config.device)
        ((_, votes),) = class_votes(near, y, task.classes, (k,), options.temperature).items()
        predictions = votes.argmax(1)
        metrics = score(task, test_y, predictions)
        shares = votes / votes.sum(1, keepdims=True)
        metrics["ece"] = expected_calibration_error(shares, test_y)
        labels = np.asarray(test_y, np.int32)
        return Result(metrics, len(labels), predictions.astype(np.int32), labels, {"k": k, **chosen}, shares.max(1))

    return test


class Bank(NamedTuple):
    """Features (N, d), or the rows of them that take part."""

    x: Floats
    rows: Ints | None = None

    def __len__(self) -> int:
        return len(self.x) if self.rows is None else len(self.rows)

    def block(self, start: int, stop: int, device: str) -> Tensor:
        """Some rows, scaled to length 1; float32. Rows of zeros stay so."""
        part = self.x[start:stop] if self.rows is None else self.x[self.rows[start:stop]]
        return F.normalize(torch.from_numpy(np.array(part, np.float32)).to(device))


def neighbours(bank: Bank, queries: Bank, k: int, device: str = "cpu") -> Neighbours:
    """The `k` rows of the bank (all of them if there are fewer) with the largest cosine to each query.

    A block of cosines is in memory at a time.
    """
    found: list[Neighbours] = []
    for start in range(0, len(queries), _QUERIES):
        block = queries.block(start, min(start + _QUERIES, len(queries)), device)
        best: Neighbours | None = None
        for first in range(0, len(bank), _BANK):
            cosines = block @ bank.block(first, min(first + _BANK, len(bank)), device).T
            before = 0
            if best is not None:  # these come first in the bank, so they win ties
                before = best.rows.shape[1]
                cosines = torch.cat([best.cosines, cosines], 1)
            columns = _largest(cosines, k)
            rows = columns + (first - before)
            if best is not None:
                rows = torch.where(columns < before, best.rows.gather(1, columns.clamp(max=before - 1)), rows)
            best = Neighbours(cosines.gather(1, columns), rows)
        assert best is not None, "a task has training images"
        found.append(Neighbours(best.cosines.cpu(), best.rows.cpu()))
    return Neighbours(torch.cat([each.cosines for each in found]), torch.cat([each.rows for each in found]))


def _largest(values: Tensor, k: int) -> Tensor:
    """Columns of each row's `k` largest values, the largest first; of equal values the first columns come first."""
    if k >= values.shape[1]:
        return values.argsort(dim=1, descending=True, stable=True)
    top = values.topk(k, dim=1)
    # topk takes any of the values that equal the smallest one it takes, and orders equal ones at will.
    smallest = top.values[:, -1:]
    unsure = (values == smallest).sum(1) > (top.values == smallest).sum(1)
    columns = top.indices.sort(dim=1).values
    columns = columns.gather(1, values.gather(1, columns).argsort(dim=1, descending=True, stable=True))
    if unsure.any():
        columns[unsure] = values[unsure].argsort(dim=1, descending=True, stable=True)[:, :k]
    return columns


def class_votes(
    near: Neighbours, labels: Ints, classes: int, ks: Sequence[int], temperature: float
) -> dict[int, npt.NDArray[np.float64]]:
    """Sums of the first k neighbours' weights by class, (Q, classes), for each k; `labels` (N,) are the bank's.

    Weights are softmax(cosine / temperature) over all neighbours that were found. Where several k are at least the
    bank's size, the smallest of them stands for all.
    """
    weights = (near.cosines.double() / temperature).softmax(1)
    voted = torch.from_numpy(np.asarray(labels, np.int64))[near.rows]
    sums = torch.zeros(len(voted), classes, dtype=torch.float64)
    result: dict[int, npt.NDArray[np.float64]] = {}
    done = 0
    for k in sorted(ks):
        stop = min(k, voted.shape[1])
        if stop > done:
            sums.scatter_add_(1, voted[:, done:stop], weights[:, done:stop])
            result[k] = sums.numpy().copy()
            done = stop
    return result
