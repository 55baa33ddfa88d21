"""Runs a search's trials on Ray Tune (Ray 2.60), as many at a time as the cluster holds, and keeps the journal."""

import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from tt_ray.cluster.actor_pool import places_on
from tt_ray.cluster.messages import Messages
from tt_ray.cluster.ray_errors import ENDED, own_words
from tt_ray.data.sources.base import Pixels
from tt_ray.terminal.errors import UserError
from tt_ray.training.tracker import tracker_environment
from tt_ray.tune.conditions import active, depth
from tt_ray.tune.journal import Journal, Record
from tt_ray.tune.space import METRICS, Space, Values, identity
from tt_ray.tune.trial import TrialPlan, run_trial

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the command has its own
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a failed trial has none
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the journal knows more
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_LOOK_S = 1.0
_PROPOSALS = 100
"""Proposals that have been tried already, in a row, after which Optuna has no others."""


@dataclass(frozen=True)
class TrialResources:
    """Resources of each trial."""

    workers: int
    cpus: int
    """CPUs of each worker."""
    gpus: float
    """GPUs of each worker; a fraction lets several trials of one worker share a GPU."""

    def bundles(self) -> tune.PlacementGroupFactory:
        """Resources that Tune reserves for a trial.

        Several workers are placed by Ray Train: what the trial itself reserved would be missing there, and trials that
        wait for their workers could fill the cluster for ever. A byte of memory stands for nothing.
        """
        if self.workers > 1:
            return tune.PlacementGroupFactory([{"memory": 1.0}])
        return tune.PlacementGroupFactory([{"CPU": float(self.cpus), **({"GPU": self.gpus} if self.gpus else {})}])

    def slots(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Number of trials that fit nodes with these resources at a time; raises UserError when none does."""
        places = places_on(nodes, self.cpus, self.gpus)
        if places < self.workers:
            cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
            each = f"{self.cpus} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            raise UserError(
                f"a trial needs {self.workers} x {each}, but the cluster has {cpus:g} CPUs and {gpus:g} GPUs: "
                "choose lower --workers-per-trial, --gpus-per-trial or --run.cpus_per_worker"
            )
        return places // self.workers


class Watch(Protocol):
    """Receives the progress of the search."""

    def began(self, record: Record) -> None: ...

    def changed(self, record: Record) -> None: ...

    def looked(self) -> None: ...


@dataclass(frozen=True)
class Trials:
    """A set of trials to run."""

    plan: TrialPlan
    resources: TrialResources
    concurrent: int
    max_failures: int
    """Deaths of a trial's process, such as with its node, after which the trial counts as failed."""
    pixels: Mapping[str, Pixels]
    """Images of the splits `train` and `val` where they are held in memory, for all trials."""
    folder: Path
    time_budget_s: float | None = None
    pulls: Messages | None = None
    """Hear what the trials pull from object storage."""


def run_trials(
    trials: Trials,
    jobs: "Sequence[Record] | Suggestions",
    scheduler: Any,
    journal: Journal,
    watch: Watch,
    stop: threading.Event,
) -> None:
    """Runs trials until all have ended, `stop` is set, or the time is up; unfinished ones can be resumed."""
    os.environ.update(_QUIET)
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    random.seed(0)  # population-based training draws from it
    suggestions = jobs if isinstance(jobs, Suggestions) else None
    names = [record.job() for record in jobs] if not isinstance(jobs, Suggestions) else []
    scratch = trials.folder / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(
            # These are kept as objects, which Ray shows nobody: the tracker's variables may hold keys.
            tune.with_parameters(
                run_trial,
                plan=trials.plan,
                pixels=trials.pixels,
                tracker=tracker_environment(trials.plan.base.run.logger),
                pulls=trials.pulls,
            ),
            trials.resources.bundles(),
        ),
        param_space={} if suggestions else {"job": tune.grid_search(names)},
        tune_config=tune.TuneConfig(
            num_samples=suggestions.count if suggestions else 1,
            max_concurrent_trials=None if trials.plan.hands_over else trials.concurrent,
            search_alg=suggestions,
            scheduler=scheduler,
            time_budget_s=trials.time_budget_s,
            # Starting a process and importing torch takes longer than many a trial's epoch. Processes of trials with
            # several workers end with them, and so free what Ray Train holds.
            reuse_actors=trials.resources.workers == 1,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            stop=_Stop(stop),
            callbacks=[_JournalCallback(journal, watch)],
            failure_config=tune.FailureConfig(max_failures=trials.max_failures),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Stop(tune.Stopper):
    """Ends the search when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.event.is_set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves it, and nothing reads it


class _JournalCallback(tune.Callback):
    """Writes events to the journal, and passes them on to the watch."""

    def __init__(self, journal: Journal, watch: Watch) -> None:
        self.journal, self.watch = journal, watch
        self._looked = 0.0

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.watch.began(self._record(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._record(trial)
        if "failed" in result:
            self.journal.end(record.name, "failed", result["failed"])
        elif "seeds" in result:
            names = (*METRICS, "epoch", "seeds", "seconds", "finished", "generation", "donor")
            row = {name: result[name] for name in names if name in result}
            self.journal.report(record.name, {**row, "values": trial.config["job"]["values"], "at": time.time()})
            if result["finished"]:
                self.journal.end(record.name, "done")
        self.watch.changed(self._record(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._record(trial)
        if not record.ended:
            self.journal.end(record.name, "stopped")
            self.watch.changed(record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        record = self._record(trial)
        error = trial.get_pickled_error() or trial.get_error()
        self.journal.end(record.name, "died", own_words(error) if error else ENDED)
        self.watch.changed(record)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            self._looked = now
            self.watch.looked()

    def _record(self, trial: Trial) -> Record:
        return self.journal.records[trial.config["job"]["name"]]

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Suggestions(Searcher):
    """Optuna's proposals as jobs: first those that an earlier command has left unfinished, then new ones.

    Optuna receives the results of all trials that have ended, those of earlier commands included. It is asked for a
    dimension only where the dimension does something, and never knows of a value that was not used: its sampler then
    learns about each dimension from the trials that had it. A configuration that it proposes again is not run again.
    """

    def __init__(self, space: Space, records: Sequence[Record], of: int, new: Callable[[Values], Record]) -> None:
        super().__init__(metric=space.metric, mode=space.mode)
        self.space, self.new = space, new
        self.left = [record for record in records if not record.ended]
        self.count = max(of - len(records), 0) + len(self.left)
        """Number of trials to run."""
        self.study, self.distributions = _optuna(space)
        self.known = {identity(record.values): record for record in records}
        self.running: dict[str, Record] = {}
        self.proposed: dict[str, Any] = {}
        """Optuna's trials, by Tune's ids, of the values that it has proposed in this command."""
        for record in records:
            if record.ended:
                self._tell(record)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self.left:
            record = self.left.pop(0)
        elif (values := self._propose(trial_id)) is None:
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's word, which its annotation forgets
        else:
            record = self.known[identity(values)] = self.new(values)
        self.running[trial_id] = record
        return {"job": record.job()}

    def _propose(self, trial_id: str) -> Values | None:
        """Values that have not been tried; None where Optuna proposes only ones that have."""
        order = sorted(self.space.domains, key=lambda path: depth(path, self.space.when))
        for _ in range(_PROPOSALS):
            trial, drawn = self.study.ask(), Values()
            for path in order:
                if active(path, drawn, self.space.when):
                    drawn[path] = _suggest(trial, path, self.distributions[path])
            values = {path: drawn[path] for path in self.space.domains if path in drawn}
            known = self.known.get(identity(values))
            if known is None:
                self.proposed[trial_id] = trial
                return values
            value = self._value(known) if known.ended else None
            self.study.tell(trial, value, None if value is not None else _state("FAIL"))
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        record = self.running.pop(trial_id, None)
        if record is None:
            return
        if trial_id not in self.proposed:
            self._tell(record)
            return
        failed = error or bool(result and "failed" in result)
        value = None if failed else self.space.comparable(result or {}).get(self.space.metric)
        # One that ended before its first report, without a failure, says nothing of its values either.
        self.study.tell(self.proposed[trial_id], value, None if value is not None else _state("FAIL"))

    def _value(self, record: Record) -> float | None:
        """What Optuna is told of a trial that has ended; None where it failed or never reported."""
        row = record.reports[-1] if record.reports and record.status != "failed" else {}
        return self.space.comparable(row).get(self.space.metric)

    def _tell(self, record: Record) -> None:
        from optuna.trial import create_trial

        value = self._value(record)
        known = {path: value for path, value in record.values.items() if path in self.distributions}
        state = _state("FAIL" if value is None else "COMPLETE")
        about = {path: self.distributions[path] for path in known}
        self.study.add_trial(create_trial(state=state, value=value, params=known, distributions=about))

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


def _optuna(space: Space) -> tuple[Any, dict[str, Any]]:
    """A study of Optuna's, and its distributions by path."""
    from ray.tune.search.optuna import OptunaSearch

    try:
        import optuna
    except ImportError:
        raise UserError("--searcher optuna needs the package optuna: pip install 'tt-ray[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = "maximize" if space.mode == "max" else "minimize"
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), direction=direction)
    return study, OptunaSearch.convert_search_space(dict(space.domains))


def _suggest(trial: Any, path: str, distribution: Any) -> Any:
    """Asks one of Optuna's trials for a value."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(path, distribution.choices)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(path, low, high, step=distribution.step, log=distribution.log)
    value = trial.suggest_float(path, low, high, step=distribution.step, log=distribution.log)
    # Four digits are as many as people read or type again.
    return value if distribution.step else min(max(float(f"{value:.4g}"), low), high)


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]
