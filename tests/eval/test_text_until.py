"""Runs whose text loss stops: its weight by epoch, and the figure."""

import csv
import json
from pathlib import Path

import pytest

from eval.text_until import default_stops, main, stopped_arms
from tests.toy import run_toy, toy_config
from tt_ray.compare import runs
from tt_ray.recipes import RECIPES
from tt_ray.schedules import build_schedule
from tt_ray.terminal.errors import UserError


def test_the_text_loss_has_its_weight_in_as_many_epochs_as_said(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__epochs=6)
    arms = stopped_arms(config, range(7))
    assert [arm.name for arm in arms] == [f"until{k}" for k in range(7)]
    for k, arm in enumerate(arms):
        text = arm.config.text
        weight = build_schedule(text.schedule, text.weight, 6)
        assert [weight(epoch) for epoch in range(6)] == [0.5] * k + [0.0] * (6 - k)


def test_the_recipe_is_one_of_them() -> None:
    arm = stopped_arms(RECIPES["shapes_textteacher"](), [4])[0]
    assert arm.config.text == RECIPES["shapes_text_until_4"]().text


def test_stops_are_within_the_epochs(tmp_path: Path) -> None:
    assert default_stops(14) == (0, 1, 3, 7, 10, 14) and default_stops(1) == (0, 1)
    with pytest.raises(UserError, match="--until 9 is not between 0 and the recipe's 2 epochs"):
        stopped_arms(toy_config(tmp_path), [0, 9])
    with pytest.raises(UserError, match="a --recipe with text"):
        stopped_arms(toy_config(tmp_path, "shapes_baseline"), [0])
    with pytest.raises(UserError, match="text.schedule is cos, which --until would replace: leave it const"):
        stopped_arms(toy_config(tmp_path, text__schedule="cos"), [0, 1])
    with pytest.raises(UserError, match="sets train.seed itself: choose --seeds"):
        main(["--set", "train.seed=3", "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runs, "_train", run_toy)
    toy_config(tmp_path).to_yaml(tmp_path / "toy.yaml")
    out = tmp_path / "out"
    main(["--recipe", str(tmp_path / "toy.yaml"), "--until", "0", "1", "2", "--seeds", "0", "1", "--out", str(out)])
    with (out / "text_until.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epochs_with_text"], row["seed"]) for row in rows] == [(k, s) for s in "01" for k in "012"]
    for row in rows:
        result = out / "runs" / f"until{row['epochs_with_text']}-2-{row['seed']}" / "result.json"
        assert float(row["top1"]) == json.loads(result.read_text())["top1"]
    assert (out / "text_until.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "| epochs with text, of 2 |" in shown and len([line for line in shown.splitlines() if "±" in line]) == 3
