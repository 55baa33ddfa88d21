"""Multinomial logistic regression with an L2 penalty along a path of regularisation values, by preconditioned L-BFGS.

The objective is scikit-learn's (`LogisticRegression`, solver lbfgs, 1.9): mean cross-entropy + |W|^2 / (2 C n) with a
free bias, and so is the test of convergence: no entry of the gradient is above the tolerance; here, the estimated
way down to the minimum must be small as well. Two classes share one weight vector there; here each has its own, and
the penalty is doubled, which gives the same probabilities.

Four things make it cheap. (1) float32, and both products with a block of rows while it is in the cache. (2) A diagonal
preconditioner in the basis where the second derivatives, sum_i (diag(p_i) - p_i p_i') ⊗ x_i x_i', come out nearly
diagonal: eigenvectors of X'X times those of the mean of diag(p) - pp', whose products of eigenvalues stand for the
diagonal (a Kronecker factorisation, as in Martens and Grosse, 2015, arXiv 1503.05671). (3) From one C to the next, the
weights move on along the line through the last two solutions, and L-BFGS keeps its pairs: the penalty's share of a
gradient difference is known, so it is exchanged. (4) Line searches take the first step in 9 of 10 iterations.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tt_ray.logistic.design import Design, Matrix, Moments, Rows, check_finite, multiply, read_blocks

TOLERANCE = 1e-5
MAX_ITERATIONS = 1000
_TRIALS = 20
_CURVATURE_ROWS = 8192
ABOVE = 1e-6
"""How far above its minimum the objective may be by L-BFGS's own estimate, relative. Weakly regularised fits whose
gradient is within scikit-learn's tolerance can be a hundred times as far from it."""


class Fit(NamedTuple):
    """The solution for one C."""

    strength: float
    """C: weight of the summed cross-entropy against half the squared weights."""
    weights: Tensor
    """(classes, d + 1) of standardised features, the bias last."""
    objective: float
    """Mean cross-entropy + penalty."""
    gradient: float
    """Largest entry of the objective's gradient."""
    iterations: int
    """Iterations of L-BFGS."""
    converged: bool
    """Whether `gradient` is within the tolerance."""


class Point(NamedTuple):
    """Weights in the design's basis, (classes, d + 1) with the bias last, and the objective there."""

    weights: Tensor
    value: float
    gradient: Tensor

    def shifted(self, change: float) -> "Point":
        """The same weights under a penalty that is `change` stronger: no pass over the features is needed."""
        value = self.value + change / 2 * float(self.weights[:, :-1].double().square().sum())
        gradient = self.gradient.clone()
        gradient[:, :-1] += change * self.weights[:, :-1]
        return Point(self.weights, value, gradient)


class Objective:
    """Mean cross-entropy of a design's first rows + `penalty` / 2 |W|^2, and its gradient."""

    def __init__(self, design: Design, labels: npt.NDArray[np.int64], classes: int) -> None:
        self.design, self.classes, self.count = design, classes, len(labels)
        self.labels = torch.from_numpy(labels).to(design.device)
        self.penalty = 0.0
        self.passes = 0

    def __call__(self, weights: Tensor) -> Point:
        """One pass over the features."""
        seen = self.design.for_blocks(weights)
        gradient = torch.zeros_like(weights)
        loss = torch.zeros((), dtype=torch.float64, device=weights.device)
        for place, x in self.design.blocks(0, self.count):
            shares, labels = probabilities(x, seen), self.labels[place, None]
            own = shares.gather(1, labels)
            loss -= own.clamp_min(torch.finfo(torch.float32).tiny).log_().sum(dtype=torch.float64)
            shares.scatter_add_(1, labels, torch.full_like(own, -1))
            gradient[:, :-1] += multiply(shares.T, x)
            gradient[:, -1] += shares.sum(0)
        self.passes += 1
        gradient = self.design.from_blocks(gradient).div_(self.count)
        return Point(weights, float(loss) / self.count, gradient).shifted(self.penalty)

    def largest(self, gradient: Tensor, enough: float = float("inf")) -> float:
        """The gradient's largest entry in the features' own basis; infinity where it is surely above `enough`."""
        if float(gradient.square().mean().sqrt()) > enough:
            return float("inf")
        return float(self.design.unturned(gradient).abs().max())


