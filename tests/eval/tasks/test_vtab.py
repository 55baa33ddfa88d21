"""VTAB-1k: which 1,000 images, all of them in the last training, what is refused, means over groups; VTAB's sets."""

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.contract import EvalConfig
from eval.features.cache import task_features
from eval.jobs.plan import Job, read_options
from eval.jobs.results import read_table
from eval.jobs.summary import print_summary
from eval.protocols import finetune, knn, linear_sgd
from eval.protocols.finetune import Tuner
from eval.protocols.registry import protocol
from eval.report.html import to_html
from eval.report.numbers import build_report
from eval.report.text import to_latex, to_markdown
from eval.tasks.registry import folder_task, tasks, thousand
from eval.tasks.table import SUITES, TABLE
from eval.tasks.vtab import CHOOSE, FIT, GROUPS, NAMES, ClipBenchmark, group_means, stratified_order
from tests.data.sources.test_webdataset import jpeg, write
from tests.eval import sample_results
from tests.eval.tasks.test_registry import COLOURS, class_folders, message
from tests.eval.toy_task import ToyTask, toy_backbone
from tt_ray.data.sources.base import Source

OWN = ["digits", "clipart", "shapes_colour", "shapes_relation"]


def ids(source: Source) -> list[str]:
    return source.ids.to_pylist()


@pytest.mark.parametrize("name", OWN)
def test_800_to_fit_and_200_others_to_choose(name: str) -> None:
    task, whole = tasks([f"vtab1k:{name}"])[f"vtab1k:{name}"], tasks([name])[name]
    fit, val, test = (task.open(split) for split in ("train", "val", "test"))
    assert (len(fit), len(val)) == (FIT, CHOOSE) == (800, 200)
    together = set(ids(fit)) | set(ids(val))
    assert len(together) == 1000 and together <= set(ids(whole.open("train")))
    assert ids(test) == ids(whole.open("test")) and task.metric == "top1" and task.classes == whole.classes
    everything = Counter(whole.open("train").labels.tolist())
    for part in (fit, val):  # every class has its share, give or take a few images
        counts = Counter(part.labels.tolist())
        for label, count in everything.items():
            assert abs(counts[label] - len(part) * count / len(whole.open("train"))) <= 2
    again = tasks([f"vtab1k:{name}"])[f"vtab1k:{name}"]
    assert ids(again.open("train")) == ids(fit) and ids(again.open("val")) == ids(val)
    row = ids(whole.open("train")).index(ids(fit)[5])
    assert (fit.pixels(np.array([5]), 24) == whole.open("train").pixels(np.array([row]), 24)).all()


def test_the_order_holds_every_class_first_and_then_their_shares() -> None:
    labels = np.random.default_rng(0).choice(60, 4000, p=np.arange(1, 61) / 1830)
    order = stratified_order(labels)
    assert sorted(order) == list(range(4000)) and len(set(labels[order[:60]])) == 60
    for end in (300, 800, 1000, 2500):
        shares = np.bincount(labels[order[:end]], minlength=60) - end * np.bincount(labels) / 4000
        assert np.abs(shares).max() <= 1.6
    assert not np.array_equal(np.sort(order[:800]), np.arange(800))  # not simply the first ones


def test_official_validation_images_choose(tmp_path: Path) -> None:
    for split, count in (("train", 300), ("val", 70), ("test", 3)):
        class_folders(tmp_path / split, dict.fromkeys(COLOURS, count))
    whole = folder_task("mine", tmp_path)
    task = thousand(whole)
    assert set(ids(task.open("train"))) <= set(ids(whole.open("train"))) and len(task.open("train")) == 800
    assert set(ids(task.open("val"))) <= set(ids(whole.open("val"))) and len(task.open("val")) == 200
    assert task.data == whole.data and task.refits and not whole.refits
    given = tasks(["vtab1k:mine", "mine"], {"mine": tmp_path})
    assert list(given) == ["vtab1k:mine", "mine"] and given["vtab1k:mine"] == task


