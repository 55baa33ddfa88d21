"""A protocol of the user's own: one module outside the package, named on the command line.

The command evaluates by it in tests/test_packaging.py.
"""

from pathlib import Path

import pytest

from eval.jobs.plan import read_options
from tt_ray.terminal.errors import UserError

NEAREST_MEAN = '''
"""Protocol `nearest_mean`: the class whose mean feature is nearest."""

from dataclasses import dataclass

import numpy as np

from eval.contract import EvalConfig, Result, Traits
from eval.features.cache import task_features
from eval.metrics import score

TRAITS = Traits(version=1, cost=0.5, on_features=True, draws="never")


@dataclass(frozen=True)
class Options:
    """The recipe."""

    power: float = 2.0
    """Exponent of the distance."""


def evaluate(backbone, task, config: EvalConfig) -> Result:
    data = task_features(backbone, task, config)
    means = np.stack([data.x[data.y == label].mean(0) for label in range(task.classes)])
    distances = (np.abs(data.test_x[:, None] - means) ** config.options.power).sum(2)
    predictions = distances.argmin(1)
    labels = np.asarray(data.test_y, np.int32)
    return Result(score(task, labels, predictions), len(labels), predictions.astype(np.int32), labels)
'''


def test_a_module_of_ones_own_is_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "nearest_mean.py").write_text(NEAREST_MEAN)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = read_options(("mine.nearest_mean",), ("mine.nearest_mean.power=1",))
    assert list(options) == ["mine.nearest_mean"] and options["mine.nearest_mean"].power == 1.0


def test_a_module_that_is_no_protocol_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_protocol.py").write_text("class Options: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="half_a_protocol is no protocol: it does not define TRAITS and evaluate"):
        read_options(("half_a_protocol",), ())
    for name in ("no.such.module", "linaer", ".."):
        with pytest.raises(UserError, match="no protocol"):
            read_options((name,), ())
