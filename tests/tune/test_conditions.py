"""Dimensions that do nothing in a configuration: neither drawn, nor counted, whoever draws."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from tests.tune.test_space import SPACES, write
from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.terminal.errors import UserError
from tt_ray.tune.journal import Journal, Record
from tt_ray.tune.runner import Suggestions
from tt_ray.tune.schedulers import options_of
from tt_ray.tune.search import Arguments, Search
from tt_ray.tune.space import (
    Space,
    Values,
    apply,
    check_space,
    drawn_in_vain,
    find_space,
    grid_points,
    identity,
    random_points,
)

HEADS = """
SPACE = {
    'head.depth': tune.choice([2, 3]),
    'head.kind': tune.choice(['linear', 'mlp']),
    'head.hidden_dim': tune.choice([64, 128]),
    'head.out_dim': tune.choice([0, 32]),
}
WHEN = {'head.hidden_dim': {'head.kind': 'mlp'}, 'head.depth': {'head.kind': ['mlp']}}
"""
NESTED = """
SPACE = {
    'text.temperature': tune.choice([0.1, 1.0]),
    'text.loss': tune.choice(['clip', 'cos']),
    'text.balance': tune.choice([True, False]),
    'text.weight': tune.uniform(0, 1),
}
WHEN = {'text.temperature': {'text.loss': 'clip'}, 'text.loss': {'text.balance': True}}
"""


def heads(folder: Path) -> Space:
    return find_space(write(folder, HEADS))


def right(values: Values) -> bool:
    """Of HEADS."""
    deep = {"head.depth", "head.hidden_dim"}
    return (values.keys() & deep) == (deep if values["head.kind"] == "mlp" else set())


def test_only_what_does_something_is_drawn(tmp_path: Path) -> None:
    space = heads(tmp_path)
    points = random_points(space, 10)
    assert len(points) == 10 and all(right(values) for values in points)
    assert random_points(space, 4) == points[:4]
    grid = list(grid_points(space))
    assert len(grid) == 2 + 2 * 2 * 2 and all(right(values) for values in grid), "not 16"
    assert {identity(values) for values in points} == {identity(values) for values in grid}, "each of them once"
    assert list(grid[-1]) == list(space.domains), "in the order of the space"


def test_a_space_that_has_no_more_is_drawn_to_its_end(tmp_path: Path) -> None:
    assert len(random_points(heads(tmp_path), 16)) == 10
    assert len(random_points(heads(tmp_path), 16, distinct=False)) == 16


def test_conditions_may_depend_on_conditions(tmp_path: Path) -> None:
    for values in random_points(find_space(write(tmp_path, NESTED)), 40):
        assert ("text.loss" in values) == values["text.balance"]
        assert ("text.temperature" in values) == (values.get("text.loss") == "clip")


@pytest.mark.parametrize(
    ("when", "complaint"),
    [
        ("'mlp'", "WHEN is 'mlp', but must be a dictionary"),
        ("{'head.size': {'head.kind': 'mlp'}}", "WHEN['head.size'] is about nothing in SPACE; did you mean head.kind"),
        ("{'head.dept': {'head.kind': 'mlp'}}", "WHEN['head.dept'] is about nothing in SPACE; did you mean head.depth"),
        ("{'head.depth': 'mlp'}", "WHEN['head.depth'] is 'mlp', but must be a dictionary, such as {'head.kind'"),
        ("{'head.depth': {}}", "WHEN['head.depth'] is {}, but must be a dictionary"),
        ("{'head.depth': {'head.kind': 'mpl'}}", "asks for head.kind 'mpl', but SPACE draws 'linear', 'mlp' alone"),
        ("{'head.depth': {'head.kind': ['mlp', 'x']}}", "['mlp', 'x'], but SPACE draws 'linear', 'mlp' alone"),
        ("{'head.depth': {'head.kind': []}}", "asks for head.kind [], which no value is: leave the dimension out"),
        ("{'head.depth': {'head.hidden_dim': range(9)}}", "range(0, 9), but SPACE draws 64, 128 alone"),
        ("{'head.kind': {'text.weight': 0.5}}", "text.weight 0.5, of which SPACE draws a range: a condition needs a"),
        ("{'head.kind': {'head.kind': 'mlp'}}", "WHEN goes in a circle: head.kind needs head.kind"),
        (
            "{'head.depth': {'head.kind': 'mlp'}, 'head.kind': {'head.hidden_dim': 64}, "
            "'head.hidden_dim': {'head.depth': 2}}",
            "WHEN goes in a circle: head.depth needs head.kind needs head.hidden_dim needs head.depth",
        ),
        ("{'head.depth': {'head.knd': 'mlp'}}", "WHEN['head.depth']: no field head.knd; did you mean head.kind"),
        ("{'head.depth': {'text.loss': 'clap'}}", "WHEN['head.depth']: text.loss is 'clap'"),
        ("{'head.depth': {'head.freeze': 'no'}}", "asks for head.freeze 'no', which is read as False: write that"),
        ("{'head.depth': {'text.max_missing': ['0.5']}}", "text.max_missing '0.5', which is read as 0.5: write that"),
        ("{'head.depth': {'text.max_missing': 2}}", "WHEN['head.depth']: text.max_missing is 2"),
    ],
)
def test_a_condition_that_cannot_be_is_refused_in_one_line(tmp_path: Path, when: str, complaint: str) -> None:
    text = HEADS.partition("WHEN")[0].replace("SPACE = {", "SPACE = {'text.weight': tune.uniform(0, 1),")
    with pytest.raises(UserError) as error:
        check_space(find_space(write(tmp_path, f"{text}WHEN = {when}")), RECIPES["shapes_textteacher"]())
    assert complaint in str(error.value) and "mine" in str(error.value) and "\n" not in str(error.value)


def test_values_are_checked_beside_those_that_they_need(tmp_path: Path) -> None:
    """A temperature is an error beside the base's own loss, which has none."""
    base = RECIPES["shapes_textteacher"]().override("text.loss", "l2")
    check_space(find_space(write(tmp_path, NESTED)), base)
    with pytest.raises(UserError, match=r"text.loss l2 has no text.temperature"):
        check_space(find_space(write(tmp_path, NESTED.partition("WHEN")[0])), base)


