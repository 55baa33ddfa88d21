"""The schedulers on Ray Tune's own trials, without its controller: what they decide on a report."""

import random
from typing import Any, cast

import pytest
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from tt_ray.tune.schedulers import search_scheduler
from tt_ray.tune.space import Space

SPACE = Space("mine", "?", {"text.weight": tune.uniform(0, 1)}, "top1")


class Controller:
    """Remembers who has been paused, to go on from another's checkpoint."""

    search_alg = None

    def __init__(self, *trials: Trial) -> None:
        self.trials = trials
        self.paused: list[Trial] = []

    def get_trials(self) -> tuple[Trial, ...]:
        return self.trials

    def pause_trial(self, trial: Trial, should_checkpoint: bool) -> None:
        self.paused.append(trial)

    def _schedule_trial_save(self, trial: Trial, result: dict[str, Any]) -> str:
        return f"checkpoint of {trial.trial_id}"


def trial(name: str) -> Trial:
    found = Trial("trainable", stub=True, trial_id=name)
    found.config = {"job": {"name": name, "values": {"text.weight": 0.5}}}
    found.status = Trial.RUNNING
    return found


@pytest.mark.parametrize("finished", [False, True])
def test_a_trial_at_its_end_keeps_it_though_it_is_the_worst(finished: bool) -> None:
    good, bad = trial("good"), trial("bad")
    controller = Controller(good, bad)
    scheduler = search_scheduler(SPACE, "pbt", {"interval": 1, "quantile": 0.5}, 4, [])
    for each in (bad, good):
        scheduler.on_trial_add(controller, each)
    for each, top1, epoch in ((bad, 1.0, 1), (good, 3.0, 1), (good, 3.0, 2)):
        scheduler.on_trial_result(controller, each, {"epoch": epoch, "top1": top1, "finished": False})
    assert not controller.paused
    before = bad.config
    scheduler.on_trial_result(controller, bad, {"epoch": 4, "top1": 1.0, "finished": finished})
    assert controller.paused == ([] if finished else [bad])
    assert (bad.config is before) == finished
    assert bad.config["job"]["name"] == "bad", "it keeps its own folder, with another's weights"
    assert 0 <= bad.config["job"]["values"]["text.weight"] <= 1 and good.config["job"]["values"] == {"text.weight": 0.5}


@pytest.mark.parametrize("epochs", [1, 3, 9, 20])
@pytest.mark.parametrize(("grace", "factor"), [(1, 3), (2, 2.5), (1, 4)])
def test_asha_decides_as_ray_tune_s_own_does(epochs: int, grace: int, factor: float) -> None:
    draws, grace = random.Random(epochs), min(grace, epochs)
    own = search_scheduler(SPACE, "asha", {"grace_period": grace, "reduction_factor": factor}, epochs, [])
    rays = ASHAScheduler("epoch", "top1", "max", epochs, grace, factor, stop_last_trials=False)
    trials = {f"t{number}": trial(f"t{number}") for number in range(30)}
    decided: list[str] = []
    for each in trials.values():
        own.on_trial_add(Controller(), each)
        rays.on_trial_add(cast(Any, Controller()), each)
    reached = dict.fromkeys(trials, 0)
    while reached:
        name = draws.choice(sorted(reached))
        reached[name] += 1
        row = {"epoch": reached[name], "top1": draws.random()}
        decided.append(own.on_trial_result(Controller(), trials[name], row))
        assert decided[-1] == rays.on_trial_result(cast(Any, Controller()), trials[name], row)
        if decided[-1] == "STOP" or reached[name] == epochs:
            del reached[name]
    assert "STOP" in decided
