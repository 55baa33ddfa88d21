"""What to expect, in words: a rule of two thresholds, drawn from settings whose gain this project has measured.

measured.json holds, for each of them, the figures of an audit and what TextTeacher gained in top-1 over its baseline
(docs/results.md); `python -m benchmarks.audit settings` writes it. The rule expects a gain where captions know the
classes, at least so many labels are wrong (lower end of the interval), and at most so much of the variance of
embeddings lies within classes. Thresholds are those with the most hits, and of equally good ones those with the most
room on both sides. How often the rule is right on data that it was not drawn from is counted with each data set left
out in turn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from tt_ray.audit.noise import Interval

MEASURED = Path(__file__).parent / "measured.json"
_ALL_RIGHT = 0.99
"""Accuracy from which captions are taken to be made of labels, where they also repeat or name classes."""
_LITTLE = 0.05
"""Share of variance within classes below which captions tell the class and no more."""
_POINTS = 1.0
"""Least gain, in points of top-1, that counts as one; it must exceed its standard deviation over seeds too."""
BETTER = 0.05
"""By how much captions must predict labels better than guessing does to know anything."""


@dataclass(frozen=True)
class Knowledge:
    """The figures that a verdict rests on."""

    knows: bool
    """Whether captions predict labels better than guessing does."""
    accuracy: float
    """Share of given labels that captions predict, out of fold."""
    majority: float
    """Share of the most frequent class."""
    shuffled: float
    """Share of labels that captions of other images predict."""
    noise: Interval
    confident: Interval
    left: float
    """Share of the variance of embeddings that lies within classes."""
    within: float
    """Effective dimension within classes."""
    images: int
    classes: int
    distinct: int
    """Captions that differ."""
    named: float | None
    """Share of captions in which the name of the given class stands."""


@dataclass(frozen=True)
class Verdict:
    """What to expect, and why."""

    kind: str
    """gain, labels (captions made of labels), unknown (captions know no class), class, transfer, unclear."""
    headline: str
    evidence: tuple[str, ...]


class Rule(NamedTuple):
    """Expects a gain from `noise` wrong labels on, up to a share `left` of variance within classes."""

    noise: float
    left: float

    def expects_gain(self, accuracy: float, majority: float, noise_low: float, left: float) -> bool:
        """Whether figures of an audit promise a gain."""
        return accuracy >= majority + BETTER and noise_low >= self.noise and left <= self.left

    def right(self, rows: Sequence[dict[str, Any]]) -> int:
        """In how many measured settings the rule expects what happened."""
        names = ("accuracy", "majority", "noise_low", "left")
        return sum(self.expects_gain(*(row[name] for name in names)) == gained(row) for row in rows)


@cache
def measured() -> tuple[dict[str, Any], ...]:
    """The measured settings."""
    return tuple(json.loads(MEASURED.read_text(encoding="utf-8")))


def gained(row: dict[str, Any]) -> bool:
    """Whether a setting has gained: by a point or more, and more than its standard deviation over seeds."""
    return row["gain"] >= _POINTS and row["gain"] > (row["spread"] or 0)


def draw_rule(rows: Sequence[dict[str, Any]]) -> Rule:
    """The rule with the most hits on measured settings."""
    noises, lefts = (_between([row[name] for row in rows]) for name in ("noise_low", "left"))

    def worth(pair: tuple[tuple[float, float], tuple[float, float]]) -> tuple[int, float]:
        (noise, room), (left, more) = pair
        return Rule(noise, left).right(rows), room + more

    (noise, _), (left, _) = max(product(noises, lefts), key=worth)
    return Rule(noise, left)


def hits_left_out(rows: Sequence[dict[str, Any]]) -> int:
    """In how many settings the rule is right that is drawn from the other data sets."""
    found = 0
    for name in {row["data"] for row in rows}:
        own, others = ([row for row in rows if (row["data"] == name) is inside] for inside in (True, False))
        found += draw_rule(others).right(own)
    return found


def _between(values: Sequence[float]) -> list[tuple[float, float]]:
    """Thresholds half-way between neighbouring values of 0 to 1, and the room on either side."""
    ends = sorted({0.0, *values, 1.0})
    return [((low + high) / 2, (high - low) / 2) for low, high in pairwise(ends)]


def judge(known: Knowledge) -> Verdict:
    """The verdict on a data set."""
    rows, rule = measured(), draw_rule(measured())
    if not known.knows:
        return Verdict("unknown", _UNKNOWN, (_says(known), *_basis(rows, rule)))
    if why := made_of_labels(known):
        return Verdict("labels", _LABELS, (_says(known), why, *_basis(rows, rule)))
    wrong = f"about {100 * known.noise.value:.0f} % of labels look wrong, and captions know better"
    only = "captions tell the class and no more: a vector for each class would do as much"
    if rule.expects_gain(known.accuracy, known.majority, known.noise.low, known.left):
        more = f"; {only}" if known.left < _LITTLE else ""
        return Verdict("gain", f"Expect a gain: {wrong}{more}.", (_says(known), _noise(known), *_basis(rows, rule)))
    if known.left < _LITTLE:
        headline = f"Within noise: {only}, and labels look right."
        return Verdict("class", headline, (_says(known), _noise(known), *_basis(rows, rule)))
    evidence = (_says(known), _noise(known), _alike(rows, rule, known), *_basis(rows, rule))
    if known.noise.low >= rule.noise:
        return Verdict("transfer", f"Unsure: {wrong}, but they tell much besides the class. {_TRANSFER}", evidence)
    return Verdict("unclear", f"Within noise, as far as top-1 goes: labels look right. {_TRANSFER}", evidence)


def made_of_labels(known: Knowledge) -> str:
    """Why captions look as if they were made from the labels; empty where they do not."""
    if known.accuracy < _ALL_RIGHT:
        return ""
    if known.distinct <= 3 * known.classes:
        return f"There are {known.distinct:,} different captions for {known.classes:,} classes."
    if known.left < 0.01:
        return "Captions of a class are all but alike."
    if known.named is not None and known.named >= 0.95:
        return f"{100 * known.named:.0f} % of captions name the class of their label."
    return ""


_UNKNOWN = (
    "Expect no gain: captions say nothing of the classes that a linear model can find, and labels cannot be judged by "
    "them."
)
_LABELS = (
    "Expect no gain: captions look as if they were made from the labels. They repeat them, right or wrong, so that "
    "wrong labels cannot be seen."
)
_TRANSFER = "What captions tell besides the class can make features better for other tasks."


def _says(known: Knowledge) -> str:
    return (
        f"Captions predict {100 * known.accuracy:.1f} % of the labels, by models that have not seen them; naming the "
        f"most frequent class {100 * known.majority:.1f} %, captions of other images {100 * known.shuffled:.1f} %."
    )


def _noise(known: Knowledge) -> str:
    share = known.noise
    return (
        f"{100 * share.value:.1f} % of labels look wrong (95 % interval {100 * share.low:.1f} to "
        f"{100 * share.high:.1f} %); {100 * known.left:.0f} % of the variance of embeddings lies within classes."
    )


def _alike(rows: Sequence[dict[str, Any]], rule: Rule, known: Knowledge) -> str:
    """What settings on the same side of the noise's threshold have gained."""
    noisy = known.noise.low >= rule.noise
    gains = sorted(row["gain"] for row in rows if (row["noise_low"] >= rule.noise) is noisy)
    side = "many" if noisy else "few"
    return (
        f"In {len(gains)} measured settings with {side} wrong labels top-1 changed by {gains[0]:+.1f} to "
        f"{gains[-1]:+.1f} points."
    )


def _basis(rows: Sequence[dict[str, Any]], rule: Rule) -> tuple[str, ...]:
    sets = len({row["data"] for row in rows})
    return (
        f"The rule: a gain from {100 * rule.noise:.0f} % of wrong labels on, where at most {100 * rule.left:.0f} % of "
        f"the variance lies within classes. It is right in {rule.right(rows)} of {len(rows)} measured settings, and in "
        f"{hits_left_out(rows)} of them when drawn from the other {sets - 1} of {sets} data sets: small runs, far from "
        "ImageNet.",
    )
