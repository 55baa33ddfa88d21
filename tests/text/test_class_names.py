"""Class names: folders' own, or a table's; ids are not taken for names."""

from pathlib import Path

import pytest

from tt_ray.terminal.errors import UserError
from tt_ray.text.class_names import name_classes

CLASSES = ("n01440764", "n02084071")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.json", '{"n01440764": "tench", "n02084071": "domestic_dog", "n00000000": "other"}'),
        ("names.csv", "class,name\nn01440764,tench\nn02084071, domestic dog\n"),
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn02084071 domestic dog, Canis familiaris\n"),
    ],
)
def test_tables_of_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert name_classes(CLASSES, tmp_path / name) == ["tench", "domestic dog"]
    with pytest.raises(UserError, match="has no name for 1 of 2 classes: n9"):
        name_classes((CLASSES[0], "n9"), tmp_path / name)


def test_wordnet_ids_are_no_names() -> None:
    assert name_classes(("big_cat", "7"), None) == ["big cat", "7"]
    with pytest.raises(UserError, match="2 classes are WordNet ids, not names: n01440764, n02084071; pass --class_nam"):
        name_classes((*CLASSES, "dog"), None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[1]", "is not a JSON object of texts"),
        ("x.json", "{", "is not JSON"),
        ("x.xls", "", "no table of class names"),
        ("x.csv", 'n1,"a \\"big\\" cat"\n', "has a quote at the wrong place"),
        ("none/x.csv", None, "cannot read"),
    ],
)
def test_unusable_tables(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        name_classes(CLASSES, tmp_path / name)
    assert "\n" not in str(caught.value)
