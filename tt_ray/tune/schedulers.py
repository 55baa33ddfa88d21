"""The schedulers of a search: ASHA, which remembers earlier commands, and Ray Tune's population-based training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining
from ray.tune.search.sample import Categorical, Domain

from tt_ray.terminal.errors import UserError, nearest
from tt_ray.tune.journal import Record
from tt_ray.tune.space import SCHEDULERS, Space

# A checkpoint fixes everything else: shapes of weights, the optimiser's own settings, what the data are.
_MUTABLE = ("text.weight", "text.balance", "text.schedule", "text.negatives", "optim.lr", "optim.min_lr")
_MUTABLE += ("optim.label_smoothing", "optim.grad_clip", "data.mixup", "data.cutmix", "data.color_jitter")


def options_of(space: Space, scheduler: str, epochs: int) -> dict[str, Any]:
    """The scheduler's options; raises UserError on an unknown scheduler, and where PBT cannot change a path.

    Args:
        space: The search space; its options are for its own scheduler.
        scheduler: Name of the search's scheduler.
        epochs: Epochs of a trial.
    """
    if scheduler not in SCHEDULERS:
        raise UserError(f"no scheduler {scheduler!r}; {nearest(scheduler, SCHEDULERS)}")
    options = {**SCHEDULERS[scheduler], **(space.options if scheduler == space.scheduler else {})}
    if scheduler == "asha":
        options["grace_period"] = min(options["grace_period"], epochs)
    fixed = [path for path in space.domains if scheduler == "pbt" and not path.startswith(_MUTABLE)]
    if fixed:
        raise UserError(f"--scheduler pbt cannot change {', '.join(fixed)} within a training: choose fifo or asha")
    if scheduler == "pbt" and space.when:
        raise UserError("--scheduler pbt changes all values at any time, whatever WHEN says: choose fifo or asha")
    return options


def meetings(scheduler: str, options: Mapping[str, Any], epochs: int) -> tuple[int, ...]:
    """Epochs at which the scheduler compares trials, and the last one."""
    found = {epochs}
    if scheduler == "asha":
        rung = options["grace_period"]
        while rung < epochs:
            found.add(round(rung))
            rung *= options["reduction_factor"]
    if scheduler == "pbt":
        found |= set(range(options["interval"], epochs, options["interval"]))
    return tuple(sorted(found))


def search_scheduler(space: Space, scheduler: str, options: dict[str, Any], epochs: int, past: Sequence[Record]) -> Any:
    """The scheduler for Ray Tune; `past` are the trials of earlier commands."""
    if scheduler == "asha":
        asha = _Halving(space, options, epochs)
        asha.replay(past)
        return asha
    return _Population(space, options) if scheduler == "pbt" else FIFOScheduler()


class _Halving(FIFOScheduler):
    """Asynchronous successive halving (ASHA; Li et al. 2020, arXiv 1810.05934).

    A trial that reaches a rung is ended unless it is among the best 1 / `reduction_factor` of those that have reached
    it before. Trials are known by their names, which stay the same from one command to the next; NaN loses.
    """

    def __init__(self, space: Space, options: Mapping[str, Any], epochs: int) -> None:
        super().__init__()
        self.space = space
        self.losers = 100 * (1 - 1 / options["reduction_factor"])
        self.rungs: list[tuple[float, dict[str, float]]] = []
        """Epochs of each rung, the highest first, and the values that trials had there, by name."""
        rung = options["grace_period"]
        while rung <= epochs:
            self.rungs.insert(0, (rung, {}))
            rung *= options["reduction_factor"]

    def replay(self, past: Sequence[Record]) -> None:
        """Fills the rungs with what trials of an earlier command had reached."""
        for record in past:
            for row in sorted(record.reports, key=lambda row: row["epoch"]):
                self._survives(record.name, row)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return self.CONTINUE if self._survives(trial.config["job"]["name"], result) else self.STOP

    def _survives(self, name: str, row: Mapping[str, Any]) -> bool:
        value = row.get(self.space.metric)
        reached = next((found for epochs, found in self.rungs if row["epoch"] >= epochs), None)
        if value is None or reached is None or name in reached:  # it is judged once at each rung
            return True
        merit = self.space.better(value)
        lost = bool(reached) and merit < np.percentile(list(reached.values()), self.losers)
        reached[name] = merit
        return not lost


class _Population(PopulationBasedTraining):
    """Keeps values inside their domains, and every trial its own name and place; lets NaN lose."""

    def __init__(self, space: Space, options: Mapping[str, Any]) -> None:
        self.space = space
        self.job: dict[str, Any] = {}
        """Job of the trial that has just reported."""
        lists = {path: _mutation(domain) for path, domain in space.domains.items()}
        super().__init__(
            time_attr="epoch",
            metric=space.metric,
            mode=space.mode,
            custom_explore_fn=self._explore,
            perturbation_interval=options["interval"],
            quantile_fraction=options["quantile"],
            hyperparam_mutations={"job": {"values": lists}},
            log_config=False,
            require_attrs=False,
        )

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("finished"):  # continuing from another's checkpoint would undo its end, for no step more
            return self.CONTINUE
        self.job = trial.config["job"]
        return super().on_trial_result(tune_controller, trial, self.space.comparable(result))

    def _explore(self, perturbed: dict[str, Any]) -> dict[str, Any]:
        """The configuration with which the trial that has just reported continues from another one's checkpoint."""
        values = perturbed["job"]["values"]
        inside = {path: _inside(self.space.domains[path], value) for path, value in values.items()}
        return {"job": {**self.job, "values": inside}}


def _mutation(domain: Domain) -> Any:
    return list(domain.categories) if isinstance(domain, Categorical) else domain


def _inside(domain: Any, value: Any) -> Any:
    """Perturbing multiplies: the result may lie outside."""
    if isinstance(domain, Categorical) or not math.isfinite(domain.lower + domain.upper):
        return value
    inside = min(max(value, domain.lower), domain.upper)
    return int(inside) if isinstance(value, int) else float(f"{inside:.4g}")