def test_what_has_no_1000_images_is_refused_in_one_line(tmp_path: Path) -> None:
    for split, count in (("train", 300), ("test", 1)):
        class_folders(tmp_path / split, dict.fromkeys(COLOURS, count))
    begin = "vtab1k:mine takes 800 training and 200 validation images, but mine has"
    assert message(lambda: tasks(["vtab1k:mine"], {"mine": tmp_path})) == f"{begin} 900 for both"
    class_folders(tmp_path / "val", dict.fromkeys(COLOURS, 60))
    assert message(lambda: tasks(["vtab1k:mine"], {"mine": tmp_path})) == f"{begin} 900 and 180"
    assert message(lambda: tasks(["vtab1k:inat2018"])).endswith("has 8,142 classes, more than the 800 images to fit on")
    assert message(lambda: tasks(["vtab1k:imagenet_a"])).endswith("imagenet_a has no training images")
    assert "no task 'digts'; did you mean digits?" in message(lambda: tasks(["vtab1k:digts"]))


def test_suites() -> None:
    assert list(tasks(["vtab1k"])) == list(tasks(["vtab1k:vtab"])) == [f"vtab1k:{name}" for name in NAMES]
    assert list(tasks(["vtab1k:builtin"])) == [f"vtab1k:{name}" for name in SUITES["builtin"]]
    assert {name: len(names) for name, names in GROUPS.items()} == {"natural": 7, "specialized": 4, "structured": 8}
    assert len(NAMES) == len(set(NAMES)) == 19 and set(NAMES) <= set(TABLE)


def test_features_of_1000_images_and_the_same_test_features(tmp_path: Path) -> None:
    config, backbone = EvalConfig(None, tmp_path), toy_backbone()
    task = tasks(["vtab1k:digits"])["vtab1k:digits"]
    found = task_features(backbone, task, config)
    assert len(found.x) == 1000 and len(found.fit) == 800 and len(found.val) == 200
    assert not set(found.fit) & set(found.val)
    folders = set(tmp_path.glob("*/features.npy"))
    assert (found.test_x == task_features(backbone, tasks(["digits"])["digits"], config).test_x).all()
    assert len(set(tmp_path.glob("*/features.npy")) - folders) == 1  # those of all training images


def test_linear_and_knn_choose_on_200_and_fit_1000(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, backbone, names = tasks(["vtab1k:digits"])["vtab1k:digits"], toy_backbone(), ("linear", "knn")
    options = read_options(names, ("linear.strengths=[0.01,1]",))
    banks: list[tuple[int, int]] = []
    given = knn.neighbours

    def neighbours(bank: knn.Bank, queries: knn.Bank, *rest: Any) -> knn.Neighbours:
        banks.append((len(bank), len(queries)))
        return given(bank, queries, *rest)

    monkeypatch.setattr(knn, "neighbours", neighbours)
    for name in names:
        result = protocol(name).evaluate(backbone, task, EvalConfig(options[name], tmp_path, seed=3))
        assert result.n == task.sizes["test"] and (result.labels == task.open("test").labels).all()
    assert banks == [(800, 200), (1000, 359)]


@pytest.mark.parametrize("recipe", ["builtin", "paper"])
def test_the_last_fine_tuning_takes_all_whatever_the_recipe(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def train(self: Tuner, source: Source) -> Any:
        seen.append(len(source))
        return SimpleNamespace(predict=lambda other, *_: np.ones((len(other), 3), np.float32) / 3)

    monkeypatch.setattr(Tuner, "train", train)
    task: Any = ToyTask(has_val=True, refits=True)
    options = finetune.Options(recipe=recipe, rates=(1e-3, 1e-2))  # type: ignore[arg-type]
    finetune.evaluate(toy_backbone(), task, EvalConfig(options, Path()))
    assert seen == [45, 45, 90]


def test_vtabs_sweep_chooses_rate_and_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int, int]] = []

    def train(self: Tuner, source: Source) -> Any:
        seen.append((self.rate, self.recipe.steps, len(source)))
        good = np.eye(3, dtype=np.float32) if seen[-1][:2] == (0.1, 2500) else np.ones((3, 3), np.float32)
        return SimpleNamespace(predict=lambda other, *_: good[other.labels])

    monkeypatch.setattr(Tuner, "train", train)
    task: Any = ToyTask(has_val=True, refits=True)
    chosen = finetune.evaluate(toy_backbone(), task, EvalConfig(finetune.Options("vtab"), Path())).chosen
    sweep = [(0.01, 2500, 45), (0.1, 2500, 45), (0.01, 10000, 45), (0.1, 10000, 45)]
    assert seen == [*sweep, (0.1, 2500, 90)] and (chosen["lr"], chosen["steps"]) == (0.1, 2500)
    assert len(chosen["validation"]) == 4 and chosen["validation"]["0.1, 2500 steps"] == 100
    seen.clear()
    finetune.evaluate(toy_backbone(), task, EvalConfig(finetune.Options("vtab", steps=7, rates=(0.5,)), Path()))
    assert seen == [(0.5, 7, 90)]


