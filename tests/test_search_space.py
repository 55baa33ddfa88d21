"""Search spaces: every key is a field, every value is one that the configuration takes, and points cover them."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from tt_ray.config import Config
from tt_ray.errors import UserError
from tt_ray.recipes import RECIPES
from tt_ray.schedulers import options_of
from tt_ray.search_space import apply, at, check_space, find_space, grid_points, grid_values, random_points
from tt_ray.tune import Arguments

SPACES = sorted(path.stem for path in (Path(__file__).parents[1] / "tune_spaces").glob("[!_]*.py"))


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(f"from ray import tune\n{text}")
    return str(path)


def test_there_are_the_spaces_that_the_help_names() -> None:
    named = Arguments.__doc__ and inspect.getsource(Arguments)
    assert len(SPACES) == 6 and all(f" {name}" in named or f"({name}" in named for name in SPACES)


@pytest.mark.parametrize("name", SPACES)
def test_every_key_and_value_is_one_of_the_configuration(name: str) -> None:
    space, base = find_space(name), RECIPES["shapes_textteacher"]()
    check_space(space, base)
    options_of(space, space.scheduler, base.train.epochs)
    assert set(space.domains) <= set(Config.paths())
    assert space.question.endswith("?") or "?" in space.question, "the docstring says what it answers"
    for values in random_points(space, 40):
        assert all(apply(base, values).get(path) == value for path, value in values.items())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SPACE = {'text.wieght': tune.uniform(0, 1)}", "no field text.wieght; did you mean text.weight"),
        ("SPACE = {'text.weight': tune.uniform(0, 2)}", "text.weight is 1.5, but must be between 0 and 1"),
        ("SPACE = {'text.loss': tune.choice(['clip', 'clap'])}", "text.loss is 'clap'"),
        ("SPACE = {'train.seed': tune.randint(0, 9)}", "train.seed is not for searching"),
        ("SPACE = {'text.weight': 0.5}", "is no ray.tune domain"),
        ("SPACE = {}", "has no SPACE"),
        ("SPACE = {'text.weight': tune.uniform(0, 1)}\nMETRIC = 'accuracy'", "METRIC 'accuracy' must be"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_bad_space_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        check_space(find_space(write(tmp_path, text)), Config())
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean loss_weight"):
        find_space("loss_wieght")
    with pytest.raises(UserError, match="there is no search space"):
        find_space("nowhere/mine.py")


def test_random_points_cover_every_dimension_and_begin_alike(tmp_path: Path) -> None:
    text = "SPACE = {'text.weight': tune.uniform(0, 1), 'optim.lr': tune.loguniform(1e-4, 1e-2),"
    text += "'head.depth': tune.randint(1, 5), 'text.balance': tune.choice([True, False])}"
    space = find_space(write(tmp_path, text))
    points = random_points(space, 64)
    assert points[:16] == random_points(space, 16)
    for path, bins in (("text.weight", np.linspace(0, 1, 9)), ("optim.lr", np.geomspace(1e-4, 1e-2, 9))):
        counts, _ = np.histogram([point[path] for point in points], bins)
        assert counts.min() >= 5, "independent draws leave some of eight bins nearly empty"
    assert {point["head.depth"] for point in points} == {1, 2, 3, 4}
    assert 28 <= sum(point["text.balance"] for point in points) <= 36


def test_values_lie_where_their_distribution_says() -> None:
    assert at(tune.uniform(2, 4), 0.5) == 3.0
    assert at(tune.loguniform(1, 100), 0.5) == pytest.approx(10)
    assert at(tune.quniform(0, 1, 0.25), 0.6) == 0.5
    assert at(tune.choice(["a", "b"]), 0.99) == "b"
    assert [at(tune.randint(0, 3), share) for share in (0, 0.34, 0.999)] == [0, 1, 2]
    with pytest.raises(UserError, match="cannot be searched"):
        at(tune.randn(0, 1), 0.5)


def test_a_grid_has_all_combinations_and_both_ends(tmp_path: Path) -> None:
    text = "SPACE = {'text.weight': tune.uniform(0, 1), 'text.loss': tune.choice(['clip', 'cos', 'l2'])}"
    points = list(grid_points(find_space(write(tmp_path, text))))
    assert len(points) == 15 and len({tuple(point.items()) for point in points}) == 15
    assert {point["text.weight"] for point in points} == {0, 0.25, 0.5, 0.75, 1}
    assert grid_values(tune.randint(0, 3)) == [0, 1, 2]


def test_pbt_refuses_what_a_checkpoint_fixes() -> None:
    with pytest.raises(UserError, match="cannot change head.kind, .*within a training"):
        options_of(find_space("projection"), "pbt", 10)
    with pytest.raises(UserError, match="no scheduler 'ahsa'; did you mean asha"):
        options_of(find_space("projection"), "ahsa", 10)
