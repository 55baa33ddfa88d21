"""The main command on a small image folder, in this process; and what its mistakes must leave behind."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import tt_ray.cluster.launch
import tt_ray.cluster.run
from tt_ray.embeddings.build import write_store
from tt_ray.terminal.command import run_command
from tt_ray.train import main as train

SMALL = ["--train.batch_size", "4", "--model.kwargs", "depth", "1", "embed_dim", "24", "num_heads", "2"]
TRAINING = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(6)]
VALIDATION = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(2)]


class Command:
    """`python -m tt_ray.train` on a small image folder, in this process; it must end before Ray starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.storage, self.store = folder / "images", folder / "runs", folder / "store"
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.storage.mkdir()
        for number, name in enumerate(TRAINING):
            draw(self.root / "train" / name, number)
        for number, name in enumerate(VALIDATION):
            draw(self.root / "test" / name, number)

    @property
    def baseline(self) -> list[str]:
        """The command line of a run without text that works."""
        where = ["--data.source", "imagefolder", "--data.root", str(self.root), "--run.storage", str(self.storage)]
        return ["shapes_baseline", *where, *SMALL]

    @property
    def taught(self) -> list[str]:
        """The command line of a run that works once `self.store` is there."""
        return ["shapes_textteacher", *self.baseline[1:], "--text.embeddings", str(self.store)]

    def run(self, arguments: list[str]) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self.monkeypatch.setattr(sys, "argv", ["prog", *arguments])
        self.monkeypatch.setattr(tt_ray.cluster.launch, "start_ray", lambda config, say: True)
        self.monkeypatch.setattr(tt_ray.cluster.run, "cluster_address", lambda: "host:1")
        nothing = lambda *_: pytest.fail("training has started")  # noqa: E731
        self.monkeypatch.setattr(tt_ray.cluster.launch, "train_on_ray", nothing)
        code = 0
        try:
            run_command(train)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *self.capsys.readouterr()

    def mistake(self, arguments: list[str]) -> str:
        """The one line of a command that must be refused and leave everything as it was."""
        before = listing(self.storage)
        code, out, err = self.run(arguments)
        assert (code, out) == (2, "")
        assert listing(self.storage) == before, "something was written"
        return one_line(err)


def one_line(err: str) -> str:
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err and "Caught" not in err
    return err.removeprefix("error: ").rstrip()


def last_line(err: str, run: Path) -> str:
    """The error of a run that had started and said so."""
    first, _, rest = err.partition("\n")
    assert first == f"starting run {run}"
    return one_line(rest)


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder, hidden files as well, with times and contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def draw(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def embed(path: Path, ids: list[str], dim: int = 8) -> None:
    rows = np.random.default_rng(0).normal(size=(len(ids), dim)).astype(np.float32)
    write_store(path, pa.array(ids), [rows], dim, "float32", {"id": "random", "revision": "0"})


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


def text_file(command: Command) -> None:
    (command.root / "train" / TRAINING[7]).write_text("a web page that says not found")


def cut_off(command: Command) -> None:
    path = command.root / "test" / VALIDATION[3]
    path.write_bytes(path.read_bytes()[:-2000])


def fill(folder: Path) -> Path:
    """Leaves no room on the folder's file system."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
    return ballast


def without_ray(command: Command) -> None:
    """The same command as one process of torchrun, which trains in this process."""
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "1", "RANK": "0"}.items():
        command.monkeypatch.setenv(name, value)
