"""Claim: whatever dies, the run ends complete, with each step once and the weights of an undisturbed run, bit for bit.

    python -m benchmarks.faults --times 10

Each fault strikes the command that users give as often as `--times` says, at a moment drawn from all of the run's time:
start-up, training, validations, checkpoints, export. Where the command itself dies the same command is given again. One
worker on CPU, a fixed width, so that weights can be compared bit for bit. The disk that fills up is a small file system
in memory, which takes the right to mount one. `--out` is written after each strike; `--resume` keeps what it holds.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.io.checkpoint_folder import checkpoint_name, checkpoints
from tt_ray.io.files import sha256
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import read_result

_FIELDS = {
    "data.shapes.train_size": "256",
    "data.shapes.val_size": "64",
    "train.batch_size": "64",
    "train.epochs": "120",
    "train.eval_every": "30",
    "run.checkpoint_every": "20",
    "run.log_every": "5",
    "run.cpus_per_worker": "1",
}
_MARK = "TT_RAY_FAULTS"
_LIMIT_S = 1500.0
# Redrawn: moments at which the run was over, or at which there was nothing to strike.
_DRAWS = 10


class Missed(RuntimeError):
    """The moment came too late: nothing has been struck."""


@dataclass
class Command:
    """A run's command, and its process while it runs."""

    folder: Path
    name: str
    usual_s: float
    """How long the command takes when nothing disturbs it."""
    address: str = "local"
    process: subprocess.Popen[str] | None = None
    began: float = 0.0
    struck: str = ""
    """Where the run stood at the moment of the strike."""

    @property
    def mark(self) -> str:
        """In the environment of all processes of this run, Ray's too."""
        return str(self.folder / self.name)

    @property
    def arguments(self) -> list[str]:
        """What follows `python -m tt_ray.train`."""
        fields = {**_FIELDS, "run.storage": str(self.folder), "run.name": self.name}
        return ["shapes_baseline", *(word for path, value in fields.items() for word in (f"--{path}", value))]

    @cached_property
    def config(self) -> Config:
        return read_config(self.arguments, "benchmark")

    def start(self) -> None:
        """In a session of its own; all its processes, Ray's too, are found by their environment."""
        environment = os.environ | {"RAY_ADDRESS": self.address, _MARK: self.mark}
        command = [sys.executable, "-m", "tt_ray.train", *self.arguments]
        pipe, self.began = subprocess.PIPE, time.monotonic()
        self.process = subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def finish(self) -> tuple[int, str]:
        """Exit status, and all that was printed."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=_LIMIT_S)
        return self.process.returncode, out + err

    def kill(self) -> None:
        """SIGKILL; returns when its workers, where Ray was the command's own, have ended as well."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        if self.address == "local":
            until(lambda: not self.workers(), 60)

    def until_moment(self, ready: Callable[[], Any] = lambda: True) -> None:
        """Returns at a random moment between `ready` and the usual end; raises Missed when the run ends before."""
        process = self.process
        assert process is not None
        until(lambda: ready() or process.poll() is not None, _LIMIT_S)
        time.sleep(random.random() * max(self.usual_s - (time.monotonic() - self.began), 1.0))
        self.struck = self.standing()
        if process.poll() is not None or self.struck == "finished":
            raise Missed(f"the run was over: {self.finish()[1][-500:]}")

    def complete(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        found = checkpoints(self.config.run_dir / "checkpoints")
        return [path for path in found if (path / "manifest.json").exists()]

    def standing(self) -> str:
        """How far the run is, as its folder shows."""
        folder, found = self.config.run_dir, self.complete()
        if (folder / "result.json").exists():
            return "finished"
        if any(folder.glob("checkpoints/.step-*.partial")):
            return "writing a checkpoint"
        if found:
            return f"after {found[0].name}"
        return "before the first checkpoint" if (folder / "metrics.jsonl").exists() else "start-up"

    def workers(self) -> list[int]:
        """Process ids of the run's workers."""
        return processes(self.mark, b"RayTrainWorker")


def processes(mark: str, having: bytes = b"") -> list[int]:
    """Process ids with `mark` in their environment and `having` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marked = f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if marked and having in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def until(reached: Callable[[], Any], seconds: float) -> None:
    """Waits; raises RuntimeError when it takes longer."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.02)


@contextmanager
def cluster(run: Command, nodes: int) -> Iterator[Any]:
    """Ray's own cluster for tests: a head without CPUs, and `nodes` of one CPU. `run` is to join it."""
    from ray.cluster_utils import Cluster

    # It lives on this machine, for a minute, and its processes are found like the command's.
    settings = {"RAY_AUTH_MODE": "disabled", _MARK: run.mark}
    os.environ |= settings
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": None})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        run.address = str(cluster.address)
        yield cluster
    finally:
        cluster.shutdown()
        for name in settings:
            os.environ.pop(name)


def worker_killed(run: Command) -> str:
    run.start()
    run.until_moment(run.workers)
    kill_all(run.workers())
    return expect(run, 0, again(run))


def node_removed(run: Command) -> str:
    with cluster(run, 2) as nodes:
        run.start()
        run.until_moment(run.workers)
        parents = {parent_of(worker) for worker in run.workers()}
        for node in nodes.worker_nodes:
            if node.all_processes["raylet"][0].process.pid in parents:
                nodes.remove_node(node, allow_graceful=False)
                return expect(run, 0, again(run))
        raise Missed("no worker was there")


def driver_killed(run: Command) -> str:
    run.start()
    run.until_moment()
    run.kill()
    run.start()
    return expect(run, 0, going_on(run))


def cluster_gone(run: Command) -> str:
    """All of Ray dies at once; the command has to end by itself, and not well."""
    with cluster(run, 1):
        run.start()
        assert run.process is not None
        run.until_moment()
        kill_all([pid for pid in processes(run.mark) if pid != run.process.pid])
        code, text = run.finish()
        if not code:
            return f"exit 0 without a cluster: {text[-300:]}"
    with cluster(run, 1):
        run.start()
        return expect(run, 0, going_on(run))


def truncate(file: Path) -> None:
    os.truncate(file, random.randrange(file.stat().st_size))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def damaged(damage: Callable[[Path], None], run: Command) -> str:
    """The newest checkpoint suffers between two commands."""
    run.start()
    run.until_moment(lambda: len(run.complete()) > 1)
    run.kill()
    if run.standing() == "finished":
        raise Missed("the run was over")
    newest = run.complete()[0]
    damage(random.choice([file for file in newest.iterdir() if file.name != "config.yaml"]))
    run.start()
    return expect(run, 0, f"{newest.name}.*resumed from step-")


def disk_full(run: Command) -> str:
    run.start()
    run.until_moment()
    filler = run.folder / "filler"
    with suppress(OSError), filler.open("wb") as file:  # closing it writes, too
        while True:
            file.write(bytes(1 << 16))
    code, text = run.finish()
    filler.unlink()
    if not code:
        raise Missed("the run needed no more of the disk")
    if code != 2 or "No space left" not in text or ("step-" not in text and "after" in run.struck):
        return f"on the full disk: exit {code}: {text[-500:]}"
    run.start()
    return expect(run, 0, going_on(run))


FAULTS: dict[str, Callable[[Command], str]] = {
    "worker killed": worker_killed,
    "node removed": node_removed,
    "driver killed": driver_killed,
    "cluster gone": cluster_gone,
    "checkpoint truncated": partial(damaged, truncate),
    "byte of a checkpoint flipped": partial(damaged, flip),
    "disk full": disk_full,
}


def again(run: Command) -> str:
    """What a command says whose worker has died; one that had not begun to train is started again without a word."""
    return "workers were started again" if run.struck not in ("start-up", "finished") else ""


def going_on(run: Command) -> str:
    """What the second command says; a first one that was still in its start-up may have left nothing."""
    return "resuming run" if run.struck != "start-up" else "(resuming|starting) run"


def parent_of(pid: int) -> int:
    """0 where the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill_all(pids: Sequence[int]) -> None:
    """SIGKILL; raises Missed when there is none."""
    if not pids:
        raise Missed("there was no process to kill")
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def expect(run: Command, code: int, text: str) -> str:
    """What differs from the expected end of a command; empty where nothing does."""
    found, printed = run.finish()
    if found != code:
        return f"exit {found}: {printed[-500:]}"
    return "" if re.search(text, printed) else f"did not say {text!r}: {printed[-500:]}"


def compare(run: Command, undisturbed: Config) -> str:
    """What differs from the undisturbed run; empty where nothing does."""
    config = run.config
    steps = [row["step"] for row in read_rows(config.run_dir / "metrics.jsonl") if row["kind"] == "step"]
    if steps != list(range(read_result(undisturbed.run_dir)["steps"])):
        return "metrics.jsonl has not each step once"
    for name in ("model.safetensors", "optimizer.safetensors"):
        place = f"checkpoints/{checkpoint_name(len(steps))}/{name}"
        if sha256(config.run_dir / place) != sha256(undisturbed.run_dir / place):
            return f"{name} differs"
    return ""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 24 MiB; raises RuntimeError where it cannot be mounted."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode:
        raise RuntimeError("needs the right to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def strike(fault: str, name: str, folder: Path, undisturbed: Command) -> dict[str, str]:
    """One try, drawn again where it missed: where the run stood, and what went wrong, empty where nothing did."""
    run = undisturbed
    for draw in range(_DRAWS):
        with small_disk(folder) if fault == "disk full" else nullcontext(folder) as place:
            run = Command(place, f"{name}-{draw}", undisturbed.usual_s)
            try:
                problem = FAULTS[fault](run) or compare(run, undisturbed.config)
            except Missed:
                continue
            except Exception as error:  # an odd strike is counted as a failure, and costs no other
                problem = f"{type(error).__name__}: {error}"
            finally:
                with suppress(Missed):
                    kill_all(processes(run.mark))
                shutil.rmtree(run.config.run_dir, ignore_errors=True)
        return {"struck": run.struck, "problem": problem}
    return {"struck": run.struck, "problem": f"missed {_DRAWS} times"}


def strikes(given: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, str]]]:
    """All tries by fault; written to the file `given.out` after each."""
    tries: dict[str, list[dict[str, str]]] = {}
    if given.resume and given.out.exists():
        tries = json.loads(given.out.read_text())["tries"]
    undisturbed = Command(folder, "undisturbed", 0.0)
    undisturbed.start()
    if problem := expect(undisturbed, 0, "top-1"):
        raise SystemExit(f"error: the undisturbed run: {problem}")
    undisturbed.usual_s = time.monotonic() - undisturbed.began
    given.out.parent.mkdir(parents=True, exist_ok=True)
    # One of each fault at a time: an interruption leaves some of all.
    for number in range(given.times):
        for fault in given.faults:
            done = tries.setdefault(fault, [])
            if len(done) > number:
                continue
            done.append(strike(fault, f"{fault.replace(' ', '-')}-{number}", folder, undisturbed))
            note = done[-1]["problem"] or "complete and bit-identical"
            print(f"{fault}, {number + 1} of {given.times}, {done[-1]['struck']}: {note}", file=sys.stderr, flush=True)
            content = {"undisturbed_s": undisturbed.usual_s, "fields": _FIELDS, "tries": tries}
            given.out.write_text(json.dumps(content, indent=2) + "\n")
    return tries


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exit status 1 when any try ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="tries of each fault")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    parser.add_argument("--resume", action="store_true", help="go on with the tries in --out")
    given = parser.parse_args(arguments)
    random.seed(given.seed)
    with tempfile.TemporaryDirectory(prefix="tt-ray-faults-") as name:
        tries = strikes(given, Path(name))
    print("| fault | tries | ended complete and bit-identical |\n| --- | --- | --- |")
    for fault, done in tries.items():
        print(f"| {fault} | {len(done)} | {sum(not each['problem'] for each in done)} |")
    raise SystemExit(int(any(each["problem"] for done in tries.values() for each in done)))


if __name__ == "__main__":
    main()
