"""What an experiment tracker gets of a run, and that no tracker holds a run up: both packages are played."""

import json
import os
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.command_here import Command
from tests.command_here import command as command
from tests.toy import run_toy, toy_config
from tt_ray.config import Config, RunConfig
from tt_ray.terminal.errors import UserError
from tt_ray.training import tracker
from tt_ray.training.metrics_log import read_rows, scalars
from tt_ray.training.tracker import Tracker, check_tracker, take_environment, tracker_environment

ROW = {"step": 4, "epoch": 0, "loss": 2.0, "lr": 0.5}
VALIDATION = {"step": 2, "epoch": 0, "top1": 50.0}


class Server:
    """What both services keep: runs by id, each its settings, scalars as (name, step, value), and how it has ended."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.starts = 0
        self.fails: set[str] = set()
        self.hangs = threading.Event()
        self.hangs.set()

    def reach(self, what: str) -> None:
        self.hangs.wait(30)
        if what in self.fails:
            raise ConnectionError(f"{what}: no route to host\nmore")

    def start(self, run: str, settings: dict[str, Any]) -> dict[str, Any]:
        self.reach("start")
        self.starts += 1
        return self.runs.setdefault(run, {"settings": settings, "scalars": [], "summary": {}, "end": ""})


def play_wandb(server: Server) -> dict[str, ModuleType]:
    """wandb, as far as it is used."""

    class Run:
        def __init__(self, kept: dict[str, Any]) -> None:
            self.kept, self.summary = kept, kept["summary"]

        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "step")

        def log(self, values: dict[str, float]) -> None:
            server.reach("log")
            self.kept["scalars"] += [(name, values["step"], v) for name, v in values.items() if name != "step"]

        def finish(self, exit_code: int) -> None:
            self.kept["end"] = "interrupted" if exit_code else "finished"

    def init(**given: Any) -> Run:
        assert given["resume"] == "allow" and Path(given["dir"]).is_dir() and given["name"] == "toy"
        flat = {f"{group}.{k}": v for group, fields in given["config"].items() for k, v in fields.items()}
        return Run(server.start(given["id"], {"project": given["project"], **flat}))

    return {"wandb": module("wandb", init=init, Settings=SimpleNamespace)}


def play_mlflow(server: Server) -> dict[str, ModuleType]:
    """mlflow, as far as it is used."""

    class Client:
        def __init__(self, uri: str | None) -> None:
            assert uri is None or uri.startswith("sqlite:////")

        def get_experiment_by_name(self, name: str) -> Any:
            self.project = name
            return None

        def create_experiment(self, name: str) -> str:
            return name

        def create_run(self, experiment: str, run_name: str) -> Any:
            assert run_name == "toy"
            name = str(len(server.runs))
            server.start(name, {"project": experiment})
            return SimpleNamespace(info=SimpleNamespace(run_id=name))

        def update_run(self, run: str, status: str) -> None:
            assert status == "RUNNING" and run in server.runs
            server.start(run, {})

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            server.reach("log")
            assert len(params) <= 100 and len(metrics) <= 1000
            kept = server.runs[run]
            for param in params:
                assert kept["settings"].setdefault(param.key, param.value) == param.value, "it cannot be changed"
            for each in metrics:
                if each.key.startswith("result/"):
                    kept["summary"][each.key.removeprefix("result/")] = each.value
                else:
                    kept["scalars"].append((each.key, each.step, each.value))

        def set_terminated(self, run: str, status: str) -> None:
            server.runs[run]["end"] = {"FINISHED": "finished", "KILLED": "interrupted"}[status]

    def param(key: str, value: str) -> Any:
        return SimpleNamespace(key=key, value=value)

    def metric(key: str, value: float, timestamp: int, step: int) -> Any:
        return SimpleNamespace(key=key, value=value, step=step)

    entities = module("mlflow.entities", Param=param, Metric=metric)
    top = module("mlflow", entities=entities, MlflowClient=Client, is_tracking_uri_set=lambda: False)
    return {"mlflow": top, "mlflow.entities": entities}


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(contents)
    return made


@pytest.fixture(params=["wandb", "mlflow"])
def logger(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(logger: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The service of `logger`, whose package is there."""
    running = Server()
    for name, played in (play_wandb if logger == "wandb" else play_mlflow)(running).items():
        monkeypatch.setitem(sys.modules, name, played)
    return running


