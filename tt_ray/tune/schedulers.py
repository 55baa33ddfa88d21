"""The schedulers of a search: ASHA and population-based training as Ray Tune has them, made to go on after a crash."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
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
        space: Its own options are for its own scheduler.
        scheduler: The one that the search has.
        epochs: Of a trial.
    """
    if scheduler not in SCHEDULERS:
        raise UserError(f"no scheduler {scheduler!r}; {nearest(scheduler, SCHEDULERS)}")
    options = {**SCHEDULERS[scheduler], **(space.options if scheduler == space.scheduler else {})}
    if scheduler == "asha":
        options["grace_period"] = min(options["grace_period"], epochs)
    fixed = [path for path in space.domains if scheduler == "pbt" and not path.startswith(_MUTABLE)]
    if fixed:
        raise UserError(f"--scheduler pbt cannot change {', '.join(fixed)} within a training: give fifo or asha")
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


def build_scheduler(space: Space, scheduler: str, options: dict[str, Any], epochs: int, past: Sequence[Record]) -> Any:
    """For Ray Tune; `past` are trials of an earlier command."""
    common: dict[str, Any] = {"time_attr": "epoch", "metric": space.metric, "mode": space.mode}
    if scheduler == "asha":
        # max_t is beyond the end: it would end trials before their export.
        asha = _Halving(space, **common, max_t=epochs, stop_last_trials=False, **options)
        asha.replay(past)
        return asha
    if scheduler == "pbt":
        return _Population(space, options, common)
    return FIFOScheduler()


class _Halving(ASHAScheduler):
    """Knows trials by the names that they keep from one command to the next, and lets NaN lose."""

    def __init__(self, space: Space, **settings: Any) -> None:
        super().__init__(**settings)
        self.space = space

    def replay(self, past: Sequence[Record]) -> None:
        """Fills the rungs as the earlier command had filled them."""
        controller = cast(Any, None)
        for record in past:
            trial = cast(Trial, SimpleNamespace(config={"job": {"name": record.name}}))
            self.on_trial_add(controller, trial)
            for row in sorted(record.reports, key=lambda row: row["epoch"]):
                self.on_trial_result(controller, trial, row)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return super().on_trial_result(tune_controller, _named(trial), self.space.comparable(result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _named(trial), self.space.comparable(result))

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Trial) -> Trial:
    """All that ASHA asks of a trial."""
    return cast(Trial, SimpleNamespace(trial_id=trial.config["job"]["name"]))


class _Population(PopulationBasedTraining):
    """Keeps values inside their domains, and every trial its own name and place; lets NaN lose."""

    def __init__(self, space: Space, options: Mapping[str, Any], common: dict[str, Any]) -> None:
        self.space = space
        lists = {path: _mutation(domain) for path, domain in space.domains.items()}
        super().__init__(
            **common,
            perturbation_interval=options["interval"],
            quantile_fraction=options["quantile"],
            hyperparam_mutations={"job": {"values": lists}},
            log_config=False,
            require_attrs=False,
        )

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result.get("finished"):  # going on from another's checkpoint would cost it its own end, for no step more
            return self.CONTINUE
        return super().on_trial_result(tune_controller, trial, self.space.comparable(result))

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        new, operations = super()._get_new_config(trial, trial_to_clone)
        values = {path: _inside(self.space.domains[path], value) for path, value in new["job"]["values"].items()}
        new["job"] = {**trial.config["job"], "values": values}
        return new, operations


def _mutation(domain: Domain) -> Any:
    return list(domain.categories) if isinstance(domain, Categorical) else domain


def _inside(domain: Any, value: Any) -> Any:
    """Perturbing multiplies: the result may lie outside."""
    if isinstance(domain, Categorical) or not math.isfinite(domain.lower + domain.upper):
        return value
    inside = min(max(value, domain.lower), domain.upper)
    return int(inside) if isinstance(value, int) else float(f"{inside:.4g}")
