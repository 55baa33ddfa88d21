"""What a comparison says in words, and that it says no more than its numbers."""

import re
from collections.abc import Sequence

import numpy as np
import pytest

from tt_ray.compare.claims import claims
from tt_ray.compare.table import FinishedRun, Line, summarise


def table(arms: dict[str, Sequence[float]], transfer: dict[str, Sequence[float]] | None = None) -> list[Line]:
    """Top-1 by arm, one a seed."""
    seeds = range(len(next(iter(arms.values()))))
    runs = [FinishedRun(arm, seed, 10, 20, arms[arm][seed], 1.0, 9.0, "") for seed in seeds for arm in arms]
    times = {arm: [1.0] * len(seeds) for arm in arms}
    probes = {(arm, seed): value for arm, values in (transfer or {}).items() for seed, value in enumerate(values)}
    return summarise(runs, [], times, dict.fromkeys(arms, 10), probes)


BASE = [50.0, 51.0, 49.0, 50.5, 49.5]
GAINS = [1.2, 0.4, 2.1, 1.3, 1.0]


def with_gains(*gains: Sequence[float]) -> dict[str, Sequence[float]]:
    arms = {f"arm{number}": [b + g for b, g in zip(BASE, own, strict=False)] for number, own in enumerate(gains)}
    return {"base": BASE[: len(gains[0])], **arms}


def test_a_gain_is_said_with_its_interval() -> None:
    assert claims(table(with_gains(GAINS)), {}) == [
        "arm0 gains 1.2 points of top-1 after the same epochs (95 % interval +0.4 to +2.0 over 5 seeds; p = 0.012)."
    ]
    (lost,) = claims(table(with_gains([-each for each in GAINS])), {})
    assert lost.startswith("arm0 loses 1.2 points of top-1 after the same epochs (95 % interval -2.0 to -0.4")


def test_no_difference_can_be_claimed_where_the_interval_includes_0() -> None:
    (said,) = claims(table(with_gains([1.2, -0.4, 2.1, -1.3, 1.0])), {})
    assert said.startswith(
        "No difference between arm0 and base in top-1 after the same epochs can be claimed: +0.5 points"
    )
    assert said.endswith("over 5 seeds includes 0.")


def test_many_arms_need_more() -> None:
    """An interval that excludes 0 by itself, and one among five arms of which the others are noise."""
    alone = [1.2, 0.1, 2.5, 0.6, 1.8]
    noise = [[1.0, -1.0, 0.5, -0.5, 0.1 * number] for number in range(4)]
    assert "gains" in claims(table(with_gains(alone)), {})[0]
    said = claims(table(with_gains(alone, *noise)), {})
    assert not any("gains" in each or "loses" in each for each in said)
    assert "excludes 0, but not when all arms are counted (p = " in said[0] and "for 5 arms" in said[0]


def test_one_seed_says_nothing_about_seeds() -> None:
    said = claims(table(with_gains([1.2])), {})
    assert said[0] == (
        "arm0, top-1 after the same epochs: +1.2 points to base with one seed; nothing can be said about other seeds."
    )
    assert said[1] == "A claim needs at least 5 seeds; each arm's one seed has been trained: pass more --seeds."


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_few_seeds_are_told(seeds: int) -> None:
    said = claims(table(with_gains(GAINS[:seeds])), {})
    assert f"each arm's {seeds} seeds have been trained" in said[-1]


def test_transfer_has_an_interval_over_images_too() -> None:
    lines = table(with_gains(GAINS), {"base": BASE, "arm0": [each + 3 + 0.1 * each % 1 for each in BASE]})
    said = claims(lines, {"arm0": (1.25, 4.75)})
    assert len(said) == 2 and "points of transfer (95 % interval" in said[1]
    assert said[1].endswith("Over test images and seeds (bootstrap): +1.2 to +4.8.")
    assert "bootstrap" not in said[0]


def test_among_arms_that_are_alike_hardly_one_is_claimed() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        base = rng.normal(70, 1, 5)
        arms = {"base": base.tolist()} | {f"arm{number}": rng.normal(70, 1, 5).tolist() for number in range(4)}
        said = claims(table(arms), {})
        assert len(said) == 4
        found += any(re.match(r"arm\d (gains|loses) ", each) for each in said)
    assert found / 300 < 0.05 + 3 * (0.05 / 300) ** 0.5
