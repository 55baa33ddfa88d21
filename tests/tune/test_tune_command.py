"""The search command on a real Ray: results, failures, schedulers, several workers, and what survives a kill."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import tune as tune_benchmark
from tests.cluster.ray_here import stop_ray
from tests.test_train_command import processes_with, start_marked, wait_until
from tests.toy import random_store, toy_config
from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.terminal.errors import Stopped, UserError
from tt_ray.terminal.progress import Display
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.preflight import prepare
from tt_ray.training.run_folder import read_result
from tt_ray.tune.__main__ import main, read
from tt_ray.tune.journal import Journal
from tt_ray.tune.runner import TrialResources
from tt_ray.tune.search import Search
from tt_ray.tune.space import find_space
from tt_ray.tune.trial import takeovers

TOY = ["--data.shapes.train_size", "60", "--data.shapes.val_size", "37", "--data.image_size", "16"]
TOY += ["--model.kwargs", "patch_size", "8", "embed_dim", "24", "depth", "1", "num_heads", "2"]
TOY += ["--train.batch_size", "8", "--train.epochs", "3", "--run.log_every", "5", "--data.label_noise", "0"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:

    from tt_ray.cluster.connect import join_ray

    join_ray()
    yield
    stop_ray()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    config = toy_config(folder, "shapes_baseline", data__shapes__train_size=60)
    return str(random_store(config, folder / "store"))


def space(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(f'"""Which is best?"""\nfrom ray import tune\n{text}\n')
    return str(path)


def ray_rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "results.parquet").to_pylist()


# Without Ray


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["loss_wieght"], "no search space 'loss_wieght'; did you mean loss_weight"),
        (["loss_weight", "--num-sample", "3"], "no option --num-sample; did you mean --num-samples"),
        (["loss_weight", "--text.wieght", "0.1"], "no option --text.wieght; did you mean --text.weight"),
        (["loss_weight", "--scheduler", "ahsa"], "no scheduler 'ahsa'; did you mean asha"),
        (["loss_weight", "--searcher", "optima"], "no searcher 'optima'; did you mean optuna"),
        (["loss_weight", "--seeds", "0", "5"], "none may be there twice or among"),
        (["loss_weight", "--gpus-per-trial", "1.5"], "--gpus-per-trial is 1.5"),
        (["loss_weight", "--train.seed", "7"], "a search sets train.seed itself: choose --seeds and --final-seeds"),
        (["loss_weight", "--run.use_gpu", "True"], "a search sets run.use_gpu itself: choose --gpus-per-trial"),
        (["loss_weight", "--run.num_workers=2"], "a search sets run.num_workers itself: choose --workers-per-trial"),
        (["loss_weight", "--run.keep_checkpoints", "0"], "itself: leave --run.keep_checkpoints out"),
        (["pbt_weight", "--max-concurrent", "1"], "no --searcher, --max-concurrent"),
        (["loss_weight", "--out", "s3://bucket/tune"], "must be a folder"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tt_ray.tune.__main__.join_ray", lambda say: pytest.fail("Ray has started"))
    with pytest.raises(UserError) as error:
        main(arguments)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_space_with_an_unknown_path_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tt_ray.tune.__main__.join_ray", lambda say: pytest.fail("Ray has started"))
    name = space(tmp_path, "SPACE = {'head.size': tune.choice([1, 2])}")
    with pytest.raises(UserError, match="search space mine: no field head.size"):
        main([name, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_no_more_trials_at_once_than_the_cluster_holds() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}]
    assert TrialResources(1, 1, 0).slots(nodes) == 7
    assert TrialResources(1, 2, 0).slots(nodes) == 3, "a worker does not straddle nodes"
    assert TrialResources(2, 2, 0).slots(nodes) == 1
    assert TrialResources(1, 1, 0.25).slots(nodes) == 4
    assert TrialResources(1, 1, 1 / 3).slots(nodes) == 3
    assert TrialResources(1, 1, 0.4).slots([{"CPU": 9.0, "GPU": 2.0}]) == 4, "none is on two GPUs"
    assert TrialResources(1, 1, 0.3).slots([{"CPU": 99.0, "GPU": 8.0}]) == 24
    with pytest.raises(UserError, match="a trial needs 4 x 2 CPUs, but the cluster has 7 CPUs and 1 GPUs: choose"):
        TrialResources(4, 2, 0).slots(nodes)
    with pytest.raises(UserError, match="a trial needs 2 x 1 CPUs and 1 GPUs"):
        TrialResources(2, 1, 1).slots(nodes)


# On one Ray, in this process


@pytest.mark.slow
def test_a_search_leaves_results_and_a_second_command_does_nothing(
    cluster: None, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = "SPACE = {'text.weight': tune.choice([0.2, 0.7]), 'head.out_dim': tune.choice([0, 4000])}\nNUM_SAMPLES = 4"
    arguments = [space(tmp_path, text), "--searcher", "grid", "--seeds", "5", "6", "--final-seeds", "0", "1"]
    arguments += ["--out", str(out), "--max-concurrent", "1", *TOY, "--text.embeddings", store]
    main(arguments)
    rows = ray_rows(out)
    search = [row for row in rows if row["phase"] == "search"]
    good = [row for row in search if row["status"] == "done"]
    assert len(good) == 2 * 2 * 3, "trials, seeds, epochs: one row each"
    assert {row["seed"] for row in good} == {5, 6} and {row["head.out_dim"] for row in good} == {0}
    failed = [row for row in search if row["status"] == "failed"]
    assert len(failed) == 2 and all("out_dim" in row["reason"] and row["top1"] is None for row in failed)
    assert len([row for row in rows if row["phase"] == "final"]) == 2 * 2 * 3

    best = read_config([str(out / "best.yaml")], "prog")
    assert best.data.val_share == 0 and best.run.name == "mine_best" and best.text.weight in (0.2, 0.7)
    for name in ("final-base-0", "t000"):
        share = read_config([str(next((out / "trials").glob(f"{name}-*/config.yaml")))], "prog").data.val_share
        assert share == (0.2 if name == "t000" else 0), "the search never saw what the comparison is on"
    summary = (out / "summary.md").read_text()
    assert "4 trials: 2 to their end, 2 failed." in summary and "The margin " in summary
    assert all((out / name).stat().st_size > 1000 for name in ("dimensions.png", "parallel.png"))
    assert not list(out.glob(".*"))

    before = (out / "journal.jsonl").read_bytes()
    main(arguments)
    assert (out / "journal.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="holds a search with another seeds: choose another --out"):
        main([*arguments, "--seeds", "5"])
    with pytest.raises(UserError, match=r"another base \(optim.lr 0.001 \(now 0.5\)\): choose another --out"):
        main([*arguments, "--optim.lr", "0.5"])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_optuna_ends_where_a_space_has_no_more_configurations(cluster: None, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    text = "SPACE = {'optim.grad_clip': tune.choice([0.0, 1.0]), 'optim.warmup_epochs': tune.choice([0.0, 0.5])}\n"
    text += "WHEN = {'optim.warmup_epochs': {'optim.grad_clip': 1.0}}\nNUM_SAMPLES = 5"
    arguments = [space(tmp_path, text), "--base", "shapes_baseline", "--searcher", "optuna", "--final-seeds"]
    main([*arguments, "--out", str(out), "--max-concurrent", "1", *TOY, "--train.epochs", "1"])
    records = Journal(out).of("search")
    assert {record.status for record in records} == {"done"}
    found = sorted(tuple(record.values.items()) for record in records)
    warm = [(("optim.grad_clip", 1.0), ("optim.warmup_epochs", value)) for value in (0.0, 0.5)]
    assert found == [(("optim.grad_clip", 0.0),), *warm]


@pytest.mark.slow
def test_the_benchmark_of_a_search_times_its_trials(
    cluster: None, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tune.json"
    settings = {"data.shapes.train_size": "60", "data.shapes.val_size": "16", "train.epochs": "1"}
    settings |= {"train.batch_size": "16", "text.embeddings": store}
    words = [word for path, value in settings.items() for word in ("--set", path, value)]
    tune_benchmark.main([*words, "--trials", "2", "--concurrent", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["ratio"] > 1 and len(result["training_s"]) == 2 and result["seconds_before"] > 0
    assert "| 2 (1) |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.release
def test_asha_spends_fewer_epochs_than_fifo_for_the_same_best(cluster: None, tmp_path: Path) -> None:
    rates = "SPACE = {'optim.lr': tune.choice([2e-3, 1e-3, 1e-5, 1e-6, 1e-7, 1e-8])}"
    name = space(tmp_path, f"{rates}\nMETRIC = 'val_loss'")
    epochs, best = {}, {}
    for scheduler in ("fifo", "asha"):
        out = tmp_path / scheduler
        arguments = [name, "--base", "shapes_baseline", "--searcher", "grid", "--scheduler", scheduler]
        main([*arguments, "--max-concurrent", "1", "--final-seeds", "--out", str(out), *TOY, "--train.epochs", "6"])
        records = Journal(out).of("search")
        assert len(records) == 6
        epochs[scheduler] = sum(record.epoch for record in records)
        best[scheduler] = min(record.last("val_loss") or 9e9 for record in records if record.status == "done")
    assert epochs["fifo"] == 36
    assert epochs["asha"] <= 24
    assert best["asha"] == best["fifo"]


@pytest.mark.slow
def test_a_population_hands_checkpoints_on(cluster: None, tmp_path: Path, store: str) -> None:
    out = tmp_path / "out"
    arguments = ["pbt_weight", "--num-samples", "4", "--final-seeds", "--out", str(out), *TOY]
    # Long enough that all have reported before the first ends, though they do not start at once.
    main([*arguments, "--train.epochs", "20", "--text.embeddings", store])
    records = Journal(out).of("search")
    assert [(record.status, record.reason) for record in records] == [("done", "")] * 4
    moved = [record for record in records if record.reports[-1]["generation"]]
    assert moved, "the worst goes on from one of the best"
    for record in moved:
        folder = out / "trials" / f"{record.name}-seed100"
        last = takeovers(folder)[-1]
        own = [row for row in record.reports if row["generation"] == record.reports[-1]["generation"]]
        assert own[0]["epoch"] == last["epoch"] + 1 and own[0]["donor"] == last["from"] != record.name
        assert own[0]["values"] == last["values"] and 0.05 <= own[0]["values"]["text.weight"] <= 0.95
        rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "step"]
        steps = [row["step"] for row in rows]
        assert steps == list(range(read_result(folder)["steps"])), "from the donor's step, none twice"
        assert (folder / "export" / "model.safetensors").exists()
    assert [row["epoch"] for row in Journal(out).lineage(moved[0])] == [*range(1, 21)]
    assert (out / "lineages.png").exists()


@pytest.mark.slow
def test_a_trial_leaves_all_places_to_its_workers_who_give_them_back(cluster: None, tmp_path: Path, store: str) -> None:
    """Did the trial itself take one, its workers would wait for ever; and so would the next trial for these."""
    import ray
    from ray.util import placement_group_table

    cpus = int(ray.cluster_resources()["CPU"])
    out = tmp_path / "out"
    arguments = ["loss_weight", "--num-samples", "1", "--workers-per-trial", str(cpus), "--max-concurrent", "4"]
    main([*arguments, "--final-seeds", "--out", str(out), *TOY, "--text.embeddings", store])
    records = Journal(out).of("search")
    assert [(record.status, record.epoch) for record in records] == [("done", 3)]
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}, "all places are free again"


# The command as a process of its own


class Command:
    """A search in a process group of its own, whose processes are found by their environment."""

    def __init__(self, arguments: list[str]) -> None:
        self.mark, self.process = start_marked([sys.executable, "-m", "tt_ray.tune", *arguments])

    def wait_for(self, out: Path, done: int, reports: int) -> None:
        """Until `part_done`."""

        def reached() -> bool:
            assert self.process.poll() is None, f"it ended by itself: {self.process.communicate()}"
            return part_done(out, done, reports)

        wait_until(reached, 300)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=120)
        wait_until(lambda: not processes_with(self.mark), 120)


def part_done(out: Path, done: int, reports: int) -> bool:
    """Whether so many trials have ended, and one that has not has reported so many epochs."""
    if not (out / "journal.jsonl").exists():
        return False
    records = Journal(out).of("search")
    ended = sum(record.ended for record in records)
    return ended >= done and any(not r.ended and r.epoch >= reports for r in records)


@contextmanager
def stopped_by_sigterm(when: Callable[[], bool]) -> Iterator[None]:
    """Sends this process a SIGTERM once `when`, unless the body has ended before."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if when():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the command does not answer signals"))
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("gpus", ["0", "0.5"])
def test_captions_of_a_search_on_gpus_are_embedded_by_the_cluster(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, gpus: str
) -> None:
    embeds: list[Any] = []

    def preparing(config: Config, display: Display, embed: Any = None) -> None:
        embeds.append(embed)
        raise UserError("far enough")

    monkeypatch.setattr("tt_ray.training.preflight.prepare", preparing)
    words = ["loss_weight", "--out", str(tmp_path), "--gpus-per-trial", gpus, *TOY, "--text.embeddings", store]
    given, base = read(words)
    search = Search(given, base, find_space("loss_weight"))
    search.check()
    with pytest.raises(UserError, match="far enough"):
        search._prepare(Display())
    assert [embed is not None for embed in embeds] == [gpus != "0"]


