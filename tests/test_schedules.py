"""Schedules of the text weight against the table of the method, written out a second time."""

import itertools
import math

import pytest

from tt_ray.schedules import SHAPES, build_schedule
from tt_ray.terminal.errors import UserError

EPOCHS = [1, 2, 3, 7, 20, 300]
WEIGHTS = [0.5, 1.0, 0.3]


def _cntrcos(t: int, epochs: int, full: float) -> float:
    if 3 * t < epochs:
        return full
    if 3 * t >= 2 * epochs:
        return 0.0
    return full / 2 * (1 + math.cos(math.pi * (t - epochs / 3) / (epochs / 3)))


TABLE = {
    "const": lambda t, epochs, full: full,
    "lin": lambda t, epochs, full: full * (epochs - t) / epochs,
    "cos": lambda t, epochs, full: full * math.cos(math.pi * t / (2 * epochs)),
    "fullcos": lambda t, epochs, full: full / 2 * (1 + math.cos(math.pi * t / epochs)),
    "shiftcos": lambda t, epochs, full: full * (math.cos((t / epochs + 1) * math.pi / 2) + 1),
    "cntrcos": _cntrcos,
}


def test_the_table_is_complete() -> None:
    assert set(SHAPES) == set(TABLE)


@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("weight", [*WEIGHTS, 0.0])
def test_vl2_falls_from_1_by_an_eighth_whatever_the_weight_unless_it_is_0(epochs: int, weight: float) -> None:
    schedule = build_schedule("vl2", weight, epochs)
    for t in range(epochs):
        assert schedule(t) == pytest.approx(1 - t / (8 * epochs) if weight else 0.0)
    assert schedule(epochs) == 0


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_named_shapes(name: str, epochs: int, weight: float) -> None:
    schedule = build_schedule(name, weight, epochs)
    for t in range(epochs):
        assert schedule(t) == pytest.approx(TABLE[name](t, epochs, weight), abs=1e-12), t


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("epochs", EPOCHS)
def test_named_shapes_start_full_fall_and_end_at_zero(name: str, epochs: int) -> None:
    schedule = build_schedule(name, 0.7, epochs)
    values = [schedule(t) for t in range(epochs)]
    assert values[0] == pytest.approx(0.7)
    assert all(0 <= later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
    assert [schedule(epochs), schedule(epochs + 1), schedule(10 * epochs)] == [0, 0, 0]


def test_cntrcos_is_continuous_and_flat_in_its_outer_thirds() -> None:
    epochs = 3000
    schedule = build_schedule("cntrcos", 1.0, epochs)
    values = [schedule(t) for t in range(epochs)]
    # The steepest slope of a half cosine over E/3 epochs is 3 pi / (2 E) a epoch.
    assert max(abs(a - b) for a, b in itertools.pairwise(values)) <= 3 * math.pi / (2 * epochs) * 1.01
    assert set(values[: epochs // 3]) == {1.0}
    assert max(values[2 * epochs // 3 :]) < 1e-12
    assert values[epochs // 2] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("jump-2-6-0.5", {0: 0.8, 1: 0.8, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.5, 6: 0.4, 7: 0.4, 9: 0.4, 10: 0.4, 99: 0.4}),
        ("jump-3-3-0.25", {0: 0.8, 3: 0.8, 4: 0.2, 10: 0.2, 11: 0.2}),
        ("jump-0-0-0", {0: 0.8, 1: 0.0, 10: 0.0}),
        ("jump-0-4-0", {0: 0.8, 1: 0.6, 2: 0.4, 3: 0.2, 4: 0.0, 5: 0.0}),
        ("jump-20-30-0.5", {0: 0.8, 9: 0.8, 10: 0.8, 20: 0.8, 25: 0.6, 30: 0.4}),
        ("jump-1-2-.5", {1: 0.8, 2: 0.4}),
        ("jump-1-2-1", {0: 0.8, 1: 0.8, 2: 0.8, 50: 0.8}),
    ],
)
def test_jump_is_never_cut_to_zero(spec: str, expected: dict[int, float]) -> None:
    schedule = build_schedule(spec, 0.8, epochs=10)
    assert {t: schedule(t) for t in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "spec", ["", "cosine", "Const", " lin", "jump", "jump-1-2", "jump-1-2--0.5", "jump--1-2-0.5", "jump-1.5-2-0.5"]
)
def test_unknown_schedules_are_refused_with_the_known_ones(spec: str) -> None:
    with pytest.raises(UserError, match=r"did you mean|known: cntrcos") as error:
        build_schedule(spec, 0.5, 10)
    assert str(error.value).startswith(f"text.schedule is {spec!r}")


def test_jump_backwards_is_refused() -> None:
    with pytest.raises(UserError, match="B = 2 must not come before epoch A = 3"):
        build_schedule("jump-3-2-0.5", 0.5, 10)
