"""`python -m eval` as users run it: real processes, a real model, small tasks; killed and started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.__main__ import main
from eval.evaluate import Arguments, check, evaluate, open_evaluation
from eval.jobs.results import finished_keys, read_predictions, read_rows
from tests.test_train_command import wait_until
from tests.toy import run_toy, toy_config
from tt_ray.terminal.errors import UserError

_LIMIT_S = 300


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small ViT for 16 px."""
    config = toy_config(tmp_path_factory.mktemp("runs"), "shapes_baseline")
    run_toy(config)
    return config.run_dir


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of coloured images: train and test, two classes."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 8)):
        for label, channel in (("red", 0), ("blue", 2)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "eval", *map(str, arguments)]


def give(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=_LIMIT_S)


def common(run_folder: Path, colours: Path, out: Path, protocols: Sequence[str]) -> list[object]:
    models = ["--models", f"toy={run_folder}", f"again={run_folder / 'export'}"]
    own = ["--tasks", "colours", "--task-root", f"colours={colours}", "--seeds", 0, 1]
    return [*models, *own, "--protocols", *protocols, "--out", out]


@pytest.mark.slow
@pytest.mark.release
def test_stopped_it_loses_what_was_in_flight_and_ends_with_all_results(
    run_folder: Path, colours: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # The toy's classifier knows shapes, not colours: its two jobs fail. It draws nothing, so that one seed is enough.
    arguments = [*common(run_folder, colours, out, ("finetune", "knn", "classifier")), "--set", "finetune.steps=60"]
    times: dict[str, int] = {}
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_until(lambda: len(finished_keys(out)) >= len(times) + 1 or process.poll() is not None, _LIMIT_S)  # noqa: B023
        assert process.poll() is None, "it is to be killed in the middle"
        if not times:
            with pytest.raises(UserError, match=f"is being written by process {process.pid} on host"):
                main(list(map(str, arguments)))
        os.kill(process.pid, number)
        _, text = process.communicate(timeout=_LIMIT_S)
        found = written(out)
        assert len(times) < len(found) < 8 and found.items() >= times.items()
        times = found
    assert process.returncode == 128 + signal.SIGINT and "jobs done; the same command continues with the rest" in text
    again = give(*arguments)
    assert again.returncode == 1 and f"{len(times)} of 10 jobs are done already" in again.stderr
    assert "2 of 10 jobs failed" in again.stderr
    assert "knn (%)" in again.stdout and f"python -m eval.report {out}" in again.stdout
    assert len(written(out)) == 8 and written(out).items() >= times.items()
    check_rows(out)
    before = written(out)
    again = give(*common(run_folder, colours, out, ["knn"]))
    assert again.returncode == 0 and "4 of 4 jobs are done already" in again.stderr
    # The library finds the same jobs done, and returns those that were asked for.
    table = evaluate({"toy": run_folder}, "colours", "knn", (0, 1), out=out, task_roots={"colours": colours})
    expected = [row.value for row in read_rows(out) if (row.model, row.protocol) == ("toy", "knn")]
    assert table["value"].to_pylist() == expected and len(expected) > 2
    assert written(out) == before


def written(out: Path) -> dict[str, int]:
    """Jobs that have come to their end, and when that was written."""
    return {key: (out / "rows" / f"{key}.parquet").stat().st_mtime_ns for key in finished_keys(out)}


def check_rows(out: Path) -> None:
    """Each job has its row: a value that follows from its predictions, or why it failed."""
    failed = [row for row in read_rows(out) if row.status == "failed"]
    assert len(failed) == 2 and all("has no class" in row.reason for row in failed)
    rows = [row for row in read_rows(out) if row.status != "failed" and row.metric == "top1"]
    assert sorted((row.model, row.protocol, row.seed, row.n) for row in rows) == [
        (model, protocol, seed, 16) for model in ("again", "toy") for protocol in ("finetune", "knn") for seed in (0, 1)
    ]
    for row in rows:
        predictions = read_predictions(out, row.job)
        assert predictions is not None
        assert 100 * (predictions.predictions[0] == predictions.labels).mean() == pytest.approx(row.value)
    drawn = [row.value for row in rows if (row.protocol, row.seed) == ("knn", 0)]
    assert len(set(drawn)) == 1, "a run and its export are the same model"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["--models", "a=random:vit_tiny_patch16_224", "a=random:resnet18"], "two --models are called 'a'"),
        (["--models", "random:resnet18"], "must be NAME=MODEL"),
        (["--models", "a=no/such/run"], "no/such/run"),
        (["--models", "a=random:vit_tini_patch16_224"], "did you mean"),
        (["--tasks", "digitz"], "no task 'digitz'; did you mean digits"),
        (["--protocols", "linaer"], "no protocol 'linaer'; did you mean linear"),
        (["--seeds", "0", "0"], "--seeds has something twice"),
        (["--severities", "3"], "--severities is about --corruptions: name kinds, or all"),
        (["--task-root", "digits"], "--task-root 'digits' must be NAME=DIR"),
        (["--gpus-per-job", "2"], "--gpus-per-job is 2.0"),
        (["--gpus-per-job", "-0.5"], "--gpus-per-job is -0.5: choose 1, or a fraction"),
        (["--gpus-per-job", "nan"], "--gpus-per-job is nan"),
        (["--precision", "tf32"], "--precision tf32 is for GPUs"),
        (["--out", "s3://bucket/out"], "must be a folder on this machine"),
        (["--cpus-per-job", "4096"], "the largest node has"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    changes: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tt_ray.cluster.connect.join_ray", lambda say: True)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    defaults = {
        "--models": ["a=random:test_vit"],
        "--tasks": ["digits"],
        "--protocols": ["knn"],
        "--out": [str(tmp_path / "out")],
    }
    given = defaults | {changes[0]: changes[1:]}
    with pytest.raises(UserError) as error:
        main([word for option, words in given.items() for word in (option, *words)])
    assert text in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    answer = give("--models", "a=random:test_vit", "--tasks", "digitz", "--out", tmp_path / "out")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("error: no task 'digitz'")


@pytest.mark.parametrize(
    ("given", "gpus", "precision"),
    [("auto", 0, "fp32"), ("auto", 0.5, "tf32"), ("fp32", 1, "fp32"), ("bf16", 0, "bf16"), ("bf16", 1, "bf16")],
)
def test_precision_follows_the_device_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, gpus: float, precision: str
) -> None:
    monkeypatch.setattr("eval.jobs.evaluation.plan_evaluation", lambda *planned: planned[-1])
    arguments = Arguments(tmp_path, ("a=random:test_vit",), ("digits",), ("knn",), gpus_per_job=gpus, precision=given)
    check(arguments)
    assert open_evaluation(arguments) == precision
