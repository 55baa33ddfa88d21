"""The linear probe as an estimator of scikit-learn's, for features in memory: `tt_ray.probe`, `tt_ray.LinearProbe`."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    check_scalar,
    column_or_1d,
    validate_data,
)

from eval.metrics import top1
from eval.protocols.linear import Options, Selection, describe, select, spaced
from eval.tasks.origins import mark_share
from tt_ray.logistic.solver import MAX_ITERATIONS, TOLERANCE
from tt_ray.terminal.python_calls import from_python


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression whose L2 penalty is chosen on validation rows, as protocol `linear` does.

    The recipe is that of `eval.protocols.linear` (Kornblith et al., arXiv 1805.08974; DINOv2): features are
    standardised, C is taken from a path on which each fit starts from the last, and the best is fitted again on all
    rows. C means what it means in scikit-learn, on standardised features.

    Args:
        Cs: Values of C to choose from, or how many, evenly spaced in log C from 1e-6 to 1e5.
        validation_share: Share of rows, stratified, that choose C where none are passed to `fit`.
        tol: Largest entry of the gradient of the mean loss that counts as 0.
        max_iter: Iterations of L-BFGS for one value of C, at most.
        random_state: Seed of the rows that are held out.
        device: Where it computes: cpu or cuda.

    Attributes:
        C_: The value that was chosen.
        classes_: Labels, (classes,).
        coef_: Weights for features as they are passed, (classes, d).
        intercept_: (classes,).
        scores_: Validation accuracy in per cent by value of C, as far as the path went.
        chosen_: What `python -m eval` keeps of a fit: C, validation score, gradient, iterations, whether all converged.
        n_iter_: Iterations of L-BFGS over all values of C.
        n_features_in_: d.
    """

    @from_python()
    def __init__(
        self,
        Cs: int | Sequence[float] = 45,
        *,
        validation_share: float = 0.2,
        tol: float = TOLERANCE,
        max_iter: int = MAX_ITERATIONS,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.Cs = Cs
        self.validation_share = validation_share
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> Self:
        """Chooses C and fits.

        Args:
            X: Features (N, d), an array or a tensor.
            y: Labels (N,), numbers or strings.
            X_val: Features to choose C on, (M, d); None holds out a share of X.
            y_val: Their labels, (M,).

        Raises:
            ValueError: There are fewer than two classes, a class has no row to fit on, there is no row to choose C on,
                features are not finite or no table, there are more or fewer labels than rows, or a parameter is out of
                range.
        """
        options = self._options()
        if (X_val is None) != (y_val is None):
            raise ValueError("LinearProbe chooses C on X_val and y_val: pass both, or neither")
        X, y = validate_data(self, _array(X), _array(y), dtype=np.float32)
        try:
            check_classification_targets(y)
            self.classes_, labels = np.unique(y, return_inverse=True)
        except TypeError:
            raise ValueError("y has labels of several kinds, such as text and None: give all of them one") from None
        if len(self.classes_) < 2:
            raise ValueError(f"LinearProbe needs two classes, but the labels have one class: {self.classes_[0]!r}")
        if X_val is None:
            held_out = mark_share(labels, self.validation_share, self.random_state)
            fit, val = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        else:
            X_val = check_array(_array(X_val), dtype="float32", input_name="X_val", estimator=self)
            X_val = validate_data(self, X_val, dtype=np.float32, reset=False)  # as many columns
            y_val = column_or_1d(_array(y_val))
            check_consistent_length(X_val, y_val)
            fit, val = np.arange(len(X)), np.arange(len(X), len(X) + len(X_val))
            X, labels = np.concatenate([X, X_val]), np.concatenate([labels, self._numbers(y_val)])
        if not len(val):
            raise ValueError(
                f"LinearProbe has no row to choose C on: a share of {self.validation_share:g} of {len(fit)} rows in "
                f"{len(self.classes_)} classes leaves none; pass X_val and y_val, more rows, or a larger share"
            )
        found = select(X, labels, fit, val, top1, classes=len(self.classes_), options=options, device=self.device)
        self._keep(found)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """Probabilities of the classes, (N, classes)."""
        check_is_fitted(self)
        rows: Any = validate_data(self, _array(X), dtype=np.float32, reset=False)
        return self._selection.predict(rows)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Labels (N,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _options(self) -> Options:
        """The protocol's options.

        Raises:
            TypeError, ValueError: A parameter has another type, or is out of range.
        """
        check_scalar(self.validation_share, "validation_share", Real, min_val=0, max_val=1, include_boundaries="left")
        check_scalar(self.tol, "tol", Real, min_val=0, include_boundaries="neither")
        check_scalar(self.max_iter, "max_iter", Integral, min_val=1)
        check_scalar(self.random_state, "random_state", Integral)
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device is {self.device!r}, but must be cpu or cuda") from None
        strengths = spaced(-6, 5, self.Cs) if isinstance(self.Cs, int) else tuple(self.Cs)
        if not strengths or not all(isinstance(C, int | float | np.number) and 0 < C < np.inf for C in strengths):
            raise ValueError(f"Cs is {self.Cs!r}, but must be positive numbers, or how many of them")
        return Options(strengths, tolerance=self.tol, max_iterations=self.max_iter)

    def _numbers(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        places = np.searchsorted(self.classes_, labels).clip(max=len(self.classes_) - 1)
        if len(strange := np.unique(labels[self.classes_[places] != labels])):
            raise ValueError(f"y_val has labels that y lacks: {', '.join(map(str, strange[:5]))}")
        return places

    def _keep(self, found: Selection) -> None:
        weights = found.final.weights.cpu().numpy().astype(np.float64)
        self._selection = found
        self.C_ = found.best.fit.strength
        self.coef_ = weights[:, :-1] / found.scaling.scale
        self.intercept_ = weights[:, -1] - self.coef_ @ found.scaling.mean
        self.n_iter_ = max(1, sum(tried.fit.iterations for tried in found.path))
        self.scores_ = {tried.fit.strength: tried.score for tried in found.path}
        self.chosen_ = describe(found)


def probe(features: Any, labels: Any, **options: Any) -> LinearProbe:
    """Returns a fitted `LinearProbe`.

    Args:
        features: (N, d), an array or a tensor.
        labels: (N,), numbers or strings.
        **options: Arguments of `LinearProbe`, and `X_val`, `y_val` of its `fit`.
    """
    validation = {name: options.pop(name) for name in ("X_val", "y_val") if name in options}
    return LinearProbe(**options).fit(features, labels, **validation)


def _array(values: Any) -> Any:
    """Tensors as arrays, from any device; numpy has no bfloat16."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
