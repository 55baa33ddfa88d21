"""Time per epoch of each arm over the baseline's, and the epochs that fit into the baseline's time."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tt_ray.compare.arms import Arm
from tt_ray.compare.table import FinishedRun
from tt_ray.io.files import new_file

_STEADY = 0.1
"""Difference of a time per epoch, as a ratio to the baseline's, that seeds may make."""


def ratios_of_runs(runs: Sequence[FinishedRun]) -> dict[str, list[float]]:
    """Each arm's time per epoch over the baseline's, by arm: of the two runs of each seed."""
    baseline = {run.seed: run.epoch_seconds for run in runs if run.arm == runs[0].arm}
    arms = dict.fromkeys(run.arm for run in runs)
    return {arm: [run.epoch_seconds / baseline[run.seed] for run in runs if run.arm == arm] for arm in arms}


def ratios_of_turns(arms: Sequence[Arm], out: Path, rounds: int, runs: Sequence[FinishedRun]) -> dict[str, list[float]]:
    """The same, of the two readings of each round in which the arms take turns; kept in OUT/times.json.

    `runs`, all of the same epochs, know how many steps an epoch of each arm has.
    """
    from tt_ray.compare.step_times import step_times

    file, names = out / "times.json", [arm.name for arm in arms]
    seconds: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
    if list(seconds) != names or len(seconds[names[0]]) != rounds:
        print(f"measuring steps in {rounds} rounds", file=sys.stderr, flush=True)
        # Stores of embeddings are those of the runs.
        configs = {arm.name: arm.config.override("run.storage", str(out / "runs")) for arm in arms}
        seconds = step_times(configs, rounds)
        with new_file(file) as partial:
            partial.write_text(json.dumps(seconds))
    first, steps = seconds[names[0]], {run.arm: run.steps for run in runs}
    more = {arm: steps[arm] / steps[names[0]] for arm in names}
    return {arm: [more[arm] * a / b for a, b in zip(own, first, strict=True)] for arm, own in seconds.items()}


def epochs_in_time(epochs: int, relative: float) -> int:
    """Whole epochs, each `relative` times as long as the baseline's, that fit into its `epochs`; at least 1."""
    return max(1, int(epochs / relative + 1e-9))


def unsteady(times: Mapping[str, Sequence[float]]) -> list[str]:
    """Advice where times per epoch differ more from seed to seed than a teacher's cost may."""
    widest = max(max(ratios) - min(ratios) for ratios in times.values())
    if widest < _STEADY:
        return []
    return [f"Times per epoch differ by up to {widest:.2f} from seed to seed: --interleave 40 measures them in turns."]
