"""A protocol of the user's own: one module outside the package, named on the command line, evaluated for real on a task
of the user's own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.jobs.plan import read_options
from eval.jobs.results import read_rows
from tests.eval.test_adding_a_task import TASKS, pictures
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


@pytest.mark.slow
def test_a_module_of_ones_own_is_a_protocol_and_a_task_of_yaml_is_a_task(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "nearest_mean.py").write_text(NEAREST_MEAN)
    for split in ("train", "test"):
        pictures(tmp_path / "pictures" / split)
    (tmp_path / "tasks.yaml").write_text(TASKS)
    words = ["--models", "a=random:test_vit", "--tasks", "colours", "--task-file", str(tmp_path / "tasks.yaml")]
    words += ["--protocols", "mine.nearest_mean"]
    words += ["--set", "mine.nearest_mean.power=1", "--seeds", "0", "1", "--out", str(tmp_path / "out")]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "eval", *words, "--cpus-per-job", "2"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = {row.metric: row for row in read_rows(tmp_path / "out")}
    assert rows.keys() == {"top1", "mean_per_class"}, "it draws nothing, so that one seed is enough"
    own = rows["mean_per_class"]
    assert (own.protocol, own.task, own.task_metric, own.n) == ("mine.nearest_mean", "colours", "mean_per_class", 20)
    assert own.value > 60
    assert '"power": 1.0' in own.chosen
    report = [sys.executable, "-m", "eval.report", str(tmp_path / "out")]
    assert subprocess.run(report, capture_output=True, timeout=300).returncode == 0
    assert "mine.nearest_mean" in (tmp_path / "out" / "report.html").read_text()


def test_a_module_that_is_no_protocol_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_protocol.py").write_text("class Options: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="half_a_protocol is no protocol: it does not define TRAITS and evaluate"):
        read_options(("half_a_protocol",), ())
    for name in ("no.such.module", "linaer", ".."):
        with pytest.raises(UserError, match="no protocol"):
            read_options((name,), ())
