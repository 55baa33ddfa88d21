"""The comparison at toy size, in this process: what is trained, what is kept, and what the table says."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.evaluate import Arguments as EvalArguments
from eval.jobs.results import write_result
from tests.eval.sample_results import Job, finish
from tests.toy import run_toy, toy_config
from tt_ray.compare import comparison, step_times, transfer
from tt_ray.compare.__main__ import main
from tt_ray.compare.arms import Arm, check, configure, read_arms
from tt_ray.compare.comparison import compare
from tt_ray.compare.epoch_times import epochs_in_time, ratios_of_runs, ratios_of_turns
from tt_ray.compare.runs import step_seconds, train_arms
from tt_ray.compare.table import FinishedRun, arm_figure, steps_apart, summarise
from tt_ray.config import Config
from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.store import open_store
from tt_ray.terminal.command import read_arguments
from tt_ray.terminal.errors import UserError
from tt_ray.training.same_data import keep_data, open_record

SHAPES = "baseline=shapes_baseline"


def toy_arms(storage: Path) -> list[Arm]:
    return [Arm(name, toy_config(storage, f"shapes_{name}")) for name in ("baseline", "textteacher")]


def made_up(seconds: dict[str, list[float]]) -> list[FinishedRun]:
    pairs = [(arm, seed) for seed in range(2) for arm in seconds]
    return [FinishedRun(arm, seed, 10, 20, 50.0 + seed, seconds[arm][seed], 9.0, "") for arm, seed in pairs]


def test_arms_train_for_the_same_epochs_then_for_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "ratios_of_runs", lambda runs: {"baseline": [1.0, 1.0], "textteacher": [1.5, 1.7]})
    trained: list[str] = []

    def train(config: Config) -> None:
        trained.append(config.run.name)
        run_toy(config)

    out, arms = tmp_path / "out", toy_arms(tmp_path)
    text = compare(arms, [0, 1], out, train=train)
    same = ["baseline-2-0", "textteacher-2-0", "baseline-2-1", "textteacher-2-1"]
    assert trained == [*same, "textteacher-1-0", "textteacher-1-1"], "2 / 1.6 epochs; the baseline's are those it has"
    top1 = {name: json.loads((out / "runs" / name / "result.json").read_text())["top1"] for name in trained}
    tree = json.loads((out / "compare.json").read_text())
    taught = tree["arms"][1]
    assert (taught["time_per_epoch"], taught["epochs_same_time"]) == (pytest.approx(1.6), 1)
    for key, names in (("top1", same[1::2]), ("top1_same_time", trained[4:])):
        values, base = ([top1[name] for name in each] for each in (names, same[::2]))
        assert taught[f"{key}_mean"] == pytest.approx(np.mean(values))
        assert taught[f"{key}_std"] == pytest.approx(np.std(values, ddof=1))
        assert taught[f"{key}_difference"] == pytest.approx(np.mean(np.subtract(values, base)))
        assert taught[f"{key}_difference_std"] == pytest.approx(np.std(np.subtract(values, base), ddof=1))
    assert "A claim needs at least 5 seeds; each arm's 2 seeds" in text
    assert all(f"- {each}" in text for each in tree["claims"]) and len(tree["claims"]) == 3
    assert "text.weight 0.5 (0.0)" in text and "differ by up to 0.20 from seed to seed: --interleave 40" in text
    assert text == (out / "compare.md").read_text()
    assert len((out / "compare.csv").read_text().splitlines()) == 3

    before = {path: path.read_bytes() for path in out.glob("compare.*")}
    (out / "runs" / "textteacher-2-1" / "result.json").unlink()  # as if killed before its end
    trained.clear()
    compare(arms, [0, 1], out, train=train)
    assert trained == ["textteacher-2-1"]
    kept = {path: path.read_bytes() for path in before if path.suffix != ".json"}
    assert kept == {path: content for path, content in before.items() if path.suffix != ".json"}
    with pytest.raises(UserError, match="was trained with optim.lr .*now .*: choose another --out"):
        compare([Arm("baseline", arms[0].config.override("optim.lr", 0.5)), arms[1]], [0], out, train=train)


def test_finished_runs_are_kept_while_the_data_are_theirs(tmp_path: Path) -> None:
    def train(config: Config) -> None:
        run_toy(config)
        keep_data(config.run_dir, open_record(config), [])

    arms, out = toy_arms(tmp_path), tmp_path / "out"
    epochs = {arm.name: 2 for arm in arms}
    train_arms(arms, [0], epochs, out, train)
    kept = train_arms(arms, [0], epochs, out, lambda config: pytest.fail("trained again"))
    assert [run.arm for run in kept] == ["baseline", "textteacher"]
    store = Path(arms[1].config.text.embeddings)
    ids = open_store(store).ids
    shutil.rmtree(store)
    write_store(store, ids, [np.ones((len(ids), 3), np.float32)], 3, "float32", {"id": "x", "revision": "1"})
    with pytest.raises(UserError, match="textteacher-2-0 was begun on other data: captions or embedding store differ"):
        train_arms(arms, [0], epochs, out, train)


def test_whole_epochs_that_fit() -> None:
    assert epochs_in_time(14, 1.0) == 14
    assert epochs_in_time(300, 1.55) == 193
    assert epochs_in_time(14, 30.0) == 1
    for relative in np.linspace(0.8, 3, 50):
        epochs = epochs_in_time(90, relative)
        assert epochs * relative <= 90 * (1 + 1e-9) < (epochs + 1) * relative + 1e-6


def test_a_slow_machine_does_not_count_against_the_arm_that_meets_it() -> None:
    ratios = ratios_of_runs(made_up({"base": [1.0, 7.0], "slower": [1.2, 8.4]}))
    assert ratios["base"] == [1.0, 1.0] and ratios["slower"] == pytest.approx([1.2, 1.2])


def test_steps_are_timed_by_their_median_and_the_first_reading_is_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"kind": "step", "step": 0}]
    rows += [{"kind": "step", "step": i, "images_per_s": rate} for i, rate in enumerate((1.0, 32.0, 64.0, 16.0), 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert step_seconds(tmp_path / "metrics.jsonl", 64) == 2.0


def test_epochs_with_and_without_a_teacher_count_by_their_number(tmp_path: Path) -> None:
    rows = [{"kind": "step", "step": i, "text_weight": 0.5 * (i < 4)} for i in range(20)]
    for i in (1, 3, *range(5, 20, 2)):  # a teacher's steps take three times as long
        rows[i]["images_per_s"] = 2.0 if i < 4 else 6.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert step_seconds(tmp_path / "metrics.jsonl", 6) == pytest.approx((4 * 3 + 16 * 1) / 20)
    taught = toy_config(tmp_path, train__epochs=10)
    assert step_times.epochs_to_time(taught) == {0: 1.0}
    assert step_times.epochs_to_time(taught.override("text.schedule", "jump-1-1-0")) == {0: 0.2, 2: 0.8}
    assert step_times.epochs_to_time(taught.override("text.weight", 0.0)) == {0: 1.0}


def test_turns_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = toy_arms(tmp_path)
    runs = made_up({"baseline": [1.0, 1.0], "textteacher": [1.0, 1.0]})
    first = ratios_of_turns(arms, tmp_path, 2, runs)
    assert first["baseline"] == [1.0, 1.0] and len(first["textteacher"]) == 2 and min(first["textteacher"]) > 0
    monkeypatch.setattr(step_times, "step_times", None)
    assert ratios_of_turns(arms, tmp_path, 2, runs) == first


def test_an_epoch_of_more_images_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without text, images without a label are left out: the baseline's epochs are half as long."""
    arms = [Arm(arm.name, arm.config.override("data.unlabelled", 0.5)) for arm in toy_arms(tmp_path)]
    runs = train_arms(arms, [0], {arm.name: 2 for arm in arms}, tmp_path / "out", run_toy)
    assert [run.steps for run in runs] == [6, 12]
    (said,) = steps_apart(runs)
    assert said.startswith("textteacher takes 12 steps in 2 epochs and baseline 6: ")
    assert steps_apart(made_up({"base": [1.0, 1.0], "taught": [1.0, 1.0]})) == []
    runs = [replace(run, step_seconds=1.0) for run in runs]
    assert ratios_of_runs(runs) == {"baseline": [1.0], "textteacher": [2.0]}
    monkeypatch.setattr(step_times, "step_times", lambda configs, rounds: {name: [1.0] * rounds for name in configs})
    assert ratios_of_turns(arms, tmp_path, 2, runs) == {"baseline": [1.0, 1.0], "textteacher": [2.0, 2.0]}


