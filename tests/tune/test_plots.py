"""What the plots of a search show: every trial where its values and its score are, told apart by how it ended."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colors, image
from matplotlib import pyplot as plt
from ray import tune

from tt_ray.tune.journal import Record
from tt_ray.tune.plots import _dimensions, _lineages, _parallel, write_plots
from tt_ray.tune.space import Space, find_space

SPACE = Space(
    "mine",
    "?",
    {
        "optim.lr": tune.loguniform(1e-4, 1e-2),
        "text.weight": tune.uniform(0.0, 1.0),
        "text.schedule": tune.choice(["constant", "cosine"]),
    },
    "top1",
)
GREY = colors.to_rgb("0.7")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def trial(name: str, lr: float, weight: float, schedule: str, seeds: tuple[float, ...], status: str = "done") -> Record:
    values = {"optim.lr": lr, "text.weight": weight, "text.schedule": schedule}
    rows = {str(seed): {"top1": score} for seed, score in enumerate(seeds)}
    row = {"top1": float(np.mean(seeds)), "epoch": 3, "seeds": rows, "generation": 0, "values": values}
    return Record(name, "search", values, list(range(len(seeds))), [row], status)


TRIALS = [
    trial("good", 1e-3, 0.25, "cosine", (60.0, 64.0)),
    trial("bad", 1e-4, 0.75, "constant", (40.0, 42.0)),
    trial("stopped", 1e-2, 0.5, "constant", (50.0, 52.0), "stopped"),
]


def points(axis: Any) -> list[tuple[float, float, tuple[float, ...]]]:
    """x, y and colour of all that is scattered."""
    return [
        (*map(float, xy), tuple(patch.get_facecolor()[0][:3]))
        for patch in axis.collections
        for xy in patch.get_offsets()
    ]


def test_each_dimension_has_all_seeds_and_their_mean() -> None:
    lr, weight, schedule = _dimensions(SPACE, TRIALS).axes[:3]
    assert [axis.get_xlabel() for axis in (lr, weight, schedule)] == list(SPACE.domains)
    assert lr.get_ylabel() == "top1, selection split"
    assert (lr.get_xscale(), weight.get_xscale(), schedule.get_xscale()) == ("log", "linear", "linear")
    for axis, place in ((lr, 1e-3), (weight, 0.25)):
        assert sorted(y for x, y, _ in points(axis) if x == place) == [60.0, 62.0, 64.0], "two seeds and their mean"
    assert {y for _, y, colour in points(weight) if np.allclose(colour, GREY)} == {50.0, 51.0, 52.0}, "ended early"
    assert [text.get_text() for text in schedule.get_xticklabels()] == ["constant", "cosine"]
    assert all(round(x) == (y >= 60) for x, y, _ in points(schedule)), "choices stand in their order"


def test_a_line_for_each_trial_goes_through_its_values_to_its_score() -> None:
    records = [*TRIALS, trial("nan", 1e-3, 0.5, "cosine", (math.nan,))]
    (axis,) = _parallel(SPACE, records).axes
    lines = [line for line in axis.lines if len(line.get_xdata()) == 4]
    found = {tuple(np.round(line.get_ydata(), 6)): line for line in lines}
    assert found.keys() == {(0.5, 0.25, 1.0, 1.0), (0.0, 0.75, 0.0, 0.0), (1.0, 0.5, 0.0, round(10 / 21, 6))}
    assert lines[-1] is found[0.5, 0.25, 1.0, 1.0], "the best on top"
    assert found[1.0, 0.5, 0.0, round(10 / 21, 6)].get_linestyle() == ":", "ended early"
    assert found[0.5, 0.25, 1.0, 1.0].get_color() == plt.get_cmap("viridis")(1.0)
    texts = [text.get_text() for text in axis.texts]
    assert {"0.0001", "0.01", "0", "1", "constant", "cosine", "41.00", "62.00"} <= set(texts)
    assert axis.get_xticklabels()[-1].get_text() == "top1"


def test_a_trial_without_a_dimension_is_left_out_there_alone() -> None:
    record = trial("short", 1e-3, 0.25, "cosine", (70.0, 72.0))
    del record.reports[0]["values"]["text.weight"]
    lr, weight, _ = _dimensions(SPACE, [*TRIALS, record]).axes[:3]
    assert {70.0, 71.0, 72.0} <= {y for _, y, _ in points(lr)}
    assert not {70.0, 71.0, 72.0} & {y for _, y, _ in points(weight)}
    (axis,) = _parallel(SPACE, [*TRIALS, record]).axes
    line = axis.lines[len(TRIALS)] if len(axis.lines[0].get_xdata()) == 4 else axis.lines[0]
    assert line.get_xdata().tolist() == [0, 2, 3] and np.isfinite(line.get_ydata()).all()
    record.reports[0]["values"].pop("text.schedule")
    assert _parallel(SPACE, [*TRIALS, record]).axes


def test_where_less_is_better_the_least_has_the_best_colour() -> None:
    records = [trial(name, 1e-3, weight, "cosine", (loss,)) for name, weight, loss in (("a", 0.1, 0.5), ("b", 0.9, 2))]
    for record in records:
        record.reports[0]["val_loss"] = record.reports[0]["top1"]
    space = Space("mine", "?", SPACE.domains, "val_loss")
    (axis,) = _parallel(space, records).axes
    best = next(line for line in axis.lines if len(line.get_xdata()) == 4 and line.get_ydata()[1] == 0.1)
    assert best.get_color() == plt.get_cmap("viridis")(1.0) and best.get_ydata()[-1] == 0.0
    assert axis.get_xticklabels()[-1].get_text() == "val_loss (lower is better)"


def test_a_population_s_values_are_drawn_over_its_epochs(tmp_path: Path) -> None:
    space, record = find_space("pbt_weight"), Record("t", "search", {"text.weight": 0.2}, [0], [], "done")
    for epoch, weight in ((1, 0.2), (2, 0.2), (3, 0.4)):
        row = {"top1": 5.0 * epoch, "epoch": epoch, "seeds": {"0": {"top1": 5.0 * epoch}}, "generation": epoch // 3}
        record.reports.append({**row, "values": {"text.weight": weight}})
    (axis,) = _lineages(space, [record]).axes
    assert axis.get_lines()[0].get_xydata().tolist() == [[1, 0.2], [2, 0.2], [3, 0.4]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "text.weight")
    assert write_plots(tmp_path, space, [record]) == ["dimensions.png", "parallel.png", "lineages.png"]


def test_files_are_images_and_trials_that_agree_are_drawn_without_a_warning(tmp_path: Path) -> None:
    alike = [trial("a", 1e-3, 0.12, "cosine", (6.25,)), trial("b", 1e-3, 0.13, "cosine", (6.25,))]
    unborn = Record("c", "search", {}, [0], [], "failed", "no report")
    names = write_plots(tmp_path, SPACE, [*alike, unborn])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names) == ["dimensions.png", "parallel.png"]
    for name in names:
        pixels = image.imread(tmp_path / name)
        assert pixels.shape[1] > 400 and pixels.std() > 0, "there is something on it"
