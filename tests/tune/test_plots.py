"""Plots of a search whose trials can hardly be told apart."""

from pathlib import Path

from tt_ray.tune.journal import Record
from tt_ray.tune.plots import write_plots
from tt_ray.tune.space import find_space


def test_trials_that_agree_are_drawn_without_a_warning(tmp_path: Path) -> None:
    records = []
    for number, weight in enumerate((0.12, 0.13)):
        values = {"text.weight": weight}
        row = {"top1": 6.25, "epoch": 1, "seeds": {"0": {"top1": 6.25}}, "generation": number, "values": values}
        records.append(Record(f"t00{number}", "search", values, [0], [row], "done"))
    names = write_plots(tmp_path, find_space("pbt_weight"), records)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names) and len(names) == 3
