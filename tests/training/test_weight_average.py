"""A run too short for its average of weights says so, with the share of the initial ones; it exports what was asked."""

from pathlib import Path

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

from tests.command_here import Command, without_ray
from tests.command_here import command as command
from tests.toy import run_toy, toy_config
from tt_ray.training.run_folder import read_result
from tt_ray.training.weight_average import average_note, initial_share


@pytest.mark.parametrize(("decay", "steps"), [(0.9999, 700), (0.5, 3), (0.99, 1), (0.0, 5)])
def test_the_share_is_that_of_timms_average(decay: float, steps: int) -> None:
    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.ones_(model.weight)
    average = ModelEmaV3(model, decay=decay)
    torch.nn.init.zeros_(model.weight)
    for _ in range(steps):
        average.update(model)
    assert initial_share(decay, steps) == pytest.approx(float(average.module.weight.detach()))


@pytest.mark.parametrize(
    ("decay", "steps", "share"),
    [(0.9999, 700, "93.2 %"), (0.999, 4000, "1.83 %"), (0.999, 4700, ""), (0.5, 8, ""), (0.0, 1, "")],
)
def test_a_note_tells_the_share_and_what_to_give_instead(decay: float, steps: int, share: str) -> None:
    note = average_note(decay, steps)
    assert bool(note) == bool(share)
    if share:
        assert f"train.ema {decay:g} over {steps} steps: {share} of the averaged weights" in note
        advised = float(note.partition("set --train.ema ")[2].split()[0])
        assert initial_share(advised, steps) <= 0.01 and not average_note(advised, steps)


def test_the_result_of_a_run_says_it(tmp_path: Path) -> None:
    steps = 2 * (48 // 8)
    for ema, told in ((0.999, True), (0.5, False), (0.0, False)):
        config = toy_config(tmp_path, "shapes_baseline", train__ema=ema, run__name=f"toy{ema}")
        run_toy(config)
        notes = read_result(config.run_dir)["notes"]
        assert [note for note in notes if "train.ema" in note] == ([average_note(ema, steps)] if told else [])


def test_the_command_says_it_at_the_start_and_in_the_summary(command: Command) -> None:
    without_ray(command)
    told = "note: train.ema 0.9999 over 3 steps: 100 % of the averaged weights"
    code, out, err = command.run([*command.baseline, "--train.epochs", "1", "--train.ema", "0.9999"])
    assert code == 0 and err.startswith(told) and told in out
    code, out, err = command.run([*command.baseline, "--train.epochs", "1", "--run.name", "other"])
    assert code == 0 and "train.ema" not in out + err
