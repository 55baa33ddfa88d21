"""Whoever compares trials agrees on which way is better, whatever the metric; NaN loses either way."""

import json
import math
from pathlib import Path

import pytest
from ray import tune
from ray.tune.experiment import Trial

from tests.toy import toy_config
from tests.tune.test_schedulers import Controller, trial
from tt_ray.tune.journal import Journal, Record
from tt_ray.tune.live_table import best_first, table, winner
from tt_ray.tune.results import margin, no_worse, which_are_worse, write_results
from tt_ray.tune.runner import Suggestions
from tt_ray.tune.schedulers import options_of, search_scheduler
from tt_ray.tune.space import METRICS, TOP5_CLASSES, Space

WEIGHT = {"text.weight": tune.uniform(0, 1)}
BEST = {"top1": 60.0, "top5": 90.0, "val_loss": 0.5}
WORST = {"top1": 40.0, "top5": 70.0, "val_loss": 1.5}


@pytest.fixture(params=METRICS)
def space(request: pytest.FixtureRequest) -> Space:
    return Space("mine", "?", WEIGHT, request.param)


def add(
    journal: Journal, name: str, space: Space, values: list[float], phase: str = "search", weight: float = 0.5
) -> Record:
    """A trial at its end, with a value for each seed."""
    record = journal.add(name, phase, {"text.weight": weight}, list(range(len(values))))
    seeds = {str(seed): {space.metric: value} for seed, value in enumerate(values)}
    about = {"epoch": 1, "generation": 0, "at": 0.0, "seconds": 1.0, "values": record.values}
    journal.report(name, {space.metric: sum(values) / len(values), "seeds": seeds, **about})
    journal.end(name, "done")
    return record


def test_the_table_has_all_that_validation_reports() -> None:
    import torch

    from tt_ray.data.loader import EvalBatches
    from tt_ray.data.prepare import open_images
    from tt_ray.models.classifier import build_model, mixed_precision
    from tt_ray.training.validation import validate

    found = set[str]()
    for label in ("shape", "count"):
        config = toy_config(Path("unused"), "shapes_baseline", data__shapes__label=label)
        _, val, _ = open_images(config)
        model, device = build_model(config, len(val.classes), 0), torch.device("cpu")
        batches = EvalBatches(val, config, 0, 1)
        scores = validate(model, batches, config, device, mixed_precision(device, "fp32"))
        assert ("top5" in scores) == (len(val.classes) >= TOP5_CLASSES)
        found |= set(scores)
    assert found - {"val_images"} == set(METRICS)


