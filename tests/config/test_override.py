"""Changing fields by command line, comparison, search and library: what goes with what, and what is refused."""

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tt_ray.cli import read_config
from tt_ray.compare.arms import read_arms
from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.terminal.errors import UserError
from tt_ray.tune.__main__ import read as search
from tt_ray.tune.space import apply


def _read(*arguments: str) -> Config:
    return read_config(list(arguments), "prog")


@pytest.mark.parametrize("name", RECIPES)
def test_label_noise_of_the_shapes_is_for_the_shapes_alone(name: str) -> None:
    """Other recipes with noise are about noise, whichever form their data have."""
    recipe = RECIPES[name]()
    for source in ("imagefolder", "webdataset", "shapes"):
        kept = recipe.data.source != "shapes" or source == "shapes"
        meant = recipe.data.label_noise if kept else 0.0
        assert _read(name, "--data.source", source, "--data.root", "mine").data.label_noise == meant
        assert recipe.override("data.source", source).data.label_noise == meant
    assert _read(name, f"--data.source={recipe.data.source}") == recipe.override("data.source", recipe.data.source)


FIELDS = {"data.source": "imagefolder", "data.label_noise": 0.25, "model.name": "resnet18", "model.kwargs": {"a": 1}}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_was_set_stays_and_the_recipes_goes_in_every_order_and_by_every_way(count: int) -> None:
    recipe = RECIPES["shapes_textteacher"]()
    for order in itertools.permutations(FIELDS, count):
        chosen = {path: FIELDS[path] for path in order}
        expected = {"data.label_noise": 0.0 if "data.source" in chosen else 0.5}
        expected |= {"model.kwargs": {} if "model.name" in chosen else recipe.model.kwargs}
        expected |= {path: recipe.get(path) for path in ("data.source", "model.name")} | chosen
        words, together = list[str](), recipe.override(chosen)
        one_by_one, by_names = recipe, recipe.override(**chosen)
        for path, value in chosen.items():
            one_by_one = one_by_one.override(path, value)
            words += [f"--{path}", *(["a", "1"] if path == "model.kwargs" else [str(value)])]
        (arm,) = read_arms(["a=shapes_textteacher"], _changes(words))
        searched = search(["loss_weight", "--base", "shapes_textteacher", *words])[1]
        ways = {"together": together, "one by one": one_by_one, "by names": by_names, "space": apply(recipe, chosen)}
        for way, config in ways.items():
            assert {path: config.get(path) for path in FIELDS} == expected, way
        if "model.kwargs" in chosen and "model.name" not in chosen:
            expected["model.kwargs"] = {**recipe.model.kwargs, "a": 1}  # on a command line they are added
        for way, config in {"command": _read(*words), "arm": arm.config, "search": searched}.items():
            assert {path: config.get(path) for path in FIELDS} == expected, way


def _changes(words: list[str]) -> list[str]:
    """Options and their values as PATH=VALUE."""
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    ends = [*starts[1:], len(words)]
    return [f"{words[i][2:]}={' '.join(words[i + 1 : j])}" for i, j in zip(starts, ends, strict=True)]


def test_what_a_command_line_has_set_stays_in_the_trials_of_a_search() -> None:
    base = _read("--data.label_noise", "0.25", "--model.kwargs", "depth", "1")
    for config in (base, pickle.loads(pickle.dumps(base))):
        found = apply(config, {"data.source": "imagefolder", "model.name": "resnet18"})
        assert found.data.label_noise == 0.25 and found.model.kwargs["depth"] == 1
    found = apply(_read("--train.epochs", "3"), {"data.source": "imagefolder", "model.name": "resnet18"})
    assert found.data.label_noise == 0 and found.model.kwargs == {}


def test_a_file_means_the_label_noise_that_it_says(tmp_path: Path) -> None:
    own = ["--data.source", "imagefolder", "--data.root", "mine"]
    (tmp_path / "mine.yaml").write_text("data: {label_noise: 0.125}")
    assert _read(str(tmp_path / "mine.yaml"), *own).data.label_noise == 0.125
    read = Config.from_yaml(tmp_path / "mine.yaml")
    assert read.override("data.source", "imagefolder").data.label_noise == 0.125


@pytest.mark.parametrize("path", ["train.epoch", "epochs", "trian.epochs"])
def test_a_field_that_does_not_exist_has_a_nearest_one_in_every_form(path: str) -> None:
    config = RECIPES["shapes_baseline"]()
    for call in (lambda: config.override(path, 1), lambda: config.override({"optim.lr": 0.1, path: 1})):
        with pytest.raises(UserError, match=f"no field {path}; did you mean train.epochs"):
            call()
    with pytest.raises(UserError, match=f"no field {path}; did you mean train.epochs"):
        config.override(None, **{path: 1})


TWO_TEXTS = {"text.embeddings": "STORE", "text.captions": "captions.parquet"}


def test_captions_and_embeddings_together_are_refused_wherever_they_come_from(tmp_path: Path) -> None:
    words = [word for path, value in TWO_TEXTS.items() for word in (f"--{path}", value)]
    first, second = TWO_TEXTS.items()
    (tmp_path / "mine.yaml").write_text(f"text: {{embeddings: {first[1]}, captions: {second[1]}}}")
    base = RECIPES["shapes_textteacher"]().override(*first)
    ways: dict[str, Callable[[], object]] = {
        "command": lambda: _read(*words),
        "file": lambda: _read(str(tmp_path / "mine.yaml")),
        "file and option": lambda: _read(str(tmp_path / "mine.yaml"), "--text.weight", "1"),
        "arm": lambda: read_arms(["a=shapes_textteacher+text.captions=captions.parquet"], ["text.embeddings=STORE"]),
        "search": lambda: search(["loss_weight", "--base", "shapes_textteacher", *words]),
        "trial": lambda: apply(base, dict([second])),
        "library": lambda: RECIPES["shapes_textteacher"]().override(TWO_TEXTS),
    }
    for way, call in ways.items():
        with pytest.raises(UserError, match="text.captions captions.parquet would not be read: leave out one") as error:
            call()
        assert len(str(error.value).splitlines()) == 1, way
    for fields in ({"text.weight": 0.0}, {"text.embeddings": ""}, {"text.captions": ""}):  # nothing is ignored
        assert RECIPES["shapes_textteacher"]().override({**TWO_TEXTS, **fields})
