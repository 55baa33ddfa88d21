"""A run resumes on the data that it was begun on, or says what has changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.command_here import TRAINING, Command, command, draw, embed, without_ray
from tests.toy import run_toy, toy_config
from tt_ray.config import Config
from tt_ray.data.prepare import open_data
from tt_ray.terminal.errors import UserError
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import read_result
from tt_ray.training.same_data import FILE, check_data, keep_data, record_data

__all__ = ["command"]  # a fixture


class Killed(RuntimeError):
    """Stands for SIGKILL in tests that train in this process."""


def interrupt(command: Command, *arguments: str, after: int = 1) -> None:
    """Trains in this process until so many of three epochs have a checkpoint."""
    without_ray(command)
    import tt_ray.training.trainer
    from tt_ray.training.checkpoint_manager import CheckpointManager
    from tt_ray.training.validation import validate

    save = CheckpointManager.save

    def saved(manager: CheckpointManager, *rest: Any) -> None:
        save(manager, *rest)
        manager.wait()  # a real kill comes when it comes: here, when there is a checkpoint

    def killed(*rest: object) -> dict[str, float]:
        nonlocal after
        after -= 1
        if after < 0:
            raise Killed("killed")
        return validate(*rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tt_ray.training.trainer, "validate", killed)
        patch.setattr(CheckpointManager, "save", saved)
        code, _, err = resume(command, *arguments)
    assert code == 1 and "killed" in err, err


def resume(command: Command, *arguments: str) -> tuple[int, str, str]:
    return command.run([*arguments, "--train.epochs", "3"])


def rename_class(command: Command) -> None:
    for split in ("train", "test"):
        (command.root / split / "dog").rename(command.root / split / "ape")


def add_images(command: Command) -> None:
    draw(command.root / "train" / "cat" / "new.png")
    draw(command.root / "train" / "dog" / "new.png")


def remove_image(command: Command) -> None:
    (command.root / "train" / "dog" / "0.png").unlink()


def change_label(command: Command) -> None:
    """The same file names with another label: two images change places with their classes."""
    (command.root / "train" / "metadata.jsonl").write_text(
        _metadata(lambda name: "cat" if "0" in name else _class(name))
    )


def _class(name: str) -> str:
    return name.split("/")[0]


def _metadata(label: Callable[[str], str]) -> str:
    return "".join(json.dumps({"file_name": name, "label": label(name)}) + "\n" for name in TRAINING)


def change_validation(command: Command) -> None:
    draw(command.root / "test" / "cat" / "new.png")


CHANGES = [
    (rename_class, ["classes differ (new: ape; gone: dog)", "6 training images added", "6 training images gone"]),
    (add_images, ["2 training images added"]),
    (remove_image, ["1 training images gone"]),
    (change_label, ["1 training labels differ"]),
    (change_validation, ["1 validation images added"]),
]


@pytest.mark.parametrize(("change", "parts"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_changed_data_are_refused_by_name(
    change: Callable[[Command], None], parts: list[str], command: Command
) -> None:
    (command.root / "train" / "metadata.jsonl").write_text(_metadata(_class))
    if change is not change_label:
        (command.root / "train" / "metadata.jsonl").unlink()
    interrupt(command, *command.baseline)
    change(command)
    run = command.storage / "shapes_baseline"
    before = (run / FILE).read_bytes(), (run / "metrics.jsonl").read_bytes()
    code, out, err = resume(command, *command.baseline)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"error: {run} was begun on other data: " in err and "--run.accept_changed_data True" in err
    for part in parts:
        assert part in err
    assert before == ((run / FILE).read_bytes(), (run / "metrics.jsonl").read_bytes())


def test_the_same_data_go_on_and_changed_ones_when_told(command: Command) -> None:
    interrupt(command, *command.baseline)
    remove_image(command)
    run, accept = command.storage / "shapes_baseline", ["--run.accept_changed_data", "True"]
    code, out, err = resume(command, *command.baseline, *accept)
    assert code == 0, err
    note = "the data changed between interruptions (run.accept_changed_data): 1 training images gone"
    assert f"note: {note}" in out and note in read_result(run)["notes"]
    assert next(row["step"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "step") == 0
    interrupt(command, *command.baseline, "--run.name", "same")
    code, out, _ = resume(command, *command.baseline, "--run.name", "same")
    assert code == 0 and "note" not in out


def test_accepted_changes_are_told_after_another_interruption(command: Command) -> None:
    interrupt(command, *command.baseline)
    remove_image(command)
    interrupt(command, *command.baseline, "--run.accept_changed_data", "True")
    code, out, err = resume(command, *command.baseline)
    assert code == 0, err
    assert "1 training images gone" in out


def test_another_store_is_refused(command: Command) -> None:
    embed(command.store, TRAINING)
    interrupt(command, *command.taught)
    for path in command.store.iterdir():
        path.unlink()
    command.store.rmdir()
    embed(command.store, TRAINING[::-1])
    code, _, err = resume(command, *command.taught)
    assert code == 2 and "was begun on other data: captions or embedding store differ." in err


def test_without_a_checkpoint_the_data_may_change(command: Command) -> None:
    without_ray(command)
    import tt_ray.training.trainer

    def killed(*_: object) -> None:
        raise Killed("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tt_ray.training.trainer, "timed", killed)
        assert resume(command, *command.baseline)[0] == 1
    assert (command.storage / "shapes_baseline" / FILE).exists()
    remove_image(command)
    code, out, err = resume(command, *command.baseline)
    assert code == 0 and "note" not in out, err


# The record itself


def _record(config: Config) -> pa.Table:
    return record_data(config, open_data(config, Path(config.text.embeddings)))


def test_the_record_names_labels_after_noise_and_text(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    same, noisy = _record(config), _record(config.override("data.label_noise", 0.5))
    keep_data(tmp_path, same, ["a note"])
    assert check_data(tmp_path, _record(config), False) == ["a note"]
    with pytest.raises(UserError, match=r"begun on other data: \d+ training labels differ\."):
        check_data(tmp_path, noisy, False)
    assert same.num_rows == 48 + 37 and set(same["label"].to_pylist()) <= set(
        json.loads(same.schema.metadata[b"classes"])
    )
    shuffled = same.take(pa.array(list(range(48))[::-1] + list(range(48, 85))))
    metadata = dict(shuffled.schema.metadata) | {b"digest": b"another"}
    with pytest.raises(UserError, match="the order of training images differs"):
        check_data(tmp_path, shuffled.replace_schema_metadata(metadata), False)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="data.parquet cannot be read"):
        check_data(tmp_path, _record(config), False)
    assert len(check_data(tmp_path, _record(config), True)) == 1
    keep_data(tmp_path, _record(config), [])
    assert check_data(tmp_path, _record(config), False) == []


def test_a_run_of_an_older_version_has_no_record(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    run_toy(config)
    assert check_data(config.run_dir, _record(config), False) == []
