"""The main command as users run it: a process of its own, under Ray Train and under torchrun.

Where only workers and their results are looked at, `main` runs in this process: that saves its imports and Ray's start.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from benchmarks.start_up import moments
from tests.cluster.ray_here import ray_here as ray_here
from tests.command_here import draw, one_line
from tests.toy import largest_difference, weights
from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.data.prepare import open_data
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError
from tt_ray.train import main as train_command
from tt_ray.train import summary
from tt_ray.training.context import LocalContext
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import read_result, start_run
from tt_ray.training.trainer import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray Data, in its own settings
]

REPOSITORY = Path(__file__).parents[1]
TOY = ["--data.shapes.train_size", "256", "--data.shapes.val_size", "64", "--model.kwargs", "depth", "1"]
# Named here, as recipes are tuned now and then.
TOY += ["--data.label_noise", "0", "--optim.lr", "2e-3", "--train.batch_size", "64"]
ONE_CPU = ["--run.cpus_per_worker", "1"]
TOY += ["--train.epochs", "2", "--train.ema", "0.5", "--run.log_every", "2", *ONE_CPU]
BESIDE = ["--run.async_validation", "True"]
OUR_LINES = re.compile(
    r"(starting|resuming) run /|workers were started again: "
    r"|(starting Ray|starting workers|captions embedded|training): "
)
TAGS = {
    *("loss/total", "loss/classification", "loss/text", "text/weight", "text/balance_w"),
    *("optim/grad_norm", "optim/lr", "speed/images_per_s", "speed/data_wait_share"),
    *("val/top1", "val/top5", "val/loss"),
}


@dataclass(frozen=True)
class Done:
    """A command that has ended, and its configuration."""

    config: Config
    code: int
    out: str
    err: str
    process: int
    """Its process id."""
    began: float
    ended: float


def command(arguments: list[str], launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "tt_ray.train", *arguments]


def run(arguments: list[str], launcher: tuple[str, ...] = (), timeout: float = 240) -> Done:
    """Runs a command to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if launcher else None
    began = time.time()
    with subprocess.Popen(
        command(arguments, launcher),
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate(timeout=timeout)
    return Done(read_config(arguments, "prog"), process.returncode, out, err, process.pid, began, time.time())


def run_here(arguments: list[str], store: Path | None, name: str) -> Config:
    """The same training in this process, without Ray, as run `name`; one thread, as --run.cpus_per_worker says."""
    config = read_config([*arguments, "--run.name", name], "prog")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start_run(config)
        train(config, open_data(config, store), LocalContext.start(use_gpu=False))
    finally:
        torch.set_num_threads(threads)
    return config


def assert_quiet(err: str) -> None:
    """Nothing on stderr but the command's own lines."""
    strange = [line for line in err.splitlines() if not OUR_LINES.match(line)]
    assert not strange


def steps(config: Config) -> list[int]:
    rows = read_rows(config.run_dir / "metrics.jsonl")
    assert len(rows) == (config.run_dir / "metrics.jsonl").read_text().count("\n"), "no broken line"
    return [row["step"] for row in rows if row["kind"] == "step"]


def validations(config: Config) -> list[dict[str, Any]]:
    rows = read_rows(config.run_dir / "metrics.jsonl")
    return sorted((row for row in rows if row["kind"] == "validation"), key=lambda row: row["step"])


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that captions are embedded once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def taught(storage: Path) -> Done:
    """One worker, with the text encoder, from the start to the end; validations run beside it."""
    return run(["shapes_textteacher", *TOY, *BESIDE, "--run.storage", str(storage)])


@pytest.fixture(scope="module")
def store(taught: Done, storage: Path) -> Path:
    """The embedding store that the first run has made."""
    (path,) = (storage / "embeddings").iterdir()
    return path


def test_a_run_ends_with_a_summary(taught: Done) -> None:
    assert taught.code == 0, taught.err
    assert_quiet(taught.err)
    lines, result = taught.out.splitlines(), read_result(taught.config.run_dir)
    assert lines[0] == f"top-1 {result['top1']:.2f} % on 64 validation images after 2 epochs"
    assert lines[-1].startswith("next: ") and "python -m tt_ray.train shapes_baseline" in lines[-1]
    paths = re.findall(rf"{taught.config.run_dir}[^\s']*", taught.out)
    assert len(paths) == 6 and all(Path(path).exists() for path in paths)


def test_what_lies_behind_a_uri_is_exported_before_timm_can_load_it() -> None:
    config = read_config(["shapes_baseline", "--run.storage", "gs://bucket/runs?scheme=http"], "train")
    result = {"epochs": 1, "top1": 9.0, "val_images": 10, "train_seconds": 1.0, "notes": []}
    *_, model, metrics, checkpoints = summary(config, result, 0).split("\n")
    assert model.endswith("python -m tt_ray.export 'gs://bucket/runs/shapes_baseline?scheme=http' --out DIR")
    assert all("gs://bucket/runs/shapes_baseline/" in line for line in (model, metrics, checkpoints))


def test_the_run_folder_is_complete(taught: Done) -> None:
    folder, config = taught.config.run_dir, taught.config
    assert Config.from_yaml(folder / "config.yaml") == config
    assert steps(config) == list(range(8))
    assert [row["step"] for row in validations(config)] == [4, 8]
    assert validations(config)[-1]["top1"] == read_result(folder)["top1"]
    kept = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-00000004", "step-00000008"]
    assert all((path / "manifest.json").exists() for path in kept)
    assert {"model.safetensors", "config.json"} == {path.name for path in (folder / "export").iterdir()}
    leftovers = [path for path in folder.rglob("*") if "partial" in path.name]
    assert not leftovers


def test_tensorboard_has_the_scalars(taught: Done) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(taught.config.run_dir / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == TAGS
    assert [event.step for event in events.Scalars("loss/total")] == [1, 3, 5, 7]
    assert sorted(event.step for event in events.Scalars("val/top1")) == [4, 8]
    assert events.Scalars("text/weight")[0].value == taught.config.text.weight
    assert all(0 <= event.value <= 1 for event in events.Scalars("speed/data_wait_share"))


def test_a_finished_run_is_refused(taught: Done, storage: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in storage.rglob("*")}
    again = run(["shapes_textteacher", *TOY, *BESIDE, "--run.storage", str(storage)])
    assert (again.code, again.out) == (2, "")
    assert "is finished" in one_line(again.err) and "--run.overwrite" in again.err
    assert before == {path: path.stat().st_mtime_ns for path in storage.rglob("*")}


def test_the_benchmark_of_the_start_reads_its_moments_off_a_run(taught: Done) -> None:
    found = moments(taught.config.run_dir, taught.process)
    assert taught.began < found[0] and found == sorted(found) and found[-1] < taught.ended


def test_ray_and_validations_beside_the_training_change_no_bit(taught: Done, store: Path, storage: Path) -> None:
    here = run_here(["shapes_textteacher", *TOY, "--run.storage", str(storage)], store, "here")
    assert largest_difference(weights(taught.config), weights(here)) == 0
    assert read_result(here.run_dir)["top1"] == read_result(taught.config.run_dir)["top1"]
    assert validations(here) == validations(taught.config)


@pytest.fixture(scope="module")
def two_workers(ray_here: None, store: Path, storage: Path) -> Config:
    arguments = [
        "shapes_textteacher",
        *TOY,
        "--run.storage",
        str(storage),
        "--run.name",
        "two",
        "--run.num_workers",
        "2",
    ]
    train_command(arguments)
    return read_config(arguments, "prog")


def test_two_workers_agree_with_one(taught: Done, two_workers: Config) -> None:
    assert steps(two_workers) == list(range(8))
    assert largest_difference(weights(taught.config), weights(two_workers)) < 1e-4
    for key in ("top1", "val_images"):
        assert read_result(two_workers.run_dir)[key] == read_result(taught.config.run_dir)[key]


def test_torchrun_runs_the_same_loop(two_workers: Config, storage: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    arguments = ["shapes_textteacher", *TOY, "--run.storage", str(storage), "--run.name", "torchrun"]
    done = run([*arguments, "--run.num_workers", "2"], launcher)
    assert done.code == 0, done.err
    assert done.out.count("top-1") == 1 and "deployed model" in done.out
    assert steps(done.config) == list(range(8))
    assert largest_difference(weights(two_workers), weights(done.config)) == 0


# Runs that do not get to their end


LONG = ["--train.epochs", "48", "--train.eval_every", "100", "--run.checkpoint_every", "4"]
LONG_STEPS = 192


@pytest.fixture(scope="module")
def uninterrupted(store: Path, storage: Path) -> Config:
    """What the interrupted run below must end with."""
    return run_here(["shapes_textteacher", *TOY, *LONG, "--run.storage", str(storage)], store, "uninterrupted")


@pytest.mark.cluster
def test_whatever_cuts_a_run_off_it_ends_the_same(
    ray_here: None, uninterrupted: Config, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker killed, then told to stop as service managers do, then as terminals do.

    The command itself is killed in tests/io/test_storage.py.
    """
    arguments = ["shapes_textteacher", *TOY, *LONG, "--run.storage", str(storage), "--run.name", "cut-off"]
    done = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with Started(arguments) as started:
            started.wait_for_steps(done + 20)
            if number == signal.SIGTERM:
                lose_the_worker(started, arguments)
            os.killpg(started.process.pid, number)
            out, err = started.process.communicate(timeout=60)
        assert (started.process.returncode, out) == (128 + number, "")
        assert err.count("workers were started again") == (number == signal.SIGTERM)
        *lines, last = err.splitlines()
        assert_quiet("\n".join(lines))
        (text,) = re.findall(r"^stopped after step (\d+), with a checkpoint; the same command resumes it$", last)
        done = int(text)
        assert steps(started.config) == list(range(done)), "not a step is lost"
        assert not (started.config.run_dir / "result.json").exists()
    capsys.readouterr()
    train_command(arguments)
    out, err = capsys.readouterr()
    assert out.startswith("top-1")
    assert_quiet(err)
    assert err.startswith(f"resuming run {started.config.run_dir}\n")
    assert steps(started.config) == list(range(LONG_STEPS))
    assert largest_difference(weights(started.config), weights(uninterrupted)) == 0


def lose_the_worker(started: "Started", arguments: list[str]) -> None:
    """Kills the worker, and waits until the next one has gone further; nobody else may write the run meanwhile."""
    for more in ([], ["--run.overwrite", "True"]):
        with pytest.raises(UserError, match=f"is being written by process {started.process.pid} on host "):
            train_command([*arguments, *more])
    pids = processes_with(started.mark)
    (worker,) = (pid for pid in pids if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    started.wait_for_steps(60)


def steps_so_far(config: Config) -> int:
    """Steps in metrics.jsonl, once there is a checkpoint."""
    if not any((config.run_dir / "checkpoints").glob("step-*/manifest.json")):
        return 0
    return sum(row["kind"] == "step" for row in read_rows(config.run_dir / "metrics.jsonl"))


def start_marked(command: list[str]) -> tuple[str, subprocess.Popen[str]]:
    """A command in a session of its own; what `processes_with` finds its processes by, and the first of them."""
    mark = f"TT_RAY_TEST={uuid.uuid4()}"
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "TT_RAY_TEST": mark.partition("=")[2]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return mark, process


class Started:
    """A command in a process group of its own, whose processes are found by their environment."""

    def __init__(self, arguments: list[str]) -> None:
        self.config = read_config(arguments, "prog")
        self.mark, self.process = start_marked(command(arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what is still running, and waits for the end of the Ray processes, which end by themselves."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        wait_until(lambda: not processes_with(self.mark), 60)

    def wait_for_steps(self, count: int) -> None:
        """Until so many are written down, with a checkpoint."""
        wait_until(lambda: steps_so_far(self.config) >= count or self.process.poll() is not None, 300)
        assert self.process.poll() is None, "it ended by itself"


def processes_with(mark: str) -> list[str]:
    """Process ids that have `mark` in their environment.

    Ray's agents are left out: after SIGKILL they try to tell the driver of it for a minute, before they end.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            agent = b"Agent" in (folder / "cmdline").read_bytes().partition(b"\0")[0]
            if mark.encode() in (folder / "environ").read_bytes() and not agent:
                found.append(folder.name)
        except OSError:
            continue
    return found


def wait_until(reached: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(0.1)


def test_a_mistake_that_one_of_two_workers_meets_ends_both(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one must not be left waiting for it, and nothing is tried again."""
    for name in ("cat", "dog"):
        for number in range(8):
            draw(tmp_path / "images" / "train" / name / f"{number}.png", number)
        draw(tmp_path / "images" / "test" / name / "0.png")
    (tmp_path / "images" / "train" / "dog" / "5.png").write_bytes(b"no image")
    where = ["--data.source", "imagefolder", "--data.root", str(tmp_path / "images"), "--run.storage", str(tmp_path)]
    small = ["--model.kwargs", "depth", "1", "--train.batch_size", "4", "--train.epochs", "1"]
    large_split = ["--data.cache_gb", "0", "--run.num_workers", "2"]
    monkeypatch.setattr(sys, "argv", ["prog", "shapes_baseline", *where, *small, *large_split, *ONE_CPU])
    with pytest.raises(SystemExit, match="2"):
        run_command(train_command)
    out, err = capsys.readouterr()
    first, _, rest = err.partition("\n")
    assert out == "" and first == f"starting run {tmp_path}/shapes_baseline"
    text = one_line(rest)
    assert text.startswith("cannot read image") and "train/dog/5.png" in text
    assert not list(tmp_path.glob("**/result.json"))