@pytest.fixture
def config(logger: str, tmp_path: Path) -> Config:
    made = Config(run=RunConfig(name="toy", storage=str(tmp_path), logger=logger))  # type: ignore[arg-type]
    made.run_dir.mkdir()
    return made


def log(config: Config, summary: dict[str, float] | None = None) -> Tracker:
    with Tracker(config) as running:
        running.show(ROW)
        running.show(VALIDATION)
        if summary is not None:
            running.summarise(summary)
    return running


def test_it_gets_settings_scalars_by_tensorboard_s_names_and_the_result(server: Server, config: Config) -> None:
    assert log(config, {"top1": 50.0}).problem == ""
    (run,) = server.runs.values()
    assert run["settings"]["project"] == "tt-ray" and str(run["settings"]["optim.lr"]) == "0.001"
    assert run["scalars"] == [("loss/total", 4, 2.0), ("optim/lr", 4, 0.5), ("val/top1", 2, 50.0)]
    assert run["summary"] == {"top1": 50.0} and run["end"] == "finished"


def test_a_run_that_goes_on_does_so_there_too(server: Server, config: Config) -> None:
    log(config)
    (run,) = server.runs.values()
    assert run["end"] == "interrupted"
    assert log(config.override("optim.lr", 0.5).override("run.num_workers", 2), {"top1": 1.0}).problem == ""
    assert len(server.runs) == 1 and server.starts == 2 and run["end"] == "finished" and len(run["scalars"]) == 6


def test_the_project_is_that_of_the_environment(
    server: Server, config: Config, logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}[logger]
    monkeypatch.setenv(variable, "pets")
    log(config)
    assert next(iter(server.runs.values()))["settings"]["project"] == "pets"
    found = tracker_environment("wandb")
    assert found[variable] == "pets" and "PATH" not in found and tracker_environment("none") == {}
    monkeypatch.setenv(variable, "of this machine")
    take_environment({variable: "pets", "MLFLOW_OTHER": "1"})
    assert os.environ[variable] == "of this machine" and os.environ.pop("MLFLOW_OTHER") == "1"


@pytest.mark.parametrize("what", ["start", "log"])
def test_a_tracker_that_fails_costs_a_sentence(what: str, server: Server, config: Config, logger: str) -> None:
    server.fails = {what}
    problem = log(config, {"top1": 50.0}).problem
    assert problem == f"{logger} lacks some or all of this run: {what}: no route to host"


def test_a_tracker_that_hangs_is_left(server: Server, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "_LAST_WAIT_S", 0.1)
    server.hangs.clear()
    assert "it does not answer" in log(config, {"top1": 50.0}).problem
    server.hangs.set()


def test_a_package_that_is_missing_is_one_line(logger: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    for act in (lambda: check_tracker(logger), lambda: Tracker(config)):
        with pytest.raises(UserError, match=rf"run\.logger {logger} .* pip install 'tt-ray\[{logger}\]'"):
            act()


def test_it_is_missed_before_anything_is_written(
    logger: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    assert f"pip install 'tt-ray[{logger}]'" in command.mistake([*command.baseline, "--run.logger", logger])


def test_without_a_logger_nothing_is_done(tmp_path: Path) -> None:
    threads = threading.active_count()
    with Tracker(Config(run=RunConfig(name="toy", storage=str(tmp_path)))) as running:
        running.show(ROW)
        assert threading.active_count() == threads
    assert not list(tmp_path.iterdir())


def test_a_real_run_is_tracked_and_a_dead_tracker_changes_nothing(
    server: Server, logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, run__logger=logger, train__epochs=1, data__shapes__train_size=16)
    result = run_toy(config)
    (run,) = server.runs.values()
    rows = read_rows(config.run_dir / "metrics.jsonl")
    shown = [row for row in rows if row["kind"] == "validation" or "images_per_s" in row]
    assert run["scalars"] == [(tag, row["step"], value) for row in shown for tag, value in scalars(row).items()]
    assert run["summary"]["top1"] == result["top1"] and run["end"] == "finished"
    assert not any(logger in note for note in result["notes"])
    server.fails = {"start"}
    again = run_toy(config.override("run.storage", str(tmp_path / "again")))
    assert again["top1"] == result["top1"] and "no route to host" in again["notes"][-1]
    assert json.loads((config.run_dir / "tracker.json").read_text()).keys() == {logger}