def test_the_head_of_linear_sgd_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    train = linear_sgd.train
    monkeypatch.setattr(
        linear_sgd, "train", lambda b, source, *rest: seen.append(len(source)) or train(b, source, *rest)
    )
    options = linear_sgd.Options(rates=(0.1,), steps=2, batch_size=4)
    for refits, expected in ((False, [45]), (True, [45, 90])):
        seen.clear()
        task: Any = ToyTask(has_val=True, refits=refits)
        linear_sgd.evaluate(toy_backbone(), task, EvalConfig(options, tmp_path))
        assert seen == expected


def test_means_by_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {f"vtab1k:{name}": float(number) for number, name in enumerate(NAMES)} | {"digits": 50.0, "dmlab": 1.0}
    assert group_means(values) == {
        "VTAB-1k natural (7 of 7)": 3,
        "VTAB-1k specialized (4 of 4)": 8.5,
        "VTAB-1k structured (8 of 8)": 14.5,
        "VTAB-1k all (19 of 19)": 9,
    }
    assert group_means({"vtab1k:digits": 1.0, "svhn": 2.0}) == {}
    labels = np.arange(40, dtype=np.int32) % 2
    jobs: list[Job] = []
    for model, wrong in (("base", 4), ("text", 2)):
        for task in ("vtab1k:svhn", "vtab1k:dmlab", "digits"):
            predictions = labels.copy()
            predictions[: wrong * (1 + (task == "vtab1k:dmlab"))] ^= 1
            made = sample_results.Job(model, task.replace(":", "_"))
            rows = [dataclasses.replace(made.row("top1", 100 * float((predictions == labels).mean()), 40), task=task)]
            sample_results.write_result(tmp_path, made.key, rows, predictions, labels)
            jobs.append(SimpleNamespace(key=made.key, model=model, protocol="linear"))  # type: ignore[arg-type]
    print_summary(tmp_path, jobs, dict.fromkeys(("vtab1k:svhn", "vtab1k:dmlab", "digits"), "top1"))
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if "VTAB-1k" in line]
    assert [line[-2:] for line in printed] == [["90.00", "95.00"], ["80.00", "90.00"], ["85.00", "92.50"]]
    report = build_report(tmp_path, read_table(tmp_path), None, lambda *_: None)
    assert "| *VTAB-1k natural (1 of 7)* |  |  | 90.00 | 95.00 |" in to_markdown(report)
    assert r"VTAB-1k all (2 of 19) & 85.00 & 92.50 \\" in to_latex(report)
    assert "VTAB-1k structured (1 of 8): base 80.00, text 90.00" in to_html(report)


def test_sets_of_clip_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards as they are published: folders of splits, class numbers; 40 orientations become 16."""
    for split, count in (("train", 80), ("test", 40)):
        files: dict[str, bytes | str] = {}
        for number in range(count):
            files |= {f"s{number:07d}.cls": str(number % 40), f"s{number:07d}.jpg": jpeg(number)}
        write(tmp_path / "wds_vtab-dsprites_label_orientation" / split / "0.tar", files)
    name = "dsprites_orientation"
    monkeypatch.setitem(TABLE, name, dataclasses.replace(TABLE[name], sizes={"train": 80, "test": 40}))
    for roots in ({}, {name: tmp_path / "wds_vtab-dsprites_label_orientation"}):
        task = tasks([name], roots, tmp_path)[name]
        test = task.open("test")
        assert test.labels.tolist() == [label * 16 // 40 for label in range(40)] and len(test.classes) == 16
        assert len(task.open("train")) == 80 and test.read(3).size == (12, 8)
    missing = message(lambda: tasks(["dmlab"], None, tmp_path)["dmlab"].open("test"))
    assert "hf download clip-benchmark/wds_vtab-dmlab --repo-type dataset --local-dir" in missing
    for added in set(NAMES) - set(tasks(["vtab-natural"])) - {"eurosat"}:
        (origin,) = TABLE[added].origins
        assert isinstance(origin, ClipBenchmark) and origin.become in (0, TABLE[added].classes)
