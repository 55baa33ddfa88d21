"""Linear probe: multinomial logistic regression on frozen features, its regularisation selected on held-out data."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

# One step a decade, on features of unit variance: weaker regularisation than this was never chosen here.
STRENGTHS = tuple(10.0**power for power in range(-4, 2))
_VALIDATION_SHARE = 0.2


class Probe(NamedTuple):
    """Result of one probe."""

    top1: float
    """Per cent, on the test split."""
    strength: float
    """The C that was selected on validation data."""


def linear_probe(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    test_features: npt.NDArray[np.float32],
    test_labels: npt.NDArray[np.int64],
    seed: int = 0,
) -> Probe:
    """Selects C on a stratified fifth of the training split, refits on all of it, and tests once.

    Features (N, d) and (M, d) are scaled by the training split's per-dimension mean and standard deviation, which
    speeds the solver up. The path goes from strong to weak regularisation and stops once validation has got worse
    twice in a row.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    scaled, test = (features - mean) / std, (test_features - mean) / std
    fit_x, val_x, fit_y, val_y = train_test_split(
        scaled, labels, test_size=_VALIDATION_SHARE, random_state=seed, stratify=labels
    )
    scores: list[float] = []
    model = LogisticRegression(warm_start=True, max_iter=1000)
    for strength in STRENGTHS:
        scores.append(float(model.set_params(C=strength).fit(fit_x, fit_y).score(val_x, val_y)))
        if len(scores) > 2 and max(scores[-2:]) < max(scores):
            break
    best = STRENGTHS[int(np.argmax(scores))]
    final = LogisticRegression(C=best, max_iter=1000).fit(scaled, labels)
    return Probe(100 * float(final.score(test, test_labels)), best)
