"""Protocol `few_shot`: a classifier in closed form from a handful of images of each class, over several draws.

big_vision's fewshot_lsr evaluator, which the ViT, BiT and SigLIP papers report: features are standardised by the shots,
a constant of 100 stands for a hardly regularised bias, targets are -1 and 1, and least squares with an L2 of 1024 is
solved through an eigendecomposition. Nothing is selected, so shots are drawn from all training and validation images
of the task. Differences: float64 instead of float32, and the model's own preprocessing instead of 256 px squares.

Metrics, each the mean over draws: `top1@5shot`, `mean_per_class@5shot`, and so on; with `_std` after the name the
sample standard deviation over draws (0 for one draw). Plain `top1` and `mean_per_class` are those of `Options.report`
shots per class. Predictions have one row for each of its draws; least squares gives scores, no probabilities.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.contract import Corruption, EvalConfig, Result, Test, Traits
from eval.features.backbone import Backbone
from eval.features.cache import task_features, test_features
from eval.metrics import score
from eval.tasks.registry import Task
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import UserError

TRAITS = Traits(version=1, cost=1.5, on_features=True)
BIAS = 100.0
"""The constant feature: large, so that L2 hardly reaches the bias."""
_DRAW_SEED = 21
_BLOCK = 8192
Floats = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """The recipe."""

    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Training images per class; a class that has fewer takes part with all, as in big_vision."""
    draws: int = 3
    """Random choices of the images, which share their first ones between numbers of shots."""
    l2: float = 1024.0
    """Weight of the squared weights in the sum of squared errors."""
    report: int = 10
    """Number of shots of the plain metrics and the predictions; the largest one where it is not among them."""

    def __post_init__(self) -> None:
        """Raises UserError for values that no draw could use."""
        if not self.shots or min(self.shots) < 1 or self.draws < 1 or not self.l2 > 0:
            raise UserError(f"few_shot: shots {self.shots}, draws {self.draws} and l2 {self.l2} must be positive")


def evaluate(backbone: Backbone, task: Task, config: EvalConfig) -> Result:
    """Fits and tests every number of shots on every draw."""
    return fit(backbone, task, config)(None)


def fit(backbone: Backbone, task: Task, config: EvalConfig) -> Test:
    """Fits every number of shots on every draw."""
    options: Options = config.options
    features = task_features(backbone, task, config)
    report = options.report if options.report in options.shots else max(options.shots)
    orders = [draw_order(features.y, seed_of(config.seed, _DRAW_SEED, draw)) for draw in range(options.draws)]
    smallest = min(len(rows) for rows in orders[0])
    fits: dict[int, list[Ridge]] = {}
    for shots in sorted(set(options.shots)):
        drawn = [np.concatenate([rows[:shots] for rows in order]) for order in orders]
        fits[shots] = [
            fit_ridge(np.asarray(features.x[rows]), features.y[rows], task.classes, options.l2) for rows in drawn
        ]

    def test(corruption: Corruption | None) -> Result:
        test_x, test_y = features.test_x, features.test_y
        if corruption is not None:
            test_x, test_y = test_features(backbone, task, config, corruption)
        metrics: dict[str, float] = {}
        predictions = {shots: [each.predict(test_x) for each in draws] for shots, draws in fits.items()}
        for shots, draws in predictions.items():
            scores = [score(task, test_y, each) for each in draws]
            for name in scores[0]:
                values = [each[name] for each in scores]
                metrics[f"{name}@{shots}shot"] = float(np.mean(values))
                metrics[f"{name}@{shots}shot_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                if shots == report:
                    metrics[name] = metrics[f"{name}@{shots}shot"]
        labels = np.asarray(test_y, np.int32)
        chosen = {"report": report, "draws": options.draws, "smallest_class": smallest}
        return Result(metrics, len(labels), np.stack(predictions[report]).astype(np.int32), labels, chosen)

    return test


def draw_order(labels: Ints, seed: int) -> list[Ints]:
    """The rows of each class that occurs, in random order: the first s of each are the draw of s shots."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == number)) for number in np.unique(labels)]


class Ridge(NamedTuple):
    """A least-squares classifier on standardised features."""

    mean: Float64
    """(d,)"""
    std: Float64
    """(d,)"""
    weights: Float64
    """(d + 1, C); the last row belongs to the constant."""

    def predict(self, x: Floats) -> Ints:
        """Classes (n,) of features (n, d), read in blocks."""
        blocks = (x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))
        return np.concatenate(
            [(_with_bias((block - self.mean) / self.std) @ self.weights).argmax(1) for block in blocks]
        )


def fit_ridge(x: Floats, labels: Ints, classes: int, l2: float) -> Ridge:
    """W = (X'X + l2 I)^-1 X'Y for X (n, d + 1) and Y (n, C) of -1 and 1.

    Through the eigenvectors of X'X, or, where there are fewer images than features, of XX': W = X' (XX' + l2 I)^-1 Y.
    """
    shots = x.astype(np.float64)
    mean, std = shots.mean(0), shots.std(0) + 1e-5
    shots = _with_bias((shots - mean) / std)
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    if len(shots) >= shots.shape[1]:
        values, vectors = np.linalg.eigh(shots.T @ shots)
        weights = (vectors / (values + l2)) @ (vectors.T @ (shots.T @ targets))
    else:
        values, vectors = np.linalg.eigh(shots @ shots.T)
        weights = shots.T @ ((vectors / (values + l2)) @ (vectors.T @ targets))
    return Ridge(mean, std, weights)


def _with_bias(x: Float64) -> Float64:
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)
