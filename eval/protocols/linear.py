"""Protocol `linear`: logistic regression on frozen features, its L2 penalty chosen on validation images.

The recipe of DINOv2's `eval/log_regression.py` and of Kornblith et al. (2019, arXiv 1805.08974): 45 values of C from
1e-6 to 1e5, evenly spaced in log C, multinomial, a free bias; official validation images or else images held out from
train; the value that is best by the task's own metric (the strongest penalty of equally good ones); a refit on
training and validation images with the same C; one test. C multiplies the summed cross-entropy against half the
squared weights, as in scikit-learn.

What differs from DINOv2's, which fits each C from zero, in float64, to a tolerance of 1e-12, on the CLS token of images
whose short side is resized to 224, with a tenth of train for validation:
- features are the model's own pooled ones of images as the model's own preprocessing has them;
- they are standardised by the means and deviations of the rows that selection fits, so that one path suits every model;
- without official validation images a fifth of train is held out (Kornblith et al.), a tenth above 50,000 images;
- float32, each fit from the last solutions, to a tolerance of 1e-5 (`tolerance`);
- the path, from strong to weak, ends where validation has dropped by more than 0.5 points below the best, at least a
  decade past it, since the weakest penalties take most of the time: past the best validation accuracy and past the
  lowest validation cross-entropy, for accuracy alone can stand still where the penalty is so strong that weights only
  grow in length. Scores that would climb back after such a drop are not seen; where none drops, all values are fitted.

CLIP's search (97 values, by halving steps) is not implemented.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from eval.contract import Corruption, EvalConfig, Result, Test, Traits
from eval.feature_metrics import effective_rank
from eval.features.backbone import Backbone
from eval.features.cache import task_features, test_features
from eval.metrics import score
from eval.protocols.likeliest import result_of
from eval.tasks.registry import Task
from tt_ray.logistic.design import Design, Matrix, Moments, Rows, moments
from tt_ray.logistic.solver import MAX_ITERATIONS, TOLERANCE, Fit, Solver, predict
from tt_ray.terminal.errors import UserError, some

TRAITS = Traits(version=2, cost=4.0, on_features=True, draws="validation")
Score = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], float]
"""Score of labels and predictions to choose by; more is better."""


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """Values of C from 10^low to 10^high."""
    return tuple(float(value) for value in np.logspace(low, high, count))


@dataclass(frozen=True)
class Options:
    """The recipe."""

    strengths: tuple[float, ...] = field(default_factory=lambda: spaced(-6, 5, 45))
    """Values of C to choose from."""
    past_peak: float = 1.0
    """Decades of C, at least, by which the path continues past the best value; infinity fits all."""
    near_peak: float = 0.5
    """Points of the validation score that the last value must be worse than the best by; 100 fits all."""
    tolerance: float = TOLERANCE
    """Largest entry of the gradient of the mean loss that counts as 0: scikit-learn's `tol`."""
    max_iterations: int = MAX_ITERATIONS
    """Iterations of L-BFGS for one value, at most."""

    def __post_init__(self) -> None:
        """Raises UserError for values that no fit could use."""
        usable = bool(self.strengths) and all(0 < strength < np.inf for strength in self.strengths)
        if not (usable and self.tolerance > 0 and self.max_iterations >= 1):
            raise UserError(f"linear: {self} must have positive strengths, tolerance and max_iterations")
        if self.past_peak < 0 or self.near_peak < 0:
            raise UserError(f"linear: past_peak {self.past_peak} and near_peak {self.near_peak} must not be negative")


class Tried(NamedTuple):
    """One value of the path."""

    fit: Fit
    """The fit, without its weights unless it is the best one."""
    score: float
    """Score on validation images."""
    loss: float
    """Mean cross-entropy of validation images."""


class Selection(NamedTuple):
    """The outcome of a path."""

    scaling: Moments
    """Standardisation that all fits share."""
    path: list[Tried]
    best: Tried
    final: Fit
    """The best value's fit on all rows."""

    def predict(self, x: Matrix) -> npt.NDArray[np.float32]:
        """Probabilities (n, classes) of features (n, d)."""
        return predict(x, np.arange(len(x)), self.scaling, self.final.weights)