def test_a_task_that_is_not_there_is_told_before_the_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "compare", lambda *_: pytest.fail("trainings were started"))
    with pytest.raises(UserError, match="no task 'builtni'; did you mean builtin"):
        arms = [SHAPES, "textteacher=shapes_textteacher"]
        main(["--out", str(tmp_path / "out"), "--arms", *arms, "--tasks", "builtni"])
    assert not list(tmp_path.iterdir())


def test_transfer_asks_eval_for_linear_probes_and_averages_their_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = made_up({"base": [1.0, 1.0], "taught": [1.0, 1.0]})
    asked: list[EvalArguments] = []

    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "tt_ray", "eval"]
        given = read_arguments(EvalArguments, command[4:], "eval")
        asked.append(given)
        for model in (spec.partition("=")[0] for spec in given.models):
            for task, value in (("digits", 10.0), ("shapes", 30.0)):
                job = Job(model, task)
                own = value + model.startswith("taught") + 4 * model.endswith("1")
                rows = [job.row("top1", own, 9), job.row("mean_per_class", 0.0, 9)]
                write_result(given.out, job.key, rows)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(transfer.subprocess, "run", fake)
    found = transfer.transfer_averages(runs, tmp_path, ["builtin"])
    assert found == {("base", 0): 20, ("taught", 0): 21, ("base", 1): 24, ("taught", 1): 25}
    assert asked[0].protocols == ("linear",) and asked[0].tasks == ("builtin",) and len(asked[0].models) == 4
    lines = summarise(runs, [], ratios_of_runs(runs), {"base": 10, "taught": 10}, found)
    assert lines[1].transfer == arm_figure(found, "taught", "base") and lines[1].transfer.difference == 1
    assert lines[1].top1_same_time is None