def test_fields_that_are_not_searched_count_as_they_are(tmp_path: Path) -> None:
    base = Config().override("head.kind", "mlp")
    text = "SPACE = {'head.depth': tune.choice([2, 3]), 'text.negatives': tune.choice(['global', 'local'])}\n"
    text += "WHEN = {'head.depth': {'head.kind': 'mlp'}, 'text.negatives': {'run.num_workers': range(2, 100)}}"
    space = find_space(write(tmp_path, text))
    found, notes = space.on(base)
    assert (list(found.domains), found.when) == (["head.depth"], {})
    assert notes == ["text.negatives is not searched: it does nothing with run.num_workers 1"]
    assert list(space.on(base.override("run.num_workers", 2))[0].domains) == list(space.domains)
    with pytest.raises(UserError, match="search space mine: nothing is left: head.depth is not searched"):
        space.on(base.override("head.kind", "linear"))


def test_what_depends_on_a_field_that_does_nothing_does_nothing(tmp_path: Path) -> None:
    space = find_space(write(tmp_path, NESTED.replace("{'text.balance': True}", "{'data.mixup': 0.5}")))
    found, notes = space.on(Config())
    assert list(found.domains) == ["text.balance", "text.weight"]
    assert {note.rpartition(" with ")[2] for note in notes} == {"data.mixup 0.0"}


def test_a_command_searches_negatives_with_several_workers_alone() -> None:
    for workers, there in ((1, False), (2, True)):
        search = Search(
            Arguments("joint", workers_per_trial=workers), RECIPES["shapes_textteacher"](), find_space("joint")
        )
        search.check()
        assert ("text.negatives" in search.space.domains) == there
        assert any("text.negatives is not searched" in note for note in search.notes) != there
        assert ("'clip'" in search.settings["space"].get("text.negatives", "")) == there


def test_what_is_drawn_where_it_does_nothing_is_noted(tmp_path: Path) -> None:
    space, base = find_space(write(tmp_path, HEADS.partition("WHEN")[0])), Config()
    notes = drawn_in_vain(space, base)
    assert [note.partition(" ")[0] for note in notes] == ["head.depth", "head.hidden_dim"]
    assert all("does nothing with head.kind linear, and is drawn all the same (" in note for note in notes)
    assert not drawn_in_vain(heads(tmp_path), base), "WHEN says so"
    weights = find_space(
        write(tmp_path, "SPACE = {'text.weight': tune.choice([0, 0.5]), 'text.loss': tune.choice(['clip', 'cos'])}")
    )
    assert [note.partition(", and")[0] for note in drawn_in_vain(weights, base)] == [
        "text.loss does nothing with text.weight 0.0"
    ]


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("SPACE = {'head.depth': tune.choice([2, 3])}", {}),
        ("SPACE = {'text.loss': tune.choice(['clip', 'cos'])}", {"text.weight": 0.0}),
    ],
)
def test_a_search_of_one_configuration_is_refused(tmp_path: Path, text: str, changes: dict[str, Any]) -> None:
    name = write(tmp_path, text)
    search = Search(Arguments(name), Config().override(changes), find_space(name))
    with pytest.raises(UserError, match="search space mine: no dimension does anything: .* does nothing with"):
        search.check()


@pytest.mark.parametrize("name", SPACES)
def test_the_spaces_draw_what_the_configuration_takes(name: str) -> None:
    base = RECIPES["shapes_textteacher"]()
    space, _ = find_space(name).on(base)
    for values in random_points(space, 60):
        apply(base, values)
    assert not drawn_in_vain(space, base), "WHEN says what does nothing"


