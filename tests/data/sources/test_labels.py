"""Labels are names: numbered, matched and refused by them, whatever they were written as."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tt_ray.data.sources.labels import ClassNames, LabelPlace, label_array, match_numbers, number_classes, text_labels
from tt_ray.terminal.errors import UserError

PLACE = LabelPlace("DATA", "label", lambda row: f"DATA:{row}")
NFC, NFD = "Käfer", "Ka\u0308fer"


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(values: Sequence[Any], called: Sequence[str | None] | None = None) -> list[str]:
    """The class name of each label."""
    labels, classes = number_classes(
        label_array(values, PLACE), PLACE, None if called is None else pa.array(called, pa.string())
    )
    assert len(set(classes)) == len(classes) and labels.dtype == np.int64
    return [classes[label] for label in labels]


@pytest.mark.parametrize(
    ("values", "called", "expected"),
    [
        (["dog", "ant", "dog"], None, ["dog", "ant", "dog"]),
        ([" dog", "ant\n"], None, ["dog", "ant"]),
        ([NFC, NFD], None, [NFC, NFC]),
        ([2, 0], None, ["2", "0"]),
        ([2, 0, 2], ["cat ", None, "cat "], ["cat", "0", "cat"]),
        ([0, 1], [NFC, "dog"], [NFC, "dog"]),
        ([1, 2], ["2", "0"], ["2", "0"]),  # names that are other numbers
        (["01", "10"], None, ["01", "10"]),
        ([], None, []),
    ],
)
def test_labels_by_name(values: list[Any], called: list[str | None] | None, expected: list[str]) -> None:
    assert named(values, called) == expected


@pytest.mark.parametrize(
    ("values", "called", "parts"),
    [
        (["a", ""], None, ["1 images have no label", "DATA:1"]),
        (["a", "  ", None, "\u00a0\t"], None, ["3 images have no label", "DATA:1, DATA:2, DATA:3"]),
        ([None, 0], None, ["1 images have no label", "DATA:0"]),
        ([""] * 9, None, ["9 images have no label", "DATA:4, and 4 more"]),
        (["dog", " dog"], None, ["'dog' and ' dog'"]),
        (["1", "01"], None, ["'1' and '01'", "leading zeros"]),
        ([True, False], None, ["are bool", "DATA:0: True"]),
        ([1, 2.0], None, ["are float, int", "DATA:1: 2.0"]),
        ([0, "0"], None, ["are int, str", "DATA:1: '0'"]),
        ([float("nan")], None, ["are float", "nan"]),
        ([[1]], None, ["are list"]),
        ([0, -1], None, ["DATA:1: label -1 is not a class number"]),
        ([0, 10**9], None, ["DATA:1: label 1000000000 is not a class number"]),
        ([0, 10**40], None, ["DATA:1: label 1000000000", "is not a class number"]),
        ([0, 1, 0], ["a", "b", "c"], ["DATA:2: label 0 is called both 'a' and 'c'"]),
        ([0, 1], ["a", "a"], ["DATA:1: labels 0 and 1 are both called 'a'"]),
        ([0, 1], [NFC, NFD], [f"both called {NFC!r}"]),
        ([0, 1], ["1", None], ["label 1 has no name, and '1' is another label's"]),
        ([0, 1], ["a", "a "], ["'a' and 'a '"]),
    ],
)
def test_labels_that_are_refused(values: list[Any], called: list[str | None] | None, parts: list[str]) -> None:
    text = message(lambda: named(values, called))
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["b", "a", "b"], pa.large_string()),
        pa.array(["b", "a", "b"], pa.string_view()),
        pa.array(["b", "a", "b"]).dictionary_encode(),
        pa.chunked_array([["b"], [], ["a", "b"]]),
        pa.chunked_array([pa.array(["b"]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()]),
    ],
)
def test_every_arrow_type_of_texts(values: Any) -> None:
    labels, classes = number_classes(values, PLACE)
    assert labels.tolist() == [1, 0, 1] and classes == ("a", "b")


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.uint64(), pa.int64()])
def test_every_arrow_type_of_integers(kind: pa.DataType) -> None:
    labels, classes = number_classes(pa.chunked_array([[2], [0]], kind), PLACE)
    assert labels.tolist() == [2, 0] and classes == ("0", "1", "2")
    labels, _ = match_numbers(pa.chunked_array([[2], [0]], kind), [["a", "b", "c"]], np.zeros(2, np.int64), PLACE)
    assert labels.tolist() == [2, 0]


@pytest.mark.parametrize("values", [pa.array([1.5]), pa.array([True]), pa.array([b"x"]), pa.array([[1]])])
def test_arrow_types_that_are_no_labels(values: pa.Array) -> None:
    assert "labels must be all integers or all text" in message(lambda: number_classes(values, PLACE))


def test_lists_in_any_order_are_matched_by_name() -> None:
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(20)]
    lists = [rng.permutation(names).tolist() for _ in range(4)]
    which = rng.integers(0, 4, 500)
    numbers = rng.integers(0, 20, 500)
    labels, classes = match_numbers(pa.array(numbers), lists, which, PLACE)
    assert list(classes) == lists[0]
    assert [classes[label] for label in labels] == [lists[i][k] for i, k in zip(which, numbers, strict=True)]


def test_lists_of_other_names_are_joined() -> None:
    lists, which = [["ant", "bee"], ["cow", "ant"], [NFD, "bee"]], np.array([0, 1, 1, 2, 2])
    labels, classes = match_numbers(pa.array([1, 0, 1, 0, 1]), lists, which, PLACE)
    assert classes == ("ant", "bee", "cow", NFC) and labels.tolist() == [1, 2, 0, 3, 1]
    assert "'ant' and ' ant'" in message(lambda: match_numbers(pa.array([0]), [["ant", " ant"]], which[:1], PLACE))


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([0, 5, 1], ["DATA:1: label is 5, but it names 3 classes, 0 to 2 (1 such rows)"]),
        ([0, -2, 7], ["DATA:1: label is -2", "2 such rows"]),
        ([0, -1, None, 2], ["3 images have no label (null, -1 or a blank name): DATA:1, DATA:2, DATA:3"]),
    ],
)
def test_numbers_without_a_name_are_refused_by_row(values: list[int | None], parts: list[str]) -> None:
    call = lambda: match_numbers(pa.array(values), [["a", "b", " "]], np.zeros(9, np.int64), PLACE)  # noqa: E731
    text = message(call)
    assert all(part in text for part in parts), text


def test_names_are_numbered_in_the_order_they_are_added() -> None:
    names = ClassNames("DATA")
    assert [names.add(text) for text in ("b", "a", " ", "b", "007")] == [0, 1, -1, 0, 2]
    assert names.names == ("b", "a", "007") and len(names) == 3
    assert "'007' and '7'" in message(lambda: names.add("7"))


def test_labels_as_texts() -> None:
    assert text_labels(pa.array([" a", NFD, "", " ", None])).to_pylist() == ["a", NFC, None, None, None]