def probabilities(x: Tensor, weights: Tensor) -> Tensor:
    """Softmax of the logits of x (b, d) under weights (classes, d + 1): (b, classes)."""
    logits = multiply(x, weights[:, :-1].T).add_(weights[:, -1])
    if x.device.type == "cpu" and logits.shape[1] < 32:  # torch's softmax of short rows took 7 times as long
        return torch.softmax(logits.T.contiguous(), 0).T
    return torch.softmax(logits, 1)


class Preconditioner:
    """Divides by an estimate of the second derivatives: a diagonal in the bases of features and of classes."""

    def __init__(self, objective: Objective, eigenvalues: Tensor) -> None:
        self.objective, self.eigenvalues = objective, torch.cat([eigenvalues, eigenvalues.new_ones(1)])
        classes = objective.classes
        self._basis = torch.eye(classes, device=eigenvalues.device)
        self._diagonal = torch.ones(classes, len(eigenvalues) + 1, device=eigenvalues.device)

    def refresh(self, weights: Tensor) -> None:
        """Takes the classes' part at these weights, from about `_CURVATURE_ROWS` rows."""
        objective, seen = self.objective, self.objective.design.for_blocks(weights)
        size = objective.design.block_rows
        stride = max(1, objective.count // _CURVATURE_ROWS)
        mean, second, rows = torch.zeros_like(weights[:, 0]), torch.zeros_like(self._basis), 0
        for start in range(0, objective.count, size * stride):
            for _, x in objective.design.blocks(start, min(start + size, objective.count)):
                shares = probabilities(x, seen)
                mean += shares.sum(0)
                second += multiply(shares.T, shares)
                rows += len(x)
        curvature = (torch.diag(mean) - second) / rows
        # Nothing changes when all classes get the same: without some curvature there, rounding errors would pile up.
        curvature += curvature.diagonal().mean() / len(mean)
        spread, self._basis = torch.linalg.eigh(curvature)
        diagonal = spread.clamp_min(0)[:, None] * self.eigenvalues
        diagonal[:, :-1] += objective.penalty
        self._diagonal = diagonal.clamp_min(1e-7 * float(diagonal.max()))

    def __call__(self, vector: Tensor) -> Tensor:
        return multiply(self._basis, multiply(self._basis.T, vector).div_(self._diagonal))


class Pairs:
    """The last steps s and gradient differences y of L-BFGS, and their product with a gradient.

    The compact form of Byrd, Nocedal and Schnabel (1994), so that all pairs are read in five products: with R the upper
    triangle of S'Y and D its diagonal, Hg = (1 - S R'^-1 Y') P (1 - Y R^-1 S') g + S R'^-1 D R^-1 S' g.
    """

    def __init__(self, shape: torch.Size, size: int, device: torch.device) -> None:
        self.shape, self.size = shape, size
        self.steps, self.changes = torch.empty(2, size, shape.numel(), device=device)
        self.products = np.zeros((size, size))
        self._at_first = np.zeros(size)  # each pair's s'y when it was added
        self.order: list[int] = []  # slots, the oldest first

    def clear(self) -> None:
        """Forgets all pairs."""
        self.order = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Takes a pair in the oldest's place, unless rounding has eaten its curvature."""
        s, y = step.reshape(-1, 1), change.reshape(-1, 1)
        if float((s * y).sum()) <= 1e-6 * float(s.norm()) * float(y.norm()):
            return
        slot = len(self.order) if len(self.order) < self.size else self.order.pop(0)
        self.order.append(slot)
        self.steps[slot], self.changes[slot] = s[:, 0], y[:, 0]
        used = len(self.order)
        self.products[:used, slot] = multiply(self.steps[:used], y)[:, 0].cpu()
        self.products[slot, :used] = multiply(self.changes[:used], s)[:, 0].cpu()
        self._at_first[slot] = self.products[slot, slot]

    def shift(self, change: float) -> None:
        """Makes the pairs those of an objective whose penalty is `change` stronger.

        Pairs that were the penalty's but for a ten-thousandth go: the rest is not much more than rounding errors.
        """
        used = len(self.order)
        steps, changes = (part[:used].view(used, *self.shape) for part in (self.steps, self.changes))
        changes[:, :, :-1].add_(steps[:, :, :-1], alpha=change)
        self.products[:used, :used] = multiply(self.steps[:used], self.changes[:used].T).cpu()
        good = [slot for slot in self.order if self.products[slot, slot] > 1e-4 * self._at_first[slot]]
        if len(good) < used:  # they move to the first slots, by age
            for place in (self.steps, self.changes):
                place[: len(good)] = place[good]
            self._at_first[: len(good)] = self._at_first[good]
            self.products[: len(good), : len(good)] = self.products[np.ix_(good, good)]
            self.order = list(range(len(good)))

    def solve(self, gradient: Tensor, precondition: Preconditioner) -> Tensor:
        """The inverse second derivatives, as far as they are known, times the gradient."""
        used, order = len(self.order), self.order
        if not used:
            return precondition(gradient)
        steps, changes = self.steps[:used], self.changes[:used]
        upper = np.triu(self.products[np.ix_(order, order)])
        first = np.linalg.solve(upper, self._along(steps, gradient))
        result = precondition(gradient - self._combine(changes, first))
        newest = self.changes[order[-1]].view(self.shape)
        result *= upper[-1, -1] / float((newest * precondition(newest)).sum())
        second = np.linalg.solve(upper.T, np.diag(upper) * first - self._along(changes, result))
        return result.add_(self._combine(steps, second))

    def _along(self, vectors: Tensor, vector: Tensor) -> npt.NDArray[np.float64]:
        return multiply(vectors, vector.reshape(-1, 1))[:, 0].cpu().numpy()[self.order].astype(np.float64)

    def _combine(self, vectors: Tensor, shares: npt.NDArray[np.floating]) -> Tensor:
        slots = np.empty((len(shares), 1), np.float32)
        slots[self.order, 0] = shares
        return multiply(vectors.T, torch.from_numpy(slots).to(vectors.device)).view(self.shape)


class Solver:
    """Solutions for one C after the other, best from strong to weak regularisation; deterministic."""

    def __init__(
        self,
        design: Design,
        labels: npt.NDArray[np.int64],
        classes: int,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
        above: float = ABOVE,
    ) -> None:
        """Fits the first len(labels) rows of a design that has been turned."""
        self.objective = Objective(design, labels, classes)
        self.tolerance, self.max_iterations, self.above = tolerance, max_iterations, above
        self.precondition = Preconditioner(self.objective, design.eigenvalues)
        shape = torch.Size((classes, design.dim + 1))
        # A quarter of the features' memory for pairs, as long as that is between 10 and 40 of them.
        self.pairs = Pairs(shape, min(40, max(10, len(labels) // (8 * classes))), design.device)
        self.point = self.objective(torch.zeros(shape, device=design.device))
        self._path: list[tuple[float, Tensor]] = []

    def widen(self, labels: npt.NDArray[np.int64], fit: Fit) -> None:
        """From now on fits the first len(labels) rows, starting from `fit`.

        Pairs stay: more rows of the same kind have nearly the same second derivatives.
        """
        design, penalty = self.objective.design, self.objective.penalty
        self.objective = Objective(design, labels, self.objective.classes)
        self.objective.penalty = penalty
        self.precondition.objective = self.objective
        self.point = self.objective(design.turned(fit.weights))
        self._path = []

    def fit(self, strength: float) -> Fit:
        """The solution for C = `strength`, from where the last fit ended."""
        objective = self.objective
        penalty = (2 if objective.classes == 2 else 1) / (strength * objective.count)
        change, objective.penalty = penalty - objective.penalty, penalty
        self.point = self.point.shifted(change)
        self.pairs.shift(change)
        self.precondition.refresh(self.point.weights)
        self._extrapolate(float(np.log(strength)))
        iterations, largest = self._minimise()
        self._path = [*self._path[-1:], (float(np.log(strength)), self.point.weights)]
        weights = objective.design.unturned(self.point.weights)
        return Fit(strength, weights, self.point.value, largest, iterations, largest <= self.tolerance)

    def probabilities(self, start: int, stop: int) -> Iterator[npt.NDArray[np.float32]]:
        """Class probabilities of the design's rows start to stop, in blocks (b, classes), at the last solution."""
        design = self.objective.design
        seen = design.for_blocks(self.point.weights)
        for _, x in design.blocks(start, stop):
            yield probabilities(x, seen).cpu().numpy()

    def _extrapolate(self, position: float) -> None:
        """Moves on along the line through the last two solutions, over log C, if that is nearer to the solution."""
        if len(self._path) < 2:
            return
        (first, older), (second, newer) = self._path
        share = (position - second) / (second - first) if second != first else 0.0
        if not 0 < share <= 2:
            return
        there = self.objective(newer + share * (newer - older))
        if self._distance(there.gradient) < self._distance(self.point.gradient):
            self.point = there

    def _distance(self, gradient: Tensor) -> float:
        """The gradient's square, each direction by its second derivative: twice how far above its minimum a parabola
        is."""
        return float((gradient * self.precondition(gradient)).sum())

    def _minimise(self) -> tuple[int, float]:
        """Iterates until the gradient and the way down are small; iterations, and the gradient's largest entry."""
        objective = self.objective
        for iteration in range(self.max_iterations):
            largest = objective.largest(self.point.gradient, self.tolerance)
            direction = self.pairs.solve(self.point.gradient, self.precondition).neg_()
            above = -float((direction * self.point.gradient).sum()) / 2
            if largest <= self.tolerance and above <= self.above * self.point.value:
                return iteration, largest
            there = line_search(objective, self.point, direction)
            if there is None:  # L-BFGS has lost its way, or rounding errors are all that is left of the gradient
                self.pairs.clear()
                there = line_search(objective, self.point, self.precondition(self.point.gradient).neg_())
            if there is None:
                return iteration, objective.largest(self.point.gradient)
            self.pairs.add(there.weights - self.point.weights, there.gradient - self.point.gradient)
            self.point = there
        return self.max_iterations, objective.largest(self.point.gradient)


def line_search(objective: Objective, point: Point, direction: Tensor) -> Point | None:
    """A point on the ray that satisfies Wolfe's conditions, None if float32 can distinguish none.

    The objective is convex, so that slopes alone bracket the minimum: near it, values are equal but for rounding.
    """
    start = float((direction * point.gradient).sum())
    if not start < 0:
        return None
    step, low, high = 1.0, 0.0, float("inf")
    for _ in range(_TRIALS):
        there = objective(point.weights + step * direction)
        slope = float((direction * there.gradient).sum())
        secant = step * start / (start - slope) if slope > start else float("inf")
        if slope > -0.9 * start or there.value > point.value + 1e-4 * step * start + 1e-6 * abs(point.value):
            high = step
            step = min(max(secant, low + 0.1 * (high - low)), low + 0.9 * (high - low))
        elif slope < 0.9 * start:
            low = step
            step = min(max(secant, 1.5 * step), 5 * step) if high == float("inf") else (low + high) / 2
        else:
            return there
    return None


def predict(x: Matrix, rows: Rows, scaling: Moments, weights: Tensor) -> npt.NDArray[np.float32]:
    """Probabilities (len(rows), classes) of images by their features x[rows] and weights (classes, d + 1) of a fit.

    Raises UserError when a feature is NaN or infinite.
    """
    found = np.empty((len(rows), len(weights)), np.float32)
    for place, block in read_blocks(x, rows):
        check_finite(block)
        found[place] = probabilities(scaling.standardise(block, weights.device), weights).cpu()
    return found
