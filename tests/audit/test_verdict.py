"""The rule is that of the measured settings, says how often it is right, and each kind of verdict has its case."""

from dataclasses import replace

import pytest

from tt_ray.audit.noise import Interval
from tt_ray.audit.verdict import Knowledge, Rule, draw_rule, gained, hits_left_out, judge, made_of_labels, measured

NONE, MANY = Interval(0.0, 0.0, 0.01), Interval(0.5, 0.47, 0.53)
PLAIN = Knowledge(True, 0.8, 0.1, 0.78, 0.1, 0.8, False, NONE, NONE, 0.7, 30.0, 5000, 10, 4000, 0.5, 0.3)


def test_the_rule_beats_chance_on_what_it_was_drawn_from_and_is_honest_about_the_rest() -> None:
    rows = measured()
    rule = draw_rule(rows)
    assert len({row["data"] for row in rows}) >= 2 and 0.05 < rule.noise < 0.5
    never = sum(not gained(row) for row in rows)
    assert rule.right(rows) > never and hits_left_out(rows) <= rule.right(rows)
    text = judge(PLAIN).evidence[-1]
    assert (
        f"right in {rule.right(rows)} of {len(rows)} measured settings, and in {hits_left_out(rows)} when drawn" in text
    )


def test_the_threshold_lies_in_the_middle_of_the_widest_gap() -> None:
    noises = ((0.0, 0), (0.1, 0), (0.4, 5), (0.5, 5))
    rows = [{"data": "x", "knows": True, "noise_low": low, "gain": gain, "spread": 1.0} for low, gain in noises]
    assert draw_rule(rows) == Rule(0.1, 0.4) and Rule(0.1, 0.4).right(rows) == 4
    rows.append({"data": "y", "knows": False, "noise_low": 0.9, "gain": 0, "spread": 1.0})
    assert draw_rule(rows) == Rule(0.1, 0.4), "where captions know nothing the estimate means nothing"


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"noise": MANY}, "gain", "about 50 % of labels look wrong"),
        ({"noise": MANY, "left": 0.01, "accuracy": 0.5}, "gain", "a vector for each class would do as much"),
        ({"knows": False, "noise": MANY, "accuracy": 0.1}, "unknown", "captions say nothing of the classes"),
        ({"knows": False, "accuracy": 0.2, "images": 60}, "unknown", "Not known: of 60 images it may be chance"),
        (
            {"knows": False, "accuracy": 0.79, "majority": 0.77},
            "unknown",
            "Not known: one class has 77 % of the labels",
        ),
        ({"knows": False, "accuracy": 0.149, "images": 100_000}, "unknown", "captions say nothing"),
        ({"knows": False, "accuracy": 0.1, "images": 60, "distinct": 1}, "unknown", "captions say nothing"),
        ({"noise": Interval(0.1, 0.08, 0.12)}, "some", "Correct labels first: about 10 %"),
        ({"left": 0.01}, "class", "a vector for each class would do as much"),
        ({}, "unclear", "Within noise"),
        ({"noise": Interval(0.0, 0.0, 1.0)}, "unclear", "too few images"),
        ({"noise": Interval(0.2, 0.0, 0.5)}, "unclear", "Not known"),
        ({"repeated": 1.0, "distinct": 10}, "labels", "made from the labels"),
        ({"repeated": 1.0, "left": 0.0}, "labels", "wrong labels cannot be seen"),
        ({"repeated": 1.0, "named": 1.0}, "labels", "Expect no gain"),
        ({"repeated": 0.92, "named": None, "told": 0.97}, "labels", "Expect no gain"),
        ({"repeated": 0.92, "named": 1.0, "noise": MANY}, "labels", "Expect no gain"),
        ({"repeated": 0.92, "named": 1.0, "noise": MANY, "spoiled": True}, "gain", "about 50 % of labels look wrong"),
    ],
)
def test_each_kind_of_verdict(changes: dict[str, object], kind: str, words: str) -> None:
    verdict = judge(replace(PLAIN, **changes))  # type: ignore[arg-type]
    assert verdict.kind == kind and words in verdict.headline
    assert len(verdict.evidence) >= 2 and all(each.endswith(".") for each in verdict.evidence)


@pytest.mark.parametrize(
    ("noise", "few", "many"),
    [
        (NONE, True, False),
        (MANY, False, True),
        (Interval(0.25, 0.05, 0.4), True, True),
        (Interval(0.04, 0.03, 0.05), True, False),
    ],
)
def test_settings_are_compared_on_each_side_that_the_interval_reaches(noise: Interval, few: bool, many: bool) -> None:
    """A quarter of wrong labels, and not "next to none" because the interval begins below the threshold."""
    (text,) = (each for each in judge(replace(PLAIN, noise=noise)).evidence if "none had between" in each)
    assert ("next to no wrong labels" in text, "with many wrong labels" in text) == (few, many) and text[0] == "I"


def test_captions_that_name_other_classes_were_not_made_from_the_labels() -> None:
    assert not made_of_labels(replace(PLAIN, repeated=0.5, named=1.0, told=1.0, left=0.0, distinct=10))
    assert not made_of_labels(replace(PLAIN, repeated=0.98, named=0.9, told=0.9, left=0.0, distinct=10))
    assert not made_of_labels(replace(PLAIN, repeated=0.995, named=None))


def test_noise_made_on_purpose_says_nothing_of_the_datas_own_labels() -> None:
    """Captions made from labels know which of them data.label_noise has changed: that gain is the experiment's."""
    made = replace(PLAIN, accuracy=0.5, repeated=1.0, named=1.0, noise=MANY, spoiled=True)
    assert any("cannot show which are wrong in the data themselves" in each for each in judge(made).evidence)
    assert not any("data.label_noise" in each for each in judge(replace(made, repeated=0.5)).evidence)