def evaluate(backbone: Backbone, task: Task, config: EvalConfig) -> Result:
    """Fits, then tests once. Raises UserError as `fit` does."""
    return fit(backbone, task, config)(None)


def fit(backbone: Backbone, task: Task, config: EvalConfig) -> Test:
    """Chooses C on validation images and fits on all.

    Raises UserError when a class has no training image, and when features are not finite.
    """
    data = task_features(backbone, task, config)
    _check_classes(data.y[data.fit], task)

    def by_metric(labels: npt.NDArray[np.int64], predictions: npt.NDArray[np.int64]) -> float:
        return score(task, labels, predictions)[task.metric]

    with threadpool_limits(config.threads):
        selection = select(
            data.x,
            data.y,
            data.fit,
            data.val,
            by_metric,
            classes=task.classes,
            options=config.options,
            device=config.device,
        )
        rank = effective_rank(data.x)

    def test(corruption: Corruption | None) -> Result:
        x, y = data.test_x, data.test_y
        if corruption is not None:
            x, y = test_features(backbone, task, config, corruption)
        with threadpool_limits(config.threads):
            shares = selection.predict(x)
        return result_of(task, shares, y, describe(selection), effective_rank=rank)

    return test


def select(
    x: Matrix,
    y: npt.NDArray[np.int64],
    fit: Rows,
    val: Rows,
    better: Score,
    *,
    classes: int,
    options: Options,
    device: str = "cpu",
) -> Selection:
    """Fits `x[fit]` along the path, scores `x[val]`, and refits both with the best C, from the best weights.

    Features x (N, d) may be a memory map. They are copied once to the device if they fit there.
    """
    rows = np.concatenate([fit, val])
    scaling = moments(x, fit)
    design = Design(x, rows, scaling, len(fit), device)
    solver = Solver(design, y[fit], classes, options.tolerance, options.max_iterations)
    path: list[Tried] = []
    best: Tried | None = None
    for strength in sorted(options.strengths):
        result = solver.fit(strength)
        shares = np.concatenate(list(solver.probabilities(len(fit), len(rows))))
        own = shares[np.arange(len(val)), y[val]].clip(np.finfo(np.float32).tiny)
        tried = Tried(result, better(y[val], shares.argmax(1)), float(-np.log(own).mean(dtype=np.float64)))
        best = tried if best is None or tried.score > best.score else best
        # Not a view, which would keep the weights of all values in memory.
        path.append(tried._replace(fit=result._replace(weights=result.weights.new_empty(0))))
        peak = max(best.fit.strength, min(path, key=lambda each: each.loss).fit.strength)
        # A small allowance, since a decade is not a whole number of steps in floating point.
        past = strength >= peak * 10 ** (options.past_peak - 1e-6)
        if past and tried.score < best.score - options.near_peak - 1e-9:
            break
    assert best is not None
    solver.widen(y[rows], best.fit)
    return Selection(scaling, path, best, solver.fit(best.fit.strength))


def describe(selection: Selection) -> dict[str, Any]:
    """The value that was chosen, and how the fits ended."""
    final, best = selection.final, selection.best
    return {
        "C": best.fit.strength,
        "validation": best.score,
        "gradient": final.gradient,
        "iterations": final.iterations,
        "converged": final.converged and all(tried.fit.converged for tried in selection.path),
        "path": [[tried.fit.strength, round(tried.score, 3), tried.fit.iterations] for tried in selection.path],
    }


def _check_classes(labels: npt.NDArray[np.int64], task: Task) -> None:
    """Raises UserError naming classes that are not among the labels to fit."""
    lacking = np.flatnonzero(np.bincount(labels, minlength=task.classes) == 0)
    if len(lacking):
        names = task.open("train").classes
        raise UserError(
            f"{task.name}: {len(lacking)} of {task.classes} classes have no image to fit on: "
            f"{some([names[number] for number in lacking])}; add training images of them"
        )
