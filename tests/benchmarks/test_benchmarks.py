"""The benchmarks at toy size: each ends with a finite ratio and a JSON file. What they find here means nothing."""

import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    comparisons,
    embedding_store,
    end_to_end,
    loader_memory,
    loading,
    loop_efficiency,
    ray_overhead,
    start_up,
    step_cost,
    text_loss,
    what_text_buys,
)
from benchmarks import tune as tune_benchmark
from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.train import main as train_command

_TOY = {
    "data.shapes.train_size": "64",
    "data.shapes.val_size": "16",
    "train.batch_size": "16",
    "run.log_every": "2",
}
SET = [word for path, value in _TOY.items() for word in ("--set", path, value)]


def _result(out: Path) -> dict[str, Any]:
    result = json.loads(out.read_text())
    assert math.isfinite(result["ratio"]["median"]) and result["ratio"]["median"] > 0
    low, high = result["ratio"]["quartiles"]
    assert low <= result["ratio"]["median"] <= high
    assert len(result["ratio"]["values"]) == result["rounds"]
    return result


def test_step_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "step_cost.json"
    size = ["--model", "vit_tiny_patch16_224", "--image-size", "32", "--batch-size", "4", "--classes", "5"]
    step_cost.main([*size, "--embedding-dim", "8", "--repeats", "2", "--warm-up", "1", "--out", str(out)])
    result = _result(out)
    assert set(result["sides"]) == {"with the text loss", "baseline"}
    assert "| ratio |" in capsys.readouterr().out


def test_loop_efficiency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loop_efficiency.json"
    loop_efficiency.main([*SET, "--embedding-dim", "8", "--steps", "3", "--repeats", "2", "--out", str(out)])
    result = _result(out)
    assert result["rounds"] == 2
    assert result["settle"] == 0  # no loader processes for what is in memory
    assert "| loop |" in capsys.readouterr().out


def test_loop_efficiency_lets_loader_processes_settle(tmp_path: Path) -> None:
    calls: list[int] = []
    blocks = loop_efficiency.Blocks(steps=4, settle=3, repeats=2, batch_size=16, bare=calls.append)
    standing = [loop_efficiency.Standing(step, 100, 0, 0.0, 0.0, 0.0, None) for step in range(2, 40, 2)]
    with pytest.raises(loop_efficiency.Enough):
        for progress in standing:
            blocks(progress)
    assert calls == [3, 4, 3, 4]
    assert len(blocks.loop_rates) == len(blocks.bare_rates) == 2


@pytest.mark.slow
def test_text_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted, so that it holds at any size: by rows a worker of two has under half the products, and less memory."""
    out = tmp_path / "deep" / "text_loss.json"
    size = ["--losses", "clip", "--workers", "2", "--batch", "256", "--embedding-dim", "16", "--repeats", "1"]
    text_loss.main([*size, "--out", str(out)])
    gathered, by_rows = json.loads(out.read_text())["rows"]
    assert (gathered["way"], by_rows["way"]) == text_loss.WAYS
    assert by_rows["flops"] < 0.5 * gathered["flops"] and by_rows["peak_bytes"] < 0.7 * gathered["peak_bytes"]
    assert by_rows["cpu_s"] > 0 and "| clip | 2 | " in capsys.readouterr().out


def test_window_rates_leave_out_the_first_window_and_short_ones() -> None:
    config = Config().override("train.batch_size", 10)
    rows = [{"step": step, "images_per_s": rate} for step, rate in ((19, 1.0), (39, 50.0), (47, 7.0), (67, 60.0))]
    assert ray_overhead.window_rates([{"step": 3}, *rows], config) == [5.0, 6.0]
    with pytest.raises(RuntimeError, match="raise --steps"):
        ray_overhead.window_rates(rows[:1], config)


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker")
def test_loader_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loader_memory.json"
    loader_memory.main(["--images", "20000", "--loaders", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    assert [size["images"] for size in result["sizes"]] == [200, 20_000]
    assert all(0 < size["own"] <= size["all"] for size in result["sizes"]) and math.isfinite(result["bytes per image"])
    assert "own memory of a loader" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")  # timm's
def test_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "loading.json"
    size = ["--images", "8", "--width", "80", "--height", "60", "--image-size", "28", "--batch-size", "4"]
    loading.main([*size, "--steps", "1", "--repeats", "2", "--out", str(out)])
    result = json.loads(out.read_text())
    ours = {"folders", "packed 28", "packed 28, quality 85", "packed 32"}
    sides = {"before", "timm"} | ours | {f"{name}, device" for name in ours}
    for preset in ("three_augment", "deit"):
        assert set(result[preset]) == sides
        for row in result[preset].values():
            assert math.isfinite(row["over before"]["ratio"]["median"]) and row["over timm"]["rounds"] == 2
    assert capsys.readouterr().out.count("| folders, device |") == 2


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")  # timm's
def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "end_to_end.json"
    size = ["--images", "40", "--width", "80", "--height", "60", "--image-size", "32", "--batch-size", "2"]
    end_to_end.main([*size, "--epochs", "1", "--loaders", "1", "--repeats", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    for side in ("folders", "folders, device", "packed"):
        assert math.isfinite(result[side]["ratio"]["median"]) and result[side]["ratio"]["median"] > 0
    assert capsys.readouterr().out.count("| packed |") == 1


@pytest.mark.slow
def test_embedding_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "embedding_store.json"
    size = ["--rows", "9000", "--images", "8000", "--zip-rows", "300", "--dim", "8", "--processes", "2"]
    embedding_store.main([*size, "--repeats", "2", "--folder", str(tmp_path), "--out", str(out)])
    result = json.loads(out.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["deep"], "what was made is deleted"
    for what in ("open (s)", "until ready (s)", "batch of 512 (ms)", "memory of 2 processes, pss (GB)"):
        assert result[what]["rounds"] == 2
        assert math.isfinite(result[what]["ratio"]["median"]) and result[what]["ratio"]["median"] > 0
    assert "| open (s) | " in capsys.readouterr().out


def test_rows_of_other_settings_are_not_taken_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    full = ["--set", "data.shapes.caption", "full"]
    for given, there in ((full, {}), ([], {"set": {"data.shapes.caption": "full"}})):
        out.write_text(json.dumps({"arm": "baseline", "rate": 0.001, "seed": 0, "top1": 1.0, **there}) + "\n")
        monkeypatch.setattr("sys.argv", ["what_text_buys", "shapes-noise", "--out", str(out), *given])
        monkeypatch.setattr(what_text_buys, "run_all", lambda *_, **__: pytest.fail("runs were started"))
        with pytest.raises(SystemExit, match="2"):
            what_text_buys.main()
        assert "choose another --out" in capsys.readouterr().err


def test_ray_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands' words are right: both sides train in this process."""
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    launchers: list[list[str]] = []
    run = subprocess.run

    def train_here(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        if "tt_ray.train" not in command:  # the training asks git for its commit
            return run(command, **how)
        place = command.index("tt_ray.train")
        launchers.append(command[1:place])
        train_command(command[place + 1 :])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ray_overhead.subprocess, "run", train_here)
    out = tmp_path / "ray_overhead.json"
    arguments = ["--workers", "1", "--threads", "1", "--steps", "8", "--repeats", "1", "--warm-up", "0"]
    ray_overhead.main([*SET, *arguments, "--embedding-dim", "8", "--out", str(out)])
    assert set(_result(out)["sides"]) == {"Ray Train", "torchrun"}
    assert launchers == [["-m"], ["-m", "torch.distributed.run", "--nproc-per-node", "1", "-m"]]