def test_a_population_has_no_conditions(tmp_path: Path) -> None:
    text = "SPACE = {'text.weight': tune.uniform(0, 1), 'text.balance': tune.choice([True, False])}\n"
    space = find_space(write(tmp_path, f"{text}WHEN = {{'text.weight': {{'text.balance': True}}}}"))
    with pytest.raises(UserError, match="--scheduler pbt changes all values at any time, whatever WHEN says"):
        options_of(space, "pbt", 4)
    options_of(find_space(write(tmp_path, text)), "pbt", 4)


def search_of(folder: Path, text: str, **given: Any) -> Search:
    name = write(folder, text)
    search = Search(Arguments(name, out=folder / "out", **given), RECIPES["shapes_textteacher"](), find_space(name))
    search.check()
    search.journal = Journal(folder)
    return search


@pytest.mark.parametrize("searcher", ["random", "grid"])
def test_a_search_has_no_configuration_twice_and_says_when_there_are_no_more(tmp_path: Path, searcher: str) -> None:
    search = search_of(tmp_path, HEADS, searcher=searcher, num_samples=16)
    jobs = search._jobs()
    assert jobs.of == jobs.left == 10
    if searcher == "random":
        assert "the space has 10 different configurations, not 16" in search.notes
    before = list(search.journal.records)
    again = search_of(tmp_path, HEADS, searcher=searcher, num_samples=16)
    assert again._jobs().of == 10 and list(again.journal.records) == before


def test_a_search_of_before_is_resumed_without_what_it_had_twice(tmp_path: Path) -> None:
    """Its journal has equal configurations, of a time when these were drawn."""
    text = "SPACE = {'text.balance': tune.choice([True, False]), 'text.schedule': tune.choice(['const', 'cos', 'lin'])}"
    search = search_of(tmp_path, text, num_samples=8)
    drawn = random_points(search.space, 4, distinct=False)
    for values in [*drawn, drawn[0]]:
        search._add(values)
    before = len(search.journal.records)
    search._jobs()
    new = [identity(record.values) for record in list(search.journal.records.values())[before:]]
    assert 1 <= len(new) <= 8 - before and not {*new} & {identity(values) for values in drawn}
    assert len(set(new)) == len(new)


class Asked:
    """Optuna's trials as a command runs them; the value of a configuration is `score`."""

    def __init__(self, space: Space, of: int, records: list[Record] | None = None) -> None:
        self.records = records or []
        self.suggestions = Suggestions(space, self.records, of, self.add)
        self.names = itertools.count()

    def add(self, values: Values) -> Record:
        record = Record(f"t{len(self.records)}", "search", values, [0])
        self.records.append(record)
        return record

    def run(self, count: int, score: Any) -> int:
        """Runs so many trials, or as many as there are; returns their number."""
        for done in range(count):
            name = str(next(self.names))
            job = self.suggestions.suggest(name)
            if job == Searcher.FINISHED:
                return done
            record = self.suggestions.running[name]
            record.reports.append({"top1": score(record.values), "values": record.values, "epoch": 1})
            record.status = "done"
            self.suggestions.on_trial_complete(name, record.reports[-1])
        return count


def test_optuna_is_asked_and_told_only_what_does_something(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = heads(tmp_path)
    asked = Asked(space, 16)
    assert asked.run(16, lambda values: values.get("head.depth", 0)) == 10, "there are no more"
    assert all(right(record.values) for record in asked.records)
    assert len({identity(record.values) for record in asked.records}) == 10
    told = [trial for trial in asked.suggestions.study.trials if trial.value is not None]
    assert all(right(trial.params) for trial in told) and asked.suggestions.study.best_value == 3

    again = Asked(space, 16, asked.records)
    assert again.run(6, lambda _: 0) == 0, "those of an earlier command are known"
    assert len(again.suggestions.study.trials) >= 10


def test_optuna_finds_the_best_of_a_conditional_space(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text = NESTED.replace("tune.choice([0.1, 1.0])", "tune.loguniform(0.01, 1.0)")
    asked = Asked(find_space(write(tmp_path, text)), 60)
    assert asked.run(60, lambda values: -abs(values.get("text.temperature", 9.0) - 0.1)) == 60
    late = [record.values for record in asked.records[-20:]]
    assert sum("text.temperature" in values for values in late) > 10
    assert asked.suggestions.study.best_value > -0.03
    assert Asked(find_space(write(tmp_path, text)), 61, asked.records).run(1, lambda _: 0) == 1, "all can be told again"


def test_a_search_with_another_condition_is_another_search(tmp_path: Path) -> None:
    first, other = (search_of(tmp_path, text).settings for text in (HEADS, HEADS.partition("WHEN")[0]))
    assert first["space"].keys() == other["space"].keys() and first["space"] != other["space"]
    assert first["space"]["head.depth"] == "[2, 3] when head.kind in 'mlp'"
    assert other["space"]["head.depth"] == "[2, 3]", "as before there were conditions: such a search resumes"
    json.dumps(first)
