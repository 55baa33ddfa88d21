"""The studies of wrong and of clean labels: arms that differ as they say, and nothing started that cannot end."""

import json
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import does_it_help, long_runs
from tests.pages import ROOT
from tt_ray.config import Config
from tt_ray.recipes import RECIPES

_SETTINGS = [setting for part in does_it_help.PARTS.values() for setting in part]
_MADE = {"corrected", "caption", "encoder", "epochs times"}


@pytest.mark.parametrize("setting", _SETTINGS, ids=lambda setting: f"{setting.data}, {setting.name}")
def test_an_arm_differs_from_text_teacher_by_what_it_says(
    setting: does_it_help.Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in ("caption_table", "corrected_labels", "word_vectors"):
        monkeypatch.setattr(does_it_help, made, lambda *given: tmp_path / "made")
    roots = {"emoji": str(tmp_path), "joined": str(tmp_path)}
    ours = does_it_help.configure(setting, "TextTeacher", 0, roots, tmp_path)
    of_made = {
        "corrected": {"data.labels", *(["data.label_noise"] if ours.data.label_noise else [])},
        "caption": {"text.captions"},
        "encoder": {"text.embeddings"},
        "epochs times": {"train.epochs", "train.eval_every"},
    }
    for arm, fields in setting.arms.items():
        config = does_it_help.configure(setting, arm, 0, roots, tmp_path)
        changed = {path for path in Config.paths() if config.get(path) != ours.get(path)} - {"run.name"}
        assert changed == (fields.keys() - _MADE).union(*(of_made[name] for name in _MADE & fields.keys()))


def test_an_audit_of_other_images_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[int]()

    def audit(config: Config, out: Path, *_: Any) -> None:
        out.mkdir()
        (out / "audit.json").write_text("{}")
        made.append(config.data.shapes.train_size)

    # Not by its name: `tt_ray.audit` is the function of the library as well.
    monkeypatch.setattr(import_module("tt_ray.audit.audit"), "run_audit", audit)
    config = RECIPES["shapes_textteacher"]()
    found = [
        does_it_help.corrected_labels(config.override("data.shapes.train_size", size), tmp_path)
        for size in (64, 128, 64)
    ]
    assert made == [64, 128] and found[0] == found[2] != found[1]


def test_captions_are_cut_into_what_they_say() -> None:
    text = "AZ-lizard, lizard, reptile, animal, farm animals"
    said = {kind: cut(text, "animals") for kind, cut in does_it_help.CONTENT.items()}
    assert said == {
        "title": "AZ-lizard",
        "keywords": "lizard, reptile, animal, farm animals",
        "no class": "AZ-lizard, lizard, reptile",
        "class": "a drawing of animals",
    }


def test_both_joined_keep_their_splits_classes_and_captions(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "emoji" / split).mkdir(parents=True)
        (tmp_path / "emoji" / split / "a.jpg").write_bytes(split.encode())
        row = {"file_name": "a.jpg", "label_name": "Food", "caption": f"an apple, {split}", "vendor": "noto"}
        (tmp_path / "emoji" / split / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    out = does_it_help.join_emoji_and_clipart(tmp_path / "emoji", tmp_path / "joined")
    for split, count in (("train", 3018), ("test", 1252)):
        rows = [json.loads(line) for line in (out / split / "metadata.jsonl").read_text().splitlines()]
        assert len({row["file_name"] for row in rows}) == len(rows) == count
        assert rows[0] == {"file_name": "emoji/a.jpg", "label_name": "emoji Food", "caption": f"an apple, {split}"}
        assert (out / split / "emoji" / "a.jpg").read_bytes() == split.encode()
        assert {row["label_name"].split()[0] for row in rows} == {"emoji", "clipart"}
        assert (out / split / rows[-1]["file_name"]).read_bytes()[:2] == b"\xff\xd8"


def test_the_table_pairs_by_seed() -> None:
    setting = does_it_help.Setting("clipart", "s", {}, {"baseline": {}, "TextTeacher": {}})
    scores = {"baseline": {0: 10.0, 1: 20.0}, "TextTeacher": {1: 23.0, 0: 12.0, 2: 99.0}}
    rows = [
        {"data": "clipart", "setting": "s", "arm": arm, "seed": seed, "top1": top1}
        for arm, seeds in scores.items()
        for seed, top1 in seeds.items()
    ]
    *_, last = does_it_help.table(rows, [setting]).splitlines()
    assert last == "|  |  | TextTeacher | 3 | 44.7 ± 47.4 | +2.5 (-3.9 to +8.9) |"
    *_, last = does_it_help.wide(rows, [setting]).splitlines()
    assert last == "| clipart | s | 2 | 15.0 ± 7.1 | +2.5 (-3.9 to +8.9) |"
    assert len(does_it_help.wide(rows, [setting], least=3).splitlines()) == 2, "the baseline has two"
    apart = [{**row, "seed": row["seed"] + 9 * (row["arm"] == "TextTeacher")} for row in rows]
    assert does_it_help.table(apart, [setting]).endswith("|  |"), "no seed in common, so no difference"
    equal = [{**row, "top1": 1.0} for row in rows]
    assert "none: equal in each seed" in does_it_help.wide(equal, [setting])


def test_no_long_run_is_started_that_would_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def run(config: str, probes: bool) -> dict[str, float]:
        clock[0] += 4.0
        return {"top1": 1.0}

    monkeypatch.setattr(long_runs.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(long_runs, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(long_runs, "run", run)
    jobs: list[tuple[Any, dict[str, Any]]] = [("config", {"seed": seed}) for seed in range(9)]
    # Runs of 4 seconds: after two of them a third ends at 12, a fourth would at 16.
    assert [row["seed"] for row in long_runs.run_in_time(jobs, 1, 15.0)] == [0, 1, 2]


def test_long_runs_are_of_one_setting(tmp_path: Path) -> None:
    base, text = (long_runs.configure(arm, 0, tmp_path, False) for arm in ("baseline", "TextTeacher"))
    assert {path for path in Config.paths() if base.get(path) != text.get(path)} == {"text.weight", "run.name"}
    assert text.run.use_gpu and text.data.image_size == 64
    assert not long_runs.configure("baseline", 0, tmp_path, True).run.use_gpu


def test_figures_of_the_page_are_those_of_the_rows() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    for part, settings in does_it_help.PARTS.items():
        rows = does_it_help.read(does_it_help.RESULTS / f"does-it-help-{part}.jsonl")
        for setting in settings:
            forms = (
                form(rows, [setting], least=3).splitlines()[2:] for form in (does_it_help.table, does_it_help.wide)
            )
            assert any(all(line in text for line in lines) for lines in forms), setting.name
