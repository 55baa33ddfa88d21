"""What to expect, in words: a rule of one threshold, drawn from settings whose gain this project has measured.

measured.json holds, for each of them, the figures of an audit and what TextTeacher gained in top-1 over its baseline
(docs/results.md); `python -m benchmarks.audit settings` writes it. The rule expects a gain where captions know the
classes and at least so many labels are wrong, by the lower end of the interval. The threshold is the middle of a gap of
at least five points between measured settings, for a narrower one would be drawn from the estimate's own error: the gap
with the most hits, and of equally good ones the widest. A second threshold, on what captions say besides the class,
added no hit. How often the rule is right on data that it was not drawn from is counted with each data set left out in
turn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from tt_ray.audit.noise import Interval

MEASURED = Path(__file__).parent / "measured.json"
_ALL_RIGHT, _NEARLY = 0.99, 0.9
"""Share of the data's labels that captions predict from which they may be made of labels: where captions of a class are
next to the same, and where nearly all have words that tell the class, which a model need not have learned as well."""
_WORDED = 0.95
"""Share of captions with such words."""
_LITTLE = 0.05
"""Share of variance within classes below which captions tell the class and no more."""
_POINTS = 1.0
"""Least gain, in points of top-1, that counts as one; it must exceed its standard deviation over seeds too."""
_GAP = 0.05
_SOME = 0.02
"""Share of wrong labels, by the lower end of its interval, from which they are worth a look."""
_BETTER = 0.05
MOST = 0.75
"""Share of the most frequent class from which accuracy hardly shows what captions know of the others."""


@dataclass(frozen=True)
class Knowledge:
    """The figures that a verdict rests on."""

    knows: bool
    """Whether captions predict labels better than guessing does."""
    accuracy: float
    """Share of given labels that captions predict, out of fold."""
    majority: float
    """Share of the most frequent class."""
    agreement: float
    """Cohen's kappa of given labels and predicted ones."""
    shuffled: float
    """Share of labels that captions of other images predict."""
    repeated: float
    """Share of the labels that captions predict which images have in the data alone, before data.labels and
    data.label_noise: captions may have been made from those."""
    spoiled: bool
    """Whether labels were made wrong on purpose, with data.label_noise."""
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
    """Share of captions in which the name of the class stands that the data give to the image."""
    told: float
    """Share of captions with one of a few words that captions of no other class have."""


@dataclass(frozen=True)
class Verdict:
    """What to expect, and why."""

    kind: str
    """gain, some (wrong labels, fewer than were measured), labels (captions made of them), unknown (captions know no
    class), class (and no more), unclear."""
    headline: str
    evidence: tuple[str, ...]


class Rule(NamedTuple):
    """Expects a gain from the middle between two shares of wrong labels on, between which nothing was measured."""

    below: float
    above: float

    @property
    def noise(self) -> float:
        """The threshold."""
        return (self.below + self.above) / 2

    def expects_gain(self, knows: bool, noise_low: float) -> bool:
        """Whether figures of an audit promise a gain."""
        return knows and noise_low >= self.noise

    def right(self, rows: Sequence[dict[str, Any]]) -> int:
        """In how many measured settings the rule expects what happened."""
        return sum(self.expects_gain(row["knows"], row["noise_low"]) == gained(row) for row in rows)


@cache
def measured() -> tuple[dict[str, Any], ...]:
    """The measured settings."""
    return tuple(json.loads(MEASURED.read_text(encoding="utf-8")))


def gained(row: dict[str, Any]) -> bool:
    """Whether a setting has gained: by a point or more, and more than its standard deviation over seeds."""
    return row["gain"] >= _POINTS and row["gain"] > (row["spread"] or 0)


def draw_rule(rows: Sequence[dict[str, Any]]) -> Rule:
    """The rule with the most hits on measured settings."""
    ends = sorted({0.0, *(row["noise_low"] for row in rows if row["knows"]), 1.0})
    gaps = [Rule(low, high) for low, high in pairwise(ends) if high - low >= _GAP]
    return max(gaps, key=lambda rule: (rule.right(rows), rule.above - rule.below))


def hits_left_out(rows: Sequence[dict[str, Any]]) -> int:
    """In how many settings the rule is right that is drawn from the other data sets."""
    found = 0
    for name in {row["data"] for row in rows}:
        own, others = ([row for row in rows if (row["data"] == name) is inside] for inside in (True, False))
        found += draw_rule(others).right(own)
    return found


def judge(known: Knowledge) -> Verdict:
    """The verdict on a data set."""
    rows = measured()
    rule = draw_rule(rows)
    if not known.knows:
        return Verdict("unknown", _not_known(known), (_says(known), _basis(rows, rule)))
    why = made_of_labels(known)
    if why and not known.spoiled:
        return Verdict("labels", _LABELS, (_says(known), why, _basis(rows, rule)))
    evidence = (_says(known), _noise(known), *([f"{why} {_SPOILED}"] if why else []))
    if known.noise.high - known.noise.low >= 1:
        return Verdict("unclear", _UNSEEN, (_says(known), _basis(rows, rule)))
    if known.noise.low < _SOME and known.noise.high >= rule.noise:
        return Verdict("unclear", _WIDE, (*evidence, _basis(rows, rule)))
    evidence += (_alike(rows, rule, known), _basis(rows, rule))
    wrong = f"about {100 * known.noise.value:.0f} % of labels look wrong, and captions know better"
    only = f" {_CLASS}" if known.left < _LITTLE else ""
    if rule.expects_gain(known.knows, known.noise.low):
        return Verdict("gain", f"Expect a gain: {wrong}. {_BOTH}{only}", (*evidence, _CORRECTED))
    if known.noise.low >= _SOME:
        return Verdict("some", f"Correct labels first: {wrong}.{only}", (*evidence, _CORRECTED))
    if known.left < _LITTLE:
        return Verdict("class", f"Expect no gain: few labels look wrong.{only}", evidence)
    return Verdict("unclear", _UNCLEAR, evidence)


