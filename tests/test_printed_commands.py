"""What commands print to be typed next works as typed, whatever the folders are called."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import timm

import eval.__main__ as eval_command
from eval import evaluate
from eval.jobs.evaluation import Evaluation
from tests.command_here import Command, without_ray
from tests.command_here import command as command
from tt_ray.cli import read_config
from tt_ray.export import main as export
from tt_ray.models.pretrained import pretrained
from tt_ray.terminal.errors import UserError
from tt_ray.tune.journal import Journal
from tt_ray.tune.results import write_results
from tt_ray.tune.space import find_space

NAMES = ["my run's", 'a "b" $HOME', "[v2] & (c); d\\e", "plain"]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def typed(text: str, start: str) -> list[str]:
    """The words that a shell makes of the printed command that begins with `start`."""
    line = next(line[line.index(start) :] for line in text.splitlines() if start in line)
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == shlex.split(line)
    return shlex.split(line)


def built(text: str) -> object:
    """What the printed Python makes."""
    call = re.search(r"timm\.create_model\(.*\)", text)
    assert call is not None
    return eval(call[0], {"timm": timm})


def test_those_of_a_training_and_an_export(
    name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(command)
    monkeypatch.chdir(tmp_path)
    code, text, _ = command.run([*command.baseline, "--train.epochs", "1", "--run.name", name])
    assert code == 0
    run = f"runs/{name}"
    assert built(text) is not None
    assert typed(text, "tensorboard --logdir") == ["tensorboard", "--logdir", f"{run}/tensorboard"]
    words = typed(text, "python -m tt_ray.export")
    assert words == ["python", "-m", "tt_ray.export", run, "--out", "DIR"] and Path(words[3]).is_dir()
    export([run, "--out", f"{name}.out"])
    assert built(command.capsys.readouterr().out) is not None


def test_that_of_a_search(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    out.mkdir()
    journal = Journal(out)
    journal.add("t000", "search", {"text.weight": 0.75}, [0])
    row = {"top1": 5.0, "seeds": {"0": {"top1": 5.0}}, "epoch": 1, "generation": 0, "at": 0.0, "seconds": 1.0}
    journal.report("t000", {**row, "values": {"text.weight": 0.75}})
    base = read_config(["shapes_textteacher"], "prog")
    text = write_results(out, find_space("pbt_weight"), base, journal, journal.records["t000"], [])
    words = typed(text, "python -m tt_ray.train")
    assert words == ["python", "-m", "tt_ray.train", str(out / "best.yaml")]
    assert read_config(words[3:], "prog").text.weight == 0.75


def test_that_of_an_evaluation(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "open_evaluation", lambda given: Evaluation([], {}, {}))
    eval_command.main(["--models", "a=random:test_resnet", "--out", str(tmp_path / name)])
    words = typed(capsys.readouterr().out, "python -m eval.report")
    assert words == ["python", "-m", "eval.report", str(tmp_path / name)]


def test_that_of_weights_that_are_to_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        pretrained("resnet18.a1_in1k")
    line = str(error.value).partition("; on a machine with network run: ")[2].partition(" and share")[0]
    assert shlex.split(line)[:2] == ["python", "-c"]
    assert "timm.create_model('resnet18.a1_in1k', pretrained=True)" in shlex.split(line)[2]