def test_start_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moments are read off a real run in tests/test_train_command.py."""
    names: list[str] = []

    def look(command: list[str]) -> int:
        if "tt_ray.train" in command:
            names.append(read_config(command[3:], "benchmark").run.name)
        return 1

    def spread(run_dir: Path, pid: int) -> list[float]:
        assert (run_dir.name, pid) == (names[-1], 1)
        return [time.time() + seconds for seconds in (1, 2, 3, 4)]

    monkeypatch.setattr(start_up, "start", look)
    monkeypatch.setattr(start_up, "moments", spread)
    out = tmp_path / "start_up.json"
    start_up.main([*SET, "--repeats", "1", "--warm-up", "0", "--out", str(out)])
    phases = _result(out)["phases"]["with a store"]
    assert all(phases[phase] > 0 for phase in start_up.PHASES)
    assert math.isclose(sum(phases[phase] for phase in start_up.PHASES), phases["total"])
    assert names == ["without-a-store", "with-a-store"]


def test_a_search_at_two_times_its_trainings() -> None:
    found = tune_benchmark.summary(20.0, [5.0, 5.0, 4.0, 6.0], 2)
    assert found["ratio"] == 2.0 and found["overhead_s_per_trial"] == 5.0


@pytest.mark.parametrize("data", comparisons.DATA)
def test_arms_of_a_comparison_take_as_many_steps(data: str, tmp_path: Path) -> None:
    study = comparisons.DATA[data]
    for setting, (_, arms) in comparisons.SETTINGS.items():
        steps, warm_up = set(), set()
        for arm in arms:
            config = comparisons.configure(setting, arm, 0, study, tmp_path)
            images = round(study.images * config.data.subset)
            if config.data.unlabelled:
                labelled = images - round(images * config.data.unlabelled)
                images = 2 * (images // 2) if config.teaches else labelled
            steps.add(config.train.epochs * (images // config.train.batch_size))
            warm_up.add(round(config.optim.warmup_epochs * (images // config.train.batch_size)))
        assert max(steps) <= 1.02 * min(steps), (setting, steps)
        assert len(warm_up) == 1, (setting, warm_up)


def test_comparisons_are_a_table_of_paired_differences() -> None:
    setting = "a quarter of the images"
    rows = [
        {"setting": setting, "arm": arm, "seed": seed, "top1": top1}
        for arm, values in (("baseline", (40.0, 44.0)), ("TextTeacher", (45.0, 47.0)))
        for seed, top1 in enumerate(values)
    ]
    lines = comparisons.table(rows, [setting], [0, 1, 2]).splitlines()
    assert lines[2:] == [f"| {setting} | baseline | 42.0 ± 2.8 |  |", "|  | TextTeacher | 46.0 ± 1.4 | +4.0 ± 1.4 |"]