def test_a_search_resumes_on_its_own_data_alone(tmp_path: Path, store: str) -> None:
    given, base = read(["loss_weight", "--out", str(tmp_path), *TOY, "--text.embeddings", store])

    def opened(base: Config) -> Search:
        search = Search(given, base, find_space("loss_weight"))
        search.check()
        search.record = prepare(base).record
        search._open()
        return search

    opened(base.override("data.label_noise", 0.3))  # without a report nothing depends on it
    search = opened(base)
    search._add({"text.weight": 0.5})
    search.journal.report("t000", {"epoch": 1, "generation": 0, "at": 0.0, "values": {}})
    opened(base)
    changed = base.override("data.label_noise", 0.5)
    with pytest.raises(UserError, match="training labels differ.*--run.accept_changed_data True"):
        opened(changed)
    assert "training labels differ" in opened(changed.override("run.accept_changed_data", True)).notes[0]


@pytest.mark.cluster
def test_a_killed_search_goes_on_where_it_was_and_so_does_one_that_was_told_to_stop(
    cluster: None, tmp_path: Path, store: str
) -> None:
    out, trials = tmp_path / "out", 5  # the second command has some to do, however many the first one has ended
    arguments = [
        "loss_weight",
        "--num-samples",
        str(trials),
        "--max-concurrent",
        "1",
        "--final-seeds",
        "--out",
        str(out),
    ]
    arguments += [*TOY, "--train.epochs", "12", "--text.embeddings", store]
    first = Command(arguments)
    first.wait_for(out, done=1, reports=2)
    with pytest.raises(UserError, match=f"is being written by process {first.process.pid} on host"):
        main(arguments)
    first.kill()
    before = (out / "journal.jsonl").read_text()
    finished = [record.name for record in Journal(out).of("search") if record.ended]
    stamps = {name: (out / "trials" / f"{name}-seed100" / "result.json").stat().st_mtime_ns for name in finished}

    with stopped_by_sigterm(lambda: part_done(out, len(finished) + 1, 1)), pytest.raises(Stopped) as stop:
        main(arguments)
    assert stop.value.code == 128 + signal.SIGTERM and "the same command resumes" in str(stop.value)
    assert {row["status"] for row in ray_rows(out)} >= {"done"}
    assert (out / "best.yaml").exists() and (out / "summary.md").exists()

    main(arguments)
    assert (out / "journal.jsonl").read_text().startswith(before[: before.rfind("\n") + 1]), "nothing is lost"
    records = Journal(out).of("search")
    assert [(record.name, record.status) for record in records] == [
        (f"t{number:03}", "done") for number in range(trials)
    ]
    for record in records:
        assert [row["epoch"] for row in record.reports] == list(range(1, 13)), "no report is missing, none double"
        folder = out / "trials" / f"{record.name}-seed100"
        steps = [row["step"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "step"]
        assert steps == list(range(read_result(folder)["steps"]))
    keys = [(row["trial"], row["seed"], row["epoch"]) for row in ray_rows(out)]
    assert len(keys) == len(set(keys)) == trials * 12
    for name, stamp in stamps.items():
        assert (out / "trials" / f"{name}-seed100" / "result.json").stat().st_mtime_ns == stamp, "not trained again"
    assert json.loads(before.splitlines()[0])["trial"] == "t000"