def made_of_labels(known: Knowledge) -> str:
    """Why captions look as if they were made from the labels; empty where they do not."""
    if known.repeated < _NEARLY:
        return ""
    if known.named is not None and known.named >= _WORDED:
        return f"{100 * known.named:.0f} % of captions name the class that the data give to the image."
    if known.told >= _WORDED:
        return f"{100 * known.told:.0f} % of captions have one of five words that only captions of their class have."
    if known.repeated < _ALL_RIGHT:
        return ""
    if known.distinct <= 3 * known.classes:
        return f"There are {known.distinct:,} different captions for {known.classes:,} classes."
    return "Captions of a class are all but alike." if known.left < 0.01 else ""


def better(majority: float) -> float:
    """By how much captions must predict labels better than guessing does to know anything.

    Five points, or half of what guessing leaves where it leaves less than ten.
    """
    return min(_BETTER, (1 - majority) / 2)


def _not_known(known: Knowledge) -> str:
    """That captions know nothing, where there are enough images to see it."""
    error = sqrt(known.accuracy * (1 - known.accuracy) / known.images)
    least = better(known.majority)
    enough = 3 * error < least or known.accuracy - known.majority + 2 * error < least
    if known.distinct < 2:
        return _UNKNOWN
    if known.majority >= MOST:
        return (
            f"Not known: one class has {100 * known.majority:.0f} % of the labels, and captions find next to "
            "nothing of the others. No label is judged."
        )
    if enough:
        return _UNKNOWN
    return (
        f"Not known: of {known.images:,} images it may be chance what captions predict, or fail to predict, and no "
        "label is judged. Audit more images."
    )


_UNKNOWN = (
    "Expect no gain: captions say nothing of the classes that a linear model can find, and labels cannot be judged by "
    "them."
)
_WIDE = (
    "Not known: next to none or very many labels may be wrong, as classes have too few images. Look at the suspects."
)
_UNSEEN = "Within noise, as far as top-1 goes: classes have too few images for anything to be said of their labels."
_LABELS = (
    "Expect no gain: captions look as if they were made from the labels. If they were, they repeat them, right or "
    "wrong, and wrong labels cannot be seen; if people wrote them, few labels are wrong."
)
_SPOILED = (
    "So captions may be made from the labels of the data. They know which of those data.label_noise has made wrong, "
    "and cannot show which are wrong in the data themselves."
)
_BOTH = "Correct labels (--data.labels) and train with text."
# benchmarks.does_it_help, docs/results.md
_CORRECTED = (
    "Where half of the labels were wrong, text on corrected labels did best or as well as anything: 40, 6 and 6 points "
    "over the baseline on shapes, emoji and clip art. Text on the wrong labels gained 36, 5 and 6, corrected labels "
    "without text 18, 2 and 1. Where 40 % were the next class's, correcting counted for more: both gained 34, 7 and 7 "
    "points, text on the wrong labels 12, 2 and 5, corrected labels without text 29, 7 and 2."
)
_CLASS = "Captions tell the class and no more: a vector for each class would do as much."
_UNCLEAR = (
    "Within noise, as far as top-1 goes: few labels look wrong, and measured gains go either way. What captions tell "
    "besides the class can make features better for other tasks."
)


def _says(known: Knowledge) -> str:
    text = (
        f"Captions predict {100 * known.accuracy:.1f} % of the labels, by models that have not seen them; naming the "
        f"most frequent class {100 * known.majority:.1f} %, captions of other images {100 * known.shuffled:.1f} %."
    )
    beyond = f" Beyond chance they agree by {known.agreement:.2f} of what is possible (Cohen's kappa)."
    return text + beyond * (known.majority >= MOST)


def _noise(known: Knowledge) -> str:
    share = known.noise
    return (
        f"{100 * share.value:.1f} % of labels look wrong (95 % interval {100 * share.low:.1f} to "
        f"{100 * share.high:.1f} %); {100 * known.left:.0f} % of the variance of embeddings lies within classes."
    )


def _alike(rows: Sequence[dict[str, Any]], rule: Rule, known: Knowledge) -> str:
    """What settings have gained on the sides of the threshold that the interval reaches."""
    sides = [False] * (known.noise.low < rule.noise) + [True] * (known.noise.high >= rule.noise)
    gains = {
        many: sorted(row["gain"] for row in rows if row["knows"] and (row["noise_low"] >= rule.noise) is many)
        for many in sides
    }
    parts = [
        f"in {len(own)} measured settings with {'many' if many else 'next to no'} wrong labels top-1 changed by "
        f"{own[0]:+.1f} to {own[-1]:+.1f} points"
        for many, own in gains.items()
    ]
    text = f"{', '.join(parts)}; none had between {100 * rule.below:.0f} and {100 * rule.above:.0f} %."
    return text[:1].upper() + text[1:]


def _basis(rows: Sequence[dict[str, Any]], rule: Rule) -> str:
    sets = len({row["data"] for row in rows})
    return (
        f"The rule: a gain where captions know the classes and {100 * rule.noise:.0f} % of labels or more are wrong. "
        f"It is right in {rule.right(rows)} of {len(rows)} measured settings, and in {hits_left_out(rows)} when drawn "
        f"from the other {sets - 1} of {sets} data sets alone; to expect none everywhere is right in "
        f"{sum(not gained(row) for row in rows)}. All are small runs, far from ImageNet."
    )