def test_the_winner_has_the_best_value_and_nan_never_wins(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    for name, value in (("nan", math.nan), ("worst", WORST[space.metric]), ("inf", math.inf)):
        add(journal, name, space, [value])
    add(journal, "best", space, [BEST[space.metric]])
    records = Journal(tmp_path).of("search")
    assert [record.name for record in best_first(records, space)][:2] == ["best", "worst"]
    found = winner(records, space)
    assert found is not None and found.name == "best"
    assert winner([record for record in records if record.name in ("nan", "inf")], space) is None
    assert winner([], space) is None
    assert table(records, space).row_count == 4


def test_nan_does_not_win_because_it_came_to_its_end(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    add(journal, "nan", space, [math.nan])
    add(journal, "stopped", space, [WORST[space.metric]])
    journal.end("stopped", "stopped")
    found = winner(journal.of("search"), space)
    assert found is not None and found.name == "stopped"


@pytest.mark.parametrize("lost", ["worst", "nan"])
def test_asha_ends_the_worst_trial(space: Space, lost: str) -> None:
    scheduler = search_scheduler(space, "asha", options_of(space, "asha", 9), 9, [])
    last = WORST[space.metric] if lost == "worst" else math.nan
    decided = []
    for name, value in (("a", BEST[space.metric]), ("b", BEST[space.metric]), ("last", last)):
        each = trial(name)
        scheduler.on_trial_add(Controller(), each)
        decided.append(scheduler.on_trial_result(Controller(), each, {"epoch": 1, space.metric: value}))
    assert decided == ["CONTINUE", "CONTINUE", "STOP"]
    again = trial("later")
    scheduler.on_trial_add(Controller(), again)
    better = {"epoch": 1, space.metric: BEST[space.metric]}
    assert scheduler.on_trial_result(Controller(), again, better) == "CONTINUE", "NaN left the rung usable"


def test_asha_after_a_restart_ends_the_worst_trial(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    for name, value in (("a", BEST[space.metric]), ("b", BEST[space.metric]), ("nan", math.nan)):
        add(journal, name, space, [value])
    scheduler = search_scheduler(space, "asha", options_of(space, "asha", 9), 9, journal.of("search"))
    each = trial("last")
    scheduler.on_trial_add(Controller(), each)
    row = {"epoch": 1, space.metric: WORST[space.metric]}
    assert scheduler.on_trial_result(Controller(), each, row) == "STOP"


@pytest.mark.parametrize("lost", ["worst", "nan"])
def test_a_population_goes_on_from_the_best(space: Space, lost: str) -> None:
    good, bad = trial("good"), trial("bad")
    controller = Controller(good, bad)
    scheduler = search_scheduler(space, "pbt", {"interval": 1, "quantile": 0.5}, 4, [])
    last = WORST[space.metric] if lost == "worst" else math.nan
    for each in (good, bad):
        scheduler.on_trial_add(controller, each)
    rows: list[tuple[Trial, int, float]] = [(bad, 1, last), (good, 1, BEST[space.metric])]
    rows += [(good, 2, BEST[space.metric]), (bad, 2, last)]
    for each, epoch, value in rows:
        scheduler.on_trial_result(controller, each, {"epoch": epoch, space.metric: value, "finished": False})
    assert controller.paused == [bad], "it takes the good one's checkpoint, and the good one stays"


def test_optuna_is_told_the_direction_and_that_nan_is_the_worst(tmp_path: Path, space: Space) -> None:
    pytest.importorskip("optuna")
    journal = Journal(tmp_path)
    for name, value in (("nan", math.nan), ("best", BEST[space.metric]), ("worst", WORST[space.metric])):
        add(journal, name, space, [value])
    new = journal.add("new", "search", {"text.weight": 0.1}, [0])
    suggestions = Suggestions(space, journal.of("search"), 6, lambda values: new)
    job = suggestions.suggest("id")["job"]
    assert job["name"] == "new"
    suggestions.on_trial_complete("id", {space.metric: math.nan})
    study = suggestions.study
    assert study.direction.name == ("MINIMIZE" if space.mode == "min" else "MAXIMIZE")
    assert study.best_value == BEST[space.metric]
    ranked = sorted((each.value for each in study.trials if each.value is not None), reverse=space.mode == "max")
    assert ranked[:2] == [BEST[space.metric], WORST[space.metric]]
    assert all(math.isfinite(value) for value in ranked)


@pytest.mark.parametrize("gain", [1, -1])
def test_the_margin_is_positive_where_the_winner_is_better(tmp_path: Path, space: Space, gain: int) -> None:
    journal = Journal(tmp_path)
    best = add(journal, "t000", space, [BEST[space.metric]])
    values = (BEST, WORST) if gain > 0 else (WORST, BEST)
    for seed in range(3):
        for name, value, step in (("final-t000", values[0], 1e-3), ("final-base", values[1], 2e-3)):
            add(journal, f"{name}-{seed}", space, [value[space.metric] + step * seed], "final")
    found = margin(journal, space, best)
    assert found is not None and all(each * gain > 0 for each in found.gains)
    says = "is more than noise." if gain > 0 else "the best configuration is worse than the base recipe."
    assert found.sentence().endswith(says)
    assert ("lower val_loss is better" in found.sentence()) == (space.metric == "val_loss")


def test_a_small_margin_of_losses_has_figures(tmp_path: Path) -> None:
    space, journal = Space("mine", "?", WEIGHT, "val_loss"), Journal(tmp_path)
    best = add(journal, "t000", space, [0.5])
    for seed in range(2):
        add(journal, f"final-t000-{seed}", space, [0.1234 + 2e-4 * seed], "final")
        add(journal, f"final-base-{seed}", space, [0.1248 + 4e-4 * seed], "final")
    found = margin(journal, space, best)
    assert found is not None and "+0.0015 ± 0.0001" in found.sentence()


def test_equal_gains_say_nothing_of_noise(tmp_path: Path) -> None:
    space, journal = Space("mine", "?", WEIGHT, "val_loss"), Journal(tmp_path)
    best = add(journal, "t000", space, [0.5])
    for seed in range(2):
        add(journal, f"final-t000-{seed}", space, [0.1234], "final")
        add(journal, f"final-base-{seed}", space, [0.1248], "final")
    found = margin(journal, space, best)
    assert found is not None and "+0.0014 with each of 2 seeds, which says nothing about noise" in found.sentence()


def test_what_is_worse_is_judged_from_the_best(tmp_path: Path, space: Space) -> None:
    journal, step = Journal(tmp_path), 1e-3
    for number, (name, value) in enumerate((("worst", WORST), ("near", BEST), ("best", BEST))):
        add(journal, name, space, [value[space.metric] + step * each for each in range(3)], weight=0.1 * number)
    found = no_worse(journal.of("search"), space)
    assert found is not None and {record.name for record in found.trials} == {"near", "best"}
    assert [record.name for record in found.worse] == ["worst"]
    assert which_are_worse(journal.of("search"), space) == "1 of 3 trials is worse than the best, 1 may be as good"


def test_noise_counts_all_that_were_tried_and_each_of_them_once(tmp_path: Path, space: Space) -> None:
    """Two that came to their end, out of two, of twelve, and of twelve trials of two configurations."""
    distances: dict[str, float] = {}
    for case in ("two", "twelve", "twice"):
        (tmp_path / case).mkdir()
        journal = Journal(tmp_path / case)
        for number in range(2 if case == "two" else 12):
            weight = 0.01 * (number % 2 if case == "twice" else number)
            add(journal, f"t{number}", space, [50.0 - number, 51.0 - number], weight=weight)
            if number > 1:
                journal.end(f"t{number}", "stopped")
        found = no_worse(journal.of("search"), space)
        assert found is not None and len(found.trials) + len(found.worse) == 2
        distances[case] = found.distance
    assert distances["two"] == distances["twice"] < 0.5 * distances["twelve"]


def test_with_one_seed_nothing_can_be_said(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    for name, value in (("best", BEST), ("worst", WORST)):
        add(journal, name, space, [value[space.metric]], weight=value["top1"] / 100)
    records = journal.of("search")
    assert no_worse(records, space) is None
    assert which_are_worse(records, space).startswith("nothing can be said about which trials differ: with one seed")
    printed = write_results(tmp_path, space, toy_config(tmp_path), journal, winner(records, space), [])
    assert "pass at least two --seeds" in printed
    assert "Nothing can be said about which trials differ" in (tmp_path / "summary.md").read_text()


def test_seeds_that_agree_show_no_noise_and_make_no_trial_worse(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    for name, value in (("best", BEST), ("worst", WORST)):
        add(journal, name, space, [value[space.metric]] * 3, weight=value["top1"] / 100)
    records = journal.of("search")
    assert no_worse(records, space) is None
    assert which_are_worse(records, space).startswith("nothing can be said about which trials differ: all seeds of ea")
    write_results(tmp_path, space, toy_config(tmp_path), journal, winner(records, space), [])
    assert "all seeds of each are equal, which shows no noise" in (tmp_path / "summary.md").read_text()


def test_before_a_trial_has_finished_nothing_can_be_said(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    add(journal, "early", space, [1.0, 2.0])
    journal.end("early", "stopped")
    assert "before one has finished" in which_are_worse(journal.of("search"), space)
    add(journal, "done", space, [1.0, 2.0], weight=0.2)
    assert "nothing to compare it with" in which_are_worse(journal.of("search"), space)
    add(journal, "nan", space, [math.nan, 1.0], weight=0.3)
    assert "nothing to compare it with" in which_are_worse(journal.of("search"), space)


def test_what_a_search_leaves_behind_is_about_the_winner(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    for name, value, weight in (("nan", math.nan, 0.1), ("worst", WORST[space.metric], 0.2), ("inf", math.inf, 0.3)):
        add(journal, name, space, [value], weight=weight)
    best = add(journal, "best", space, [BEST[space.metric]], weight=0.75)
    base = toy_config(tmp_path)
    printed = write_results(tmp_path, space, base, journal, winner(journal.of("search"), space), [])
    assert f"best: best (text.weight 0.75), {space.metric} {space.shown(BEST[space.metric])} on" in printed
    assert "weight: 0.75" in (tmp_path / "best.yaml").read_text()
    summary = (tmp_path / "summary.md").read_text()
    assert "| text.weight | 0.75 |" in summary
    rows = [line.split(" | ")[0] for line in summary.splitlines() if line.startswith("| ") and "epochs" not in line]
    assert rows.index("| best") < rows.index("| worst") < rows.index("| nan")
    assert ("lower is better" in summary) == (space.metric == "val_loss")
    assert best.last(space.metric) == BEST[space.metric]


def test_a_seed_that_diverged_is_in_the_summary_and_makes_no_margin(tmp_path: Path, space: Space) -> None:
    journal = Journal(tmp_path)
    best = add(journal, "best", space, [BEST[space.metric], BEST[space.metric] + 1e-3])
    add(journal, "half", space, [WORST[space.metric], math.nan], weight=0.2)
    for seed, value in enumerate((BEST[space.metric], math.nan)):
        add(journal, f"final-best-{seed}", space, [value], "final")
        add(journal, f"final-base-{seed}", space, [WORST[space.metric]], "final")
    printed = write_results(tmp_path, space, toy_config(tmp_path), journal, winner(journal.of("search"), space), [])
    assert f"There is no margin: a final training ended with {space.metric} that is no finite number." in printed
    assert "nan ± nan |" in (tmp_path / "summary.md").read_text()
    assert margin(journal, space, best) is not None


def test_nan_survives_the_journal(tmp_path: Path) -> None:
    space, journal = Space("mine", "?", WEIGHT, "top1"), Journal(tmp_path)
    add(journal, "nan", space, [math.nan])
    assert math.isnan(Journal(tmp_path).records["nan"].last("top1") or 0.0)
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])["trial"] == "nan"
