"""The protocol chooses on validation images alone, fits as scikit-learn does, and says how it went."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from eval.contract import EvalConfig, Result
from eval.features.backbone import open_backbone
from eval.features.cache import TaskFeatures
from eval.features.extract import extract
from eval.metrics import mean_per_class, top1
from eval.protocols import linear as protocol
from eval.protocols.linear import Options, Selection, select, spaced
from tests.eval.toy_task import ToyTask, toy_backbone
from tests.toy import run_toy, toy_config
from tt_ray.data.prepare import open_data
from tt_ray.logistic.design import moments
from tt_ray.terminal.errors import UserError


def drawn(seed: int = 0, classes: int = 3, images: int = 300, distance: float = 0.5) -> TaskFeatures:
    """Overlapping classes; every fifth row is for validation."""
    rng = np.random.default_rng(seed)
    centres = distance * rng.normal(size=(classes, 10))
    y = rng.integers(0, classes, 2 * images)
    y[:classes] = np.arange(classes)
    x = ((centres[y] + rng.normal(size=(2 * images, 10))) * rng.uniform(0.1, 5, 10)).astype(np.float32)
    rows = np.arange(images)
    fit, val = rows[rows % 5 != 4], rows[rows % 5 == 4]
    return TaskFeatures(x[:images], y[:images], fit, val, x[images:], y[images:])


def chosen(data: TaskFeatures, options: Options | None = None, classes: int = 3, **changes: Any) -> Selection:
    data = data._replace(**changes)
    options = options or Options(spaced(-4, 3, 8))
    return select(data.x, data.y, data.fit, data.val, top1, classes=classes, options=options)


def run(monkeypatch: pytest.MonkeyPatch, data: TaskFeatures, **task: Any) -> Result:
    monkeypatch.setattr(protocol, "task_features", lambda *_: data)
    none: Any = None
    toy: Any = ToyTask(**task)
    return protocol.evaluate(none, toy, EvalConfig(Options(spaced(-3, 2, 6)), Path()))


def test_everything_but_the_path_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn()
    scaling = moments(data.x, data.fit)
    x, test_x = ((part - scaling.mean) / scaling.scale for part in (data.x, data.test_x))
    scores: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in spaced(-3, 2, 6):
            model = LogisticRegression(C=strength, tol=1e-7, max_iter=2000).fit(x[data.fit], data.y[data.fit])
            scores[strength] = top1(data.y[data.val], model.predict(x[data.val]))
        best = max(scores, key=lambda strength: (scores[strength], -strength))
        model = LogisticRegression(C=best, tol=1e-7, max_iter=2000).fit(x, data.y)
    result = run(monkeypatch, data)
    assert result.chosen["C"] == best and result.chosen["validation"] == scores[best]
    assert result.predictions is not None and (result.predictions == model.predict(test_x)).all()
    assert result.metrics["top1"] == pytest.approx(100 * model.score(test_x, data.test_y))
    assert result.metrics["mean_per_class"] == mean_per_class(data.test_y, model.predict(test_x), 3)
    assert 0 <= result.metrics["ece"] <= 100 and 1 <= result.metrics["effective_rank"] <= 10
    assert result.n == len(data.test_y) and result.labels is not None and (result.labels == data.test_y).all()
    assert result.chosen["converged"] and result.chosen["gradient"] <= 1e-5


def test_the_path_ends_a_decade_past_the_peak() -> None:
    data = drawn(images=200)
    every = Options(spaced(-4, 5, 19), past_peak=float("inf"))
    whole, short = chosen(data, every), chosen(data, replace(every, past_peak=1.0, near_peak=0.0))
    assert len(whole.path) == 19 and len(short.path) < 15
    assert short.best.fit.strength == whole.best.fit.strength
    assert [tried.score for tried in short.path] == [tried.score for tried in whole.path[: len(short.path)]]
    loss = min(short.path, key=lambda tried: tried.loss)
    last = max(short.best.fit.strength, loss.fit.strength)
    assert short.path[-1].fit.strength == pytest.approx(10 * last)


def test_the_path_goes_on_while_values_are_near_the_best() -> None:
    data, options = drawn(images=200), Options(spaced(-4, 5, 19))
    short, near = (chosen(data, replace(options, near_peak=near)) for near in (0.0, 20.0))
    assert len(short.path) < 15 and short.path[-1].score < short.best.score
    assert len(near.path) == 19 and near.best.score - min(tried.score for tried in near.path[10:]) < 20


def test_the_path_keeps_no_weights() -> None:
    found = chosen(drawn())
    assert all(not tried.fit.weights.untyped_storage().nbytes() for tried in found.path)
    assert found.best.fit.weights.shape == (3, 11)


def test_of_equally_good_values_the_strongest_penalty_is_taken() -> None:
    found = chosen(drawn(distance=30.0))
    assert found.best.score == 100
    assert found.best.fit.strength == next(tried.fit.strength for tried in found.path if tried.score == 100)


def test_selection_does_not_look_at_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn()
    first = run(monkeypatch, data)
    second = run(monkeypatch, data._replace(test_y=(data.test_y + 1) % 3))
    assert first.chosen == second.chosen and first.metrics["top1"] != second.metrics["top1"]
    assert np.array_equal(first.predictions, second.predictions)  # type: ignore[arg-type]


def test_the_task_metric_selects(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn(images=400, distance=0.4)
    rare = np.where((data.y == 2) & (np.arange(len(data.y)) % 6 > 0), 0, data.y)
    found = {name: run(monkeypatch, data._replace(y=rare), metric=name).chosen for name in ("top1", "mean_per_class")}
    for chosen in found.values():
        scores = [score for _, score, _ in chosen["path"]]
        assert round(chosen["validation"], 3) == max(scores)
    assert found["top1"]["path"][0][1] > 60 and found["mean_per_class"]["path"][0][1] == pytest.approx(33.333)


def test_validation_images_of_one_class_are_enough() -> None:
    data = drawn()
    only = np.flatnonzero(data.y == 1)[::4]
    found = chosen(data, val=only, fit=np.setdiff1d(np.arange(len(data.y)), only))
    assert found.final.converged and 0 < found.best.score <= 100


def test_a_class_without_images_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn()
    fit = data.fit[data.y[data.fit] != 1]
    with pytest.raises(UserError, match="coloured: 1 of 3 classes have no image to fit on: green"):
        run(monkeypatch, data._replace(fit=fit))


@pytest.mark.parametrize("part", ["fit", "val", "test"])
def test_broken_features_are_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn()
    x, test_x = data.x.copy(), data.test_x.copy()
    if part == "test":
        test_x[3, 2] = np.inf
    else:
        x[getattr(data, part)[3], 2] = np.nan
    with pytest.raises(UserError, match="1 of 10 features are NaN or infinite"):
        run(monkeypatch, data._replace(x=x, test_x=test_x))


@pytest.mark.parametrize(
    "wrong",
    [{"strengths": ()}, {"strengths": (0.0, 1.0)}, {"tolerance": 0.0}, {"past_peak": -1.0}, {"near_peak": -1.0}],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="linear"):
        Options(**wrong)


def test_from_images_to_numbers(tmp_path: Path) -> None:
    task: Any = ToyTask()
    config = EvalConfig(Options(spaced(-3, 2, 6)), tmp_path)
    first, second = (protocol.evaluate(toy_backbone(), task, config) for _ in range(2))
    assert first.metrics["top1"] == 100 and first.metrics == second.metrics and first.chosen == second.chosen


def test_features_are_those_of_the_classifier(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    run_toy(config)
    data = open_data(config, None)
    backbone = open_backbone("run", str(config.run_dir))
    features = extract(backbone, data.val, EvalConfig(None, tmp_path))
    assert features.shape == (37, 24)
    correct = backbone.model.get_classifier()(torch.from_numpy(features)).argmax(1).numpy() == data.val.labels
    from tt_ray.training.run_folder import read_result

    assert 100 * correct.mean() == read_result(config.run_dir)["top1"]
