"""Counts of captions, of scripts, of what the encoder cuts off; nearest and odd ones."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from tests.text.toy_encoders import bert
from tt_ray.audit import captions as module
from tt_ray.audit.captions import count_cut, describe_captions, find_neighbours
from tt_ray.embeddings.build import write_store

TEXTS = [
    "a red cat",
    "a red cat",
    None,
    "ein Hund läuft",
    "собака",
    "два cats",
    "犬",
    "a dog",
    "some dogs run",
    "a red cat",
]
CLASSES = ("cats", "dog")


def test_captions_are_counted() -> None:
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1, 1])
    found = describe_captions(pa.array(TEXTS, pa.string()), labels, CLASSES)
    assert (found.images, found.missing, found.distinct, found.shared) == (10, 1, 7, 3)
    assert found.common == (("a red cat", 3),) and found.words == (1, 2, 3, 3, 3)
    assert found.scripts == {"Latin": 7 / 9, "Cyrillic": 2 / 9, "Han": 1 / 9}
    assert found.named == 5 / 9, "cats without its s, dogs too, and no cat where a dog is meant"


@pytest.mark.parametrize(
    ("name", "caption", "there"),
    [
        ("signs_and_symbols", "Signs and symbols of old", True),
        ("ox", "a fox", False),
        ("C++ code", "my c code", True),
        ("bus", "a bus", True),
        ("glass", "a glass of milk", True),
    ],
)
def test_names_are_words(name: str, caption: str, there: bool) -> None:
    found = describe_captions(pa.array([caption]), np.array([0]), (name,))
    assert found.named == float(there)


def test_images_without_a_label_name_no_class() -> None:
    texts = pa.array(["a dog", "a cat", "a dog", "a cat"])
    found = describe_captions(texts, np.array([-1, 0, 1, -1]), ("cat", "dog"))
    assert (found.images, found.named, found.told) == (4, 1.0, 1.0)


def test_classes_without_letters_have_no_names() -> None:
    assert describe_captions(pa.array(["1 dog"]), np.array([0]), ("1",)).named is None
    assert describe_captions(pa.nulls(2, pa.string()), np.array([0, 0]), ("dog",)).named is None


PLACES = ("in a field", "on the street", "at night", "in the snow", "near a house", "under a bridge")
TEMPLATES = ("a photo of the {}", "graffiti of a {}", "the plastic {}", "art of the {}", "a {} in a game")
SYNONYMS = {"n01": ("puppy", "hound", "terrier"), "n02": ("kitten", "tabby", "tomcat"), "n03": ("pony", "mare", "foal")}


@pytest.mark.parametrize(
    ("write", "share"),
    [
        (lambda words, draw: draw(words), 1.0),
        (lambda words, draw: draw(TEMPLATES).format(draw(words)), 1.0),
        (lambda words, draw: f"{draw(TEMPLATES).format(draw(words).upper())}, {draw(PLACES)}", 1.0),
        (lambda words, draw: f"{draw(words)} and {draw(words)}s {draw(PLACES)}", 1.0),
        (lambda words, draw: draw(TEMPLATES).format(draw([*words, "animal"])), 0.75),
        (lambda words, draw: f"{draw(TEMPLATES)} {draw(PLACES)}", 0.0),
        (lambda words, draw: f"picture {draw(range(10**9))}", 0.0),
    ],
)
def test_words_that_tell_the_class_are_found_whatever_the_class_is_called(
    write: Callable[..., str], share: float
) -> None:
    """Templates, synonyms, words around them; neither words of all classes nor those that stand once tell anything."""
    random = Random(0)
    labels = np.arange(600) % 3
    texts = [write(list(SYNONYMS.values())[label], random.choice) for label in labels]
    found = describe_captions(pa.array(texts), labels, tuple(SYNONYMS))
    assert abs(found.told - share) < 0.07, texts[:3]


def test_what_an_encoder_cuts_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(tmp_path)
    encoder = {"id": str(tmp_path), "max_tokens": 4}
    found = count_cut(encoder, pa.array(["dog", "a red dog", None, "a red dog runs"], pa.string()))
    assert found is not None and (found.share, found.of, found.limit) == (2 / 3, 3, 4), "with both special tokens"
    monkeypatch.setattr(module, "SAMPLE", 2)
    sampled = count_cut(encoder, pa.array(["dog"] * 5))
    assert sampled is not None and sampled.of == 2
    assert count_cut({**encoder, "max_tokens": 0}, pa.array(["dog"])) is None, "imported: the length is not known"


@pytest.mark.parametrize("encoder", [{}, {"id": "no/such", "max_tokens": 4}, {"id": "x"}, {"id": "", "max_tokens": 4}])
def test_an_encoder_that_is_not_here_is_no_trouble(encoder: dict[str, object]) -> None:
    assert count_cut(encoder, pa.array(["a dog"])) is None


def test_near_captions_of_different_labels_and_odd_ones(tmp_path: Path) -> None:
    rows = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.05], [-1, -1, 0.3], [0, 0, 9]], np.float32)
    store = write_store(tmp_path / "s", pa.array(list("abcdef")), [rows], 3, "float32", {"id": "x", "revision": ""})
    found = find_neighbours(store, np.arange(6), np.array([0, 1, 1, 1, 0, 0]))
    assert found.of == 6 and found.near[0][:2] == (0, 1) and found.near[0][2] > 0.9
    assert found.odd[0][0] in (4, 5)
    same = write_store(
        tmp_path / "t", pa.array(["a", "b"]), [rows[:1], rows[:1]], 3, "float32", {"id": "x", "revision": ""}
    )
    assert find_neighbours(same, np.arange(2), np.array([0, 1])).near == ()


def test_copies_of_a_caption_are_one_example_and_each_near_pair_counts(tmp_path: Path) -> None:
    """The last image's nearest is one whose own nearest is a third: a pair all the same."""
    angles = np.array([0.0, 0.3, 0.5, 1.0, 2.5, 2.5])
    rows = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1).astype(np.float32)
    store = write_store(tmp_path / "s", pa.array(list("abcdef")), [rows], 3, "float32", {"id": "x", "revision": ""})
    found = find_neighbours(store, np.arange(6), np.array([0, 1, 0, 1, 0, 1]))
    pairs = [{one, other} for one, other, _ in found.near]
    assert len(found.odd) == 5 and {row for row, _ in found.odd} >= {0, 1, 2, 3}, "of two copies, one"
    assert {1, 2} in pairs and {0, 1} in pairs and {2, 3} in pairs
    assert len(pairs) == len({frozenset(pair) for pair in pairs})
    cosines = [cosine for *_, cosine in found.near]
    assert cosines == sorted(cosines, reverse=True)
