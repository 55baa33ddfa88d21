"""Disks that are full, read-only or another's: one line with the last good checkpoint, and nothing is lost."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.command_here import TRAINING, Command, fill, last_line, without_ray
from tests.command_here import command as command
from tt_ray.training.metrics_log import read_rows


def test_storage_below_a_file(command: Command) -> None:
    (command.storage / "file").write_text("")
    text = command.mistake([*command.baseline, "--run.storage", str(command.storage / "file" / "runs")])
    assert f"{command.storage}/file is a file" in text and "--run.storage" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_storage_without_the_right_to_write(command: Command) -> None:
    command.storage.chmod(0o500)
    assert "not writable" in command.mistake(command.baseline)


def test_storage_on_a_read_only_file_system(mounted: Path, command: Command) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    text = command.mistake([*command.baseline, "--run.storage", str(mounted / "runs")])
    assert f"{mounted} is not writable" in text and "--run.storage" in text


def test_no_room_for_the_embeddings(tmp_path: Path, mounted: Path, command: Command) -> None:
    (tmp_path / "captions.csv").write_text("image_id,caption\n" + "".join(f"{i},a cat {i}\n" for i in TRAINING))
    fill(mounted)
    where = ["--text.embeddings", "", "--text.captions", str(tmp_path / "captions.csv")]
    arguments = [*command.taught, *where, "--run.storage", str(mounted / "runs")]
    text = command.mistake(arguments)
    assert "cannot write" in text and "No space left on device" in text and "--run.storage" in text


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "step"]


def test_a_full_disk_names_the_last_good_checkpoint_and_the_run_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(command)
    import tt_ray.training.checkpoint_manager

    save, calls = tt_ray.training.checkpoint_manager.save_checkpoint, 0

    def full(path: Path, *rest: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device", str(path))
        save(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tt_ray.training.checkpoint_manager, "save_checkpoint", full)
    arguments = [*command.baseline, "--train.epochs", "3"]
    run = command.storage / "shapes_baseline"
    code, out, err = command.run(arguments)
    text = last_line(err, run)
    assert (code, out) == (2, "")
    assert "cannot write" in text and "step-00000006" in text and "No space left on device" in text
    assert f"the last good checkpoint is {run}/checkpoints/step-00000003" in text
    assert not (run / "result.json").exists() and not list((run / "checkpoints").glob("step-00000006"))
    code, out, _ = command.run(arguments)
    assert code == 0 and "top-1" in out
    assert steps(run) == list(range(9)) and (run / "result.json").exists()


@pytest.mark.parametrize("left", [0, 40_000])
def test_a_really_full_disk(left: int, mounted: Path, command: Command) -> None:
    """`left` bytes of room: none for metrics.jsonl, or enough for it but not for the weights."""
    without_ray(command)
    run, ballast = mounted / "shapes_baseline", mounted / "ballast"
    arguments = [*command.baseline, "--train.epochs", "3", "--run.storage", str(mounted)]
    import tt_ray.training.checkpoint_manager

    save = tt_ray.training.checkpoint_manager.save_checkpoint

    def then_fill(path: Path, *rest: object) -> None:
        save(path, *rest)  # type: ignore[arg-type]
        if path.name == "step-00000003":
            os.truncate(fill(mounted), ballast.stat().st_size - left)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tt_ray.training.checkpoint_manager, "save_checkpoint", then_fill)
        code, out, err = command.run(arguments)
    text = last_line(err, run)
    assert (code, out) == (2, "")
    assert "cannot write" in text and "No space left on device" in text
    assert f"the last good checkpoint is {run}/checkpoints/step-00000003" in text
    ballast.unlink()
    code, out, _ = command.run(arguments)
    assert code == 0 and "top-1" in out and steps(run) == list(range(9))
