"""Search spaces: every key is a field, every value is one that the configuration takes, and points cover them."""

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune

from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.terminal.errors import UserError
from tt_ray.tune.schedulers import options_of
from tt_ray.tune.search import Arguments
from tt_ray.tune.space import (
    METRICS,
    apply,
    at,
    check_space,
    find_space,
    grid_points,
    grid_values,
    random_points,
)

SPACES = sorted(path.stem for path in (Path(__file__).parents[2] / "tune_spaces").glob("[!_]*.py"))


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
        ("SPACE = {}", "there is no SPACE"),
        ("1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("SPACE = {'text.weight': tune.uniform('0', '1')}", "line 2: TypeError"),
        ("SPACE = {'optim.lr': tune.loguniform(0, 1)}", "line 2: ValueError: LogUniform requires a lower bound"),
        ("SPACE = {", "SyntaxError: '{' was never closed"),
        ("import no_such_package", "line 2: ModuleNotFoundError"),
        ("raise SystemExit", "line 2: SystemExit"),
    ],
)
def test_a_bad_space_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        check_space(find_space(write(tmp_path, text)), Config())
    assert complaint in str(error.value) and "\n" not in str(error.value)


WEIGHT = "SPACE = {'text.weight': tune.uniform(0, 1)}\n"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("tune.grid_search([0.2, 0.7])", "is tune.grid_search: write tune.choice([0.2, 0.7]), and SEARCHER = 'grid'"),
        ("[0.2, 0.7]", "is a list: write tune.choice([0.2, 0.7])"),
        ("(0.2, 0.7)", "is a list: write tune.choice([0.2, 0.7])"),
        ("0.5", "is a constant: pass --text.weight 0.5 on the command line"),
        ("None", "is a constant"),
        ("'const'", "is a constant"),
        ("{'low': 0, 'high': 1}", "is a dictionary: write each field with its dotted path, such as 'text.weight.low'"),
        ("lambda: 0.5", "is a function: write a domain, such as tune.uniform(low, high) or tune.choice([...])"),
        ("tune.uniform", "is a function"),
        ("tune.sample_from(lambda spec: 0.5)", "is a function"),
        ("tune.randn(0, 1)", "has no ends: write tune.uniform(low, high)"),
        ("tune.qrandn(0, 1, 0.1)", "has no ends: write tune.uniform(low, high)"),
        ("tune.choice([])", "has no values: write tune.choice([first, second])"),
        ("tune.uniform(0.9, 0.1)", "goes from 0.9 to 0.1: the first must be the smaller one"),
        ("tune.uniform(0.5, 0.5)", "goes from 0.5 to 0.5"),
        ("object()", "is a object and no ray.tune domain: write tune.uniform(low, high)"),
    ],
)
def test_what_is_no_domain_is_refused_by_its_key_and_told_what_to_write(
    tmp_path: Path, value: str, complaint: str
) -> None:
    with pytest.raises(UserError) as error:
        find_space(write(tmp_path, f"SPACE = {{'optim.lr': tune.loguniform(1e-4, 1e-2), 'text.weight': {value}}}"))
    assert f"{tmp_path}/mine.py: SPACE['text.weight'] {complaint}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SPACE\[1\] has a key that is no dotted path"):
        find_space(write(tmp_path, "SPACE = {1: tune.uniform(0, 1)}"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("METRIC = 'accuracy'", "METRIC is 'accuracy', which validation does not report; known: top1, top5, val_loss"),
        ("METRIC = 'loss'", "METRIC is 'loss', which validation does not report; did you mean val_loss?"),
        ("METRIC = ['top1']", "METRIC is ['top1']"),
        ("MODE = 'min'", "MODE is 'min', but the best top1 is the maximum: leave MODE out"),
        ("METRIC = 'val_loss'\nMODE = 'max'", "MODE is 'max', but the best val_loss is the minimum: leave MODE out"),
        ("MODE = 'maximise'", "MODE is 'maximise', but the best top1 is the maximum"),
        ("METRICS = 'val_loss'", "METRICS has no effect; did you mean METRIC"),
        ("METRICE = 'val_loss'", "METRICE has no effect; did you mean METRIC"),
        ("metric = 'val_loss'", "metric has no effect: write METRIC"),
        ("NUMSAMPLES = 4", "NUMSAMPLES has no effect: write NUM_SAMPLES"),
        ("numSamples = 4", "numSamples has no effect: write NUM_SAMPLES"),
        ("NUM_SAMPLES = 0", "NUM_SAMPLES is 0, but must be a whole number of at least 1"),
        ("NUM_SAMPLES = -1", "NUM_SAMPLES is -1"),
        ("NUM_SAMPLES = '8'", "NUM_SAMPLES is '8'"),
        ("NUM_SAMPLES = 2.5", "NUM_SAMPLES is 2.5"),
        ("NUM_SAMPLES = True", "NUM_SAMPLES is True"),
        ("SEARCHER = 'bayes'", "SEARCHER is 'bayes'; known: grid, optuna, random"),
        ("SEARCHER = None", "SEARCHER is None"),
        ("SCHEDULER = 'ahsa'", "SCHEDULER is 'ahsa'; did you mean asha?"),
        ("SCHEDULER_OPTIONS = {'interval': 2}", "SCHEDULER fifo has no option 'interval'; it has none: set SCHEDULER"),
        ("SCHEDULER = 'pbt'\nSCHEDULER_OPTIONS = {'intervall': 2}", "no option 'intervall'; did you mean interval?"),
        ("SCHEDULER = 'pbt'\nSCHEDULER_OPTIONS = 2", "SCHEDULER_OPTIONS is 2, but must be a dictionary"),
        *(
            (
                f"SCHEDULER = {name!r}\nSCHEDULER_OPTIONS = {{{option!r}: {value}}}",
                f"OPTIONS[{option!r}] is {value}, but",
            )
            for name, option, values in (
                ("pbt", "interval", (0, "'2'", 1.5, True)),
                ("pbt", "quantile", (0.6, -0.1, None)),
                ("asha", "grace_period", (0, 0.5)),
                ("asha", "reduction_factor", (1, 0, "'3'")),  # 1 would never reach the last epoch
            )
            for value in values
        ),
    ],
)
def test_settings_that_are_wrong_or_read_by_nobody_are_refused(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        find_space(write(tmp_path, WEIGHT + line))
    assert f"{tmp_path}/mine.py: " in str(error.value) and complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_space_may_say_besides(tmp_path: Path) -> None:
    own = "import math\nRATES = [1]\nEPOCHS = 3\nlow = 0\n"
    space = find_space(write(tmp_path, f"{own}{WEIGHT}METRIC = 'top5'\nMODE = 'max'"))
    assert (space.metric, space.mode, space.num_samples, space.searcher, space.scheduler) == (
        *("top5", "max"),
        *(16, "random", "fifo"),
    )


def test_the_direction_follows_from_the_metric(tmp_path: Path) -> None:
    for metric, mode in METRICS.items():
        space = find_space(write(tmp_path, f"{WEIGHT}METRIC = {metric!r}"))
        assert space.mode == mode == ("min" if "loss" in metric else "max")
        best, worst = (1.0, 2.0) if mode == "min" else (2.0, 1.0)
        assert space.better(best) > space.better(worst) > space.better(math.nan)
        assert space.better(worst) > space.better(math.inf) and space.better(worst) > space.better(-math.inf)
        lost = space.comparable({metric: math.nan, "epoch": 1})
        assert space.better(worst) > space.better(lost[metric]) and lost["epoch"] == 1
        assert space.comparable({metric: worst}) == {metric: worst} and space.comparable({"failed": "x"}) == {
            "failed": "x"
        }


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


@pytest.mark.parametrize(
    ("domain", "ends", "step"),
    [
        (tune.qrandint(128, 512, 128), (128, 512), 128),  # Ray takes the upper end in, where randint leaves it out
        (tune.qrandint(100, 600, 128), (128, 512), 128),
        (tune.qlograndint(64, 512, 64), (64, 512), 64),
        (tune.qrandint(2, 6, 1), (2, 5), 1),
        (tune.quniform(-1, 1, 0.25), (-1, 1), 0.25),
        (tune.qloguniform(0.5, 4, 0.5), (0.5, 4), 0.5),
    ],
)
def test_quantised_values_are_multiples_between_the_ends_and_reach_both(
    domain: Any, ends: tuple[float, float], step: float
) -> None:
    values = {at(domain, share) for share in np.linspace(0, 1, 2000, endpoint=False)}
    assert (min(values), max(values)) == ends
    assert all(value % step == 0 for value in values)
    assert len(values) == round((ends[1] - ends[0]) / step) + 1
    assert {type(value) for value in values} == {int if isinstance(domain.lower, int) and step >= 1 else float}


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
