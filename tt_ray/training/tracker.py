"""The same scalars for an experiment tracker, Weights & Biases or MLflow (run.logger), without waiting for it."""

import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, Protocol, Self

from tt_ray.config import Config
from tt_ray.io.files import new_file
from tt_ray.io.storage import Storage
from tt_ray.terminal.errors import UserError, first_line

_PROJECT = "tt-ray"
_IDS = "tracker.json"
_LAST_WAIT_S, _SHORT_WAIT_S = 30.0, 10.0
"""How long the end of a training waits for a tracker, and how long one that is interrupted."""
_ENVIRONMENT = ("WANDB_", "MLFLOW_")
_LONGEST_PARAM, _MOST_PARAMS = 500, 100
"""Characters of a value, and values of a message, that every MLflow server takes."""


def check_tracker(logger: str) -> None:
    """Raises UserError when the package that run.logger names is not installed here."""
    if logger != "none" and find_spec(logger) is None:
        raise UserError(
            f"run.logger {logger} needs the package {logger}, which is not installed: pip install 'tt-ray[{logger}]'"
        )


def tracker_environment(logger: str) -> dict[str, str]:
    """The environment variables that say where and as whom trackers' packages log, for processes elsewhere.

    They may hold keys: none where nothing is tracked.
    """
    if logger == "none":
        return {}
    return {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}


def take_environment(variables: Mapping[str, str]) -> None:
    """Sets what `tracker_environment` has found elsewhere; what a process has of its own stays."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


class Service(Protocol):
    """A run of a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds scalars by their names."""

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the run: with its figures, or, interrupted, without."""


class Tracker:
    """Hands rows to the tracker in a thread of its own: what is slow or away costs a warning, never the training."""

    problem = ""
    """What the tracker has not taken, once something has failed; a sentence for the summary."""

    def __init__(self, config: Config) -> None:
        check_tracker(config.run.logger)
        self._config = config
        self._summary: Mapping[str, Any] | None = None
        self._rows: SimpleQueue[Mapping[str, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
        self._on = config.run.logger != "none"

    def show(self, row: Mapping[str, Any]) -> None:
        """Takes a row of metrics.jsonl; returns at once."""
        if self._on:
            self._rows.put(row)

    def summarise(self, figures: Mapping[str, Any]) -> None:
        """What the run has come to; without it, it counts as interrupted."""
        self._summary = figures

    def __enter__(self) -> Self:
        if self._on:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._on:
            return
        self._rows.put(None)
        self._thread.join(_LAST_WAIT_S if self._summary is not None else _SHORT_WAIT_S)
        if self._thread.is_alive():
            self._failed("it does not answer")

    def _work(self) -> None:
        from tt_ray.training.metrics_log import scalars  # brings torch

        open_service = {"wandb": Wandb, "mlflow": Mlflow}[self._config.run.logger]
        try:
            service: Service = open_service(self._config)
        except BaseException as error:
            self._failed(first_line(error))
            return
        while (row := self._rows.get()) is not None:
            try:
                service.log(scalars(row), row["step"])
            except Exception as error:  # the next row may pass again
                self._failed(first_line(error))
        try:
            service.end(self._summary)
        except Exception as error:
            self._failed(first_line(error))

    def _failed(self, cause: str) -> None:
        self.problem = self.problem or f"{self._config.run.logger} lacks some or all of this run: {cause}"


class Wandb:
    """A run of Weights & Biases; project and account are those of its environment variables and login."""

    def __init__(self, config: Config) -> None:
        import wandb  # type: ignore[import-not-found]  # of an extra

        name = read_ids(config).get("wandb") or secrets.token_hex(4)
        keep_id(config, name)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=name,
            resume="allow",
            name=config.run.name,
            config=config.to_dict(),
            allow_val_change=True,
            dir=str(config.run_dir),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        # An axis of our own: of wandb's own steps none may be logged again, as a run that goes on does.
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds scalars by their names."""
        self.run.log({**values, "step": step})

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the run; one without a summary as failed."""
        self.run.summary.update(dict(summary or {}))
        self.run.finish(exit_code=int(summary is None))


class Mlflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in mlflow.db in run.storage."""

    def __init__(self, config: Config) -> None:
        import mlflow  # type: ignore[import-not-found]  # of an extra
        from mlflow.entities import Param  # type: ignore[import-not-found]

        place = None if mlflow.is_tracking_uri_set() else f"sqlite:///{config.run_dir.parent}/mlflow.db"
        self.client = mlflow.MlflowClient(place)
        self.id = read_ids(config).get("mlflow", "")
        if self.id:
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.id = self.client.create_run(experiment, run_name=config.run.name).info.run_id
        keep_id(config, self.id)
        params = [Param(path, str(config.get(path))[:_LONGEST_PARAM]) for path in Config.paths()]
        for start in range(0, len(params), _MOST_PARAMS):
            self.client.log_batch(self.id, params=params[start : start + _MOST_PARAMS])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds scalars by their names."""
        from mlflow.entities import Metric  # type: ignore[import-not-found]

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the run; one without a summary as killed."""
        self.log({f"result/{name}": value for name, value in (summary or {}).items()}, 0)
        self.client.set_terminated(self.id, "KILLED" if summary is None else "FINISHED")


def read_ids(config: Config) -> dict[str, str]:
    """The names that trackers have given the run in this folder, so that it goes on there under the same."""
    path = config.run_dir / _IDS
    return json.loads(path.read_text()) if path.exists() else {}


def keep_id(config: Config, name: str) -> None:
    """Keeps the tracker's name of the run in its folder."""
    path = config.run_dir / _IDS
    names = {**read_ids(config), config.run.logger: name}
    with new_file(path) as partial:
        partial.write_text(json.dumps(names))
    Storage.open(config.run.storage).push(path)