def test_transfer_has_intervals_where_predictions_are_at_hand(tmp_path: Path) -> None:
    runs = made_up({"base": [1.0, 1.0], "taught": [1.0, 1.0], "bare": [1.0, 1.0]})
    out, labels, rng = transfer._folder(["builtin"], tmp_path), np.arange(200) % 4, np.random.default_rng(0)
    for run in runs:
        for task in ("digits", "shapes"):
            wrong = 60 + 5 * run.seed - (30 if run.arm == "taught" else 0)
            predictions = np.where(rng.permutation(200) < wrong, (labels + 1) % 4, labels)
            finish(out, Job(f"{run.arm}@{run.seed}", task, seed=0), labels, predictions)
            if (run.arm, run.seed, task) == ("bare", 1, "digits"):
                (out / "predictions" / f"{Job(f'bare@{run.seed}', task).key}.npy").unlink()
    found = transfer.image_intervals(runs, tmp_path, ["builtin"])
    assert found.keys() == {"taught"}
    low, high = found["taught"]
    assert 8 < low < 15 < high < 22, "30 of 200 images"
    stored = next((out / "predictions").glob("taught*"))
    np.save(stored, np.load(stored)[:, ::-1])
    assert not transfer.image_intervals(runs, tmp_path, ["builtin"]), "they are not those of the value"


def test_an_arm_is_a_recipe_and_changes(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    toy_config(tmp_path, "shapes_baseline").to_yaml(path)
    texts = [f"own={path}+optim.lr=0.5", "clip=shapes_textteacher+text.encoder=a/clip+projection+text.loss=cos"]
    own, clip = read_arms(texts, ["train.epochs=9", "data.mean=0.1 0.2 0.3"])
    assert (own.name, own.config.optim.lr, own.config.train.epochs) == ("own", 0.5, 9)
    assert clip.config.text.encoder == "a/clip+projection" and clip.config.text.loss == "cos"
    assert clip.config.data.mean == (0.1, 0.2, 0.3)
    run = configure(clip, 3, 5, tmp_path)
    assert (run.train.seed, run.train.epochs, run.run.name) == (3, 5, "clip-5-3")


@pytest.mark.parametrize(
    ("arms", "seeds", "part"),
    [
        (["shapes_baseline"], [0], "NAME=RECIPE"),
        ([SHAPES, "x=shapes"], [0], "no recipe 'shapes'"),
        ([SHAPES, "x=shapes_baseline+optim.lrr=1"], [0], "--optim.lr"),
        ([SHAPES, "x=shapes_baseline=1"], [0], "no recipe"),
        ([SHAPES], [0], "at least two"),
        ([SHAPES, SHAPES], [0], "something twice"),
        ([SHAPES, "x=shapes_textteacher"], [], "--seeds"),
        ([SHAPES, "x=shapes_distilled"], [0], "learns from runs/shapes_vision_teacher, which does not exist: train it"),
        ([SHAPES, "x=shapes_textteacher+train.seed=7"], [0], "a comparison sets train.seed itself: choose --seeds"),
        ([SHAPES, "x=shapes_textteacher+run.name=x"], [0], "a comparison sets run.name itself: choose --out"),
        (
            [SHAPES, "x=shapes_textteacher+data.shapes.label=colour"],
            [0],
            "arm x has data.shapes.label colour, but base",
        ),
        ([SHAPES, "x=shapes_textteacher+train.epochs=3"], [0], "arm x has train.epochs 3, but baseline has 14"),
        (
            ["g=clipart_textteacher+data.val_share=0.2", "x=clipart_textteacher+data.val_share=0.2+data.group_column="],
            [0],
            "arm x has data.group_column empty, but g has group",
        ),
    ],
)
def test_mistakes_are_told(
    arms: list[str], seeds: list[int], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=part):
        check(read_arms(arms), seeds)


@pytest.mark.parametrize(
    "teacher", ["timm:resnet18", "hf:facebook/dinov2-small", "open_clip:ViT-B-32/laion2b_s34b_b79k"]
)
def test_a_teacher_that_a_name_stands_for_need_not_be_a_folder(teacher: str) -> None:
    check(read_arms([SHAPES, f"taught=shapes_distilled+teacher.model={teacher}"]), [0])
