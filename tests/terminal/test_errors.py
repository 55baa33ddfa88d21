"""What errors say: which names they offer, and how other libraries' texts become a line."""

import pytest

from tt_ray.config import Config
from tt_ray.terminal.errors import first_line, nearest, one_line, shown


def test_names_that_are_further_off_than_the_nearest_are_not_offered() -> None:
    assert nearest("text.wieght", Config.paths()) == "did you mean text.weight?"
    assert nearest("digt", ["digit", "dogs", "width"], "--") == "did you mean --digit?"
    assert nearest("shape", ["shapes", "shaped", "slope"]) == "did you mean shapes or shaped?"


def test_a_field_of_another_section_is_offered_and_else_all_names() -> None:
    assert nearest("lr", ["optim.lr", "data.root"]) == "did you mean optim.lr?"
    assert nearest("zebra", ["b", "a"]) == "known: a, b"


def test_a_line_holds_no_thousand_names() -> None:
    names = [f"model_{number:04}" for number in range(1000)]
    expected = "known: --model_0000, --model_0001, --model_0002, --model_0003, --model_0004 and 995 more"
    assert nearest("zzz", names, "--") == expected


@pytest.mark.parametrize(
    ("text", "whole", "first"),
    [
        ("no\n  such file", "no such file", "no"),
        ("\n a  page\nof text\n", "a page of text", "a page"),
        ("", "OSError", "OSError"),
        ("x" * 600, "x" * 500, "x" * 600),
    ],
)
def test_errors_of_libraries_become_a_line(text: str, whole: str, first: str) -> None:
    assert (one_line(OSError(text)), first_line(OSError(text))) == (whole, first)


def test_quoted_values_are_cut_and_escaped() -> None:
    assert shown("k\udce4fer") == "k\\xe4fer" and shown("k\ud800") == "k\\ud800" and shown("Käfer") == "Käfer"
    text = shown("a" * 5000 + "b" * 5000)
    assert text.startswith("aaa") and text.endswith("bbb (10000 characters)") and len(text) < 200
    assert shown("a" * 200) == "a" * 200
