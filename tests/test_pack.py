"""`python -m tt_ray.pack` as users run it: a packed set is the set itself, also where packing was killed."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.cluster.ray_here import stop_ray
from tests.data.sources.test_webdataset import jpeg, write
from tests.embedding_here import CPU, do_here
from tests.test_train_command import ONE_CPU, run, wait_until
from tests.toy import FORKS, run_toy, toy_config, weights
from tt_ray import pack
from tt_ray.cluster.actor_pool import Pool, Worker
from tt_ray.config import DataConfig
from tt_ray.data.sources import webdataset
from tt_ray.data.sources.registry import open_source, open_splits
from tt_ray.data.sources.shard_files import find_shards
from tt_ray.data.sources.tar_index import INDEX
from tt_ray.data.sources.webdataset import make_index
from tt_ray.embeddings.build import write_store
from tt_ray.io.files import sha256
from tt_ray.io.resumable import Shards
from tt_ray.pack import Arguments, Images, _about_captions, main, open_all, parts
from tt_ray.terminal.errors import UserError

HINT = "; without captions: where a table has them, pass it to the training, --text.captions TABLE"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, in train and test, with captions."""
    root = tmp_path_factory.mktemp("data") / "images"
    for split, count in (("train", 22), ("test", 9)):
        lines = []
        for number in range(count):
            name = f"{'cat' if number % 2 else 'dog'}/{number}.jpg"
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / split / name).write_bytes(jpeg(number, (20, 18)))
            about = f'"label": "{name[:3]}", "caption": "number {number}", "pet": "pet {number // 2}"'
            lines.append(f'{{"file_name": "{name}", {about}}}\n')
        (root / split / "metadata.jsonl").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The images as they are, five to a shard."""
    out = tmp_path_factory.mktemp("packed") / "out"
    before, os.environ["RAY_ADDRESS"] = os.environ.get("RAY_ADDRESS"), "local"
    try:
        main(kept(images, out))
    finally:
        stop_ray()
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
    yield out


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray Data, in its own settings
]


def test_a_packed_set_is_the_set_itself(images: Path, packed: Path) -> None:
    assert len(list(packed.glob("train-*.tar"))) == 5 and len(list(packed.glob("test-*.tar"))) == 2
    assert not packed.with_name("out.unfinished").exists()
    plain, ours = (
        open_splits(DataConfig(source=source, root=str(root)), True)
        for source, root in (("imagefolder", images), ("webdataset", packed))
    )
    for before, after in zip(plain, ours, strict=True):
        assert after.ids.equals(before.ids) and after.classes == before.classes
        assert np.array_equal(after.labels, before.labels)
        assert after.captions is not None and after.captions.equals(before.captions)
        assert [after.encoded(row) for row in range(len(after))] == [before.encoded(row) for row in range(len(after))]


def test_groups_are_packed_under_a_name_of_their_own(images: Path, packed: Path) -> None:
    before, _ = open_splits(
        DataConfig(source="imagefolder", root=str(images), group_column="pet", val_share=0.4), False
    )
    config = DataConfig(source="webdataset", root=str(packed), group_column="group", val_share=0.4)
    after, _ = open_splits(config, False)
    assert after.groups is not None and before.groups is not None
    assert after.ids.equals(before.ids) and after.groups.equals(before.groups)
    with pytest.raises(UserError, match="--data.group_column group"):
        open_splits(replace(config, group_column="pet"), False)


def test_shards_without_groups_say_so(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", {"a.jpg": jpeg(0), "a.cls": "0"})
    with pytest.raises(UserError, match="has no groups: pack its images again"):
        open_source(DataConfig(source="webdataset", root=str(tmp_path), group_column="group"), "train", False)


def test_an_index_takes_groups_from_the_field_that_is_named(tmp_path: Path) -> None:
    about = {number: f'{{"pet": "pet {number // 2}", "label": "x"}}'.encode() for number in range(4)}
    files = {
        f"{number}.{end}": jpeg(number) if end == "jpg" else about[number]
        for number in about
        for end in ("jpg", "json")
    }
    write(tmp_path / "train-0.tar", files)
    main(["--data.root", str(tmp_path), "--data.group_column", "pet", "--index_only"])
    source = open_source(DataConfig(source="webdataset", root=str(tmp_path), group_column="group"), "train", False)
    assert source.groups is not None and source.groups.to_pylist() == ["pet 0", "pet 0", "pet 1", "pet 1"]


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--unlabelled"], "unlabelled packs no groups"), (["--data.source", "shapes"], "no such groups")],
)
def test_groups_that_would_be_lost_are_refused(more: list[str], words: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        main(["--data.root", str(images), "--data.group_column", "pet", "--out", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


def test_training_on_it_ends_with_the_same_weights(images: Path, packed: Path, tmp_path: Path) -> None:
    ends = []
    for source, root in (("imagefolder", images), ("webdataset", packed)):
        config = toy_config(tmp_path / source, data__source=source, data__root=str(root), data__num_loaders=2)
        config = config.override("data.cache_gb", 0.0)
        run_toy(config)
        ends.append(weights(config))
    assert ends[0].keys() == ends[1].keys() and all((ends[0][name] == ends[1][name]).all() for name in ends[0])


@pytest.mark.release
def test_the_command_trains_from_shards_and_embeddings_behind_uris(packed: Path, tmp_path: Path) -> None:
    config = DataConfig(source="webdataset", root=str(packed))
    ids = open_splits(config, True)[0].ids
    rows = np.random.default_rng(0).normal(1, 1, (len(ids), 8)).astype(np.float32)
    write_store(tmp_path / "store", ids, [rows], 8, "float32", {"id": "random", "revision": "0"})
    words = ["shapes_textteacher", "--data.source", "webdataset", "--data.root", f"file://{packed}"]
    words += ["--text.embeddings", f"file://{tmp_path / 'store'}", "--data.local_cache", str(tmp_path / "cache")]
    words += ["--train.epochs", "1", "--train.batch_size", "4", "--run.storage", str(tmp_path / "runs"), *ONE_CPU]
    words += ["--model.kwargs", "depth", "1", "embed_dim", "24", "num_heads", "2", "--data.label_noise", "0"]
    first = run(words)
    assert first.code == 0, first.err
    copies = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".tar", ".npy")]
    assert len(copies) == 7 + 2 and "on 9 validation images" in first.out


def test_an_existing_set_gets_an_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "_SMALL", 0)  # in processes
    for number in range(2):
        write(tmp_path / f"train-{number}.tar", {f"{number}.jpg": jpeg(number), f"{number}.cls": str(number)})
    main(["--data.root", str(tmp_path), "--index-only"])
    assert capsys.readouterr().out == f"{tmp_path / INDEX}: 2 images in 2 shards, 0 cannot be read{HINT}\n"
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path / "train-0.tar", {"0.jpg": jpeg(0), "0.cls": "0", "0.txt": "a cat"})
    main(["--data.root", str(tmp_path), "--index-only"])
    assert capsys.readouterr().out == f"{tmp_path / INDEX}: 1 images in 1 shards, 0 cannot be read\n"


@pytest.mark.parametrize("names", [("cat", "10", "2"), ("7", "3")])
def test_an_index_that_is_written_again_keeps_the_order_of_classes(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of the trained model's outputs: numbers would be class numbers, and words would be sorted."""
    config = DataConfig(source="webdataset", root=str(tmp_path))
    for number, name in enumerate(names):
        write(tmp_path / f"train-{number}.tar", {f"{number}.jpg": jpeg(number), f"{number}.cls": name})
    shards = find_shards(config)
    shards.write_index(make_index(shards, config, classes=names))
    before = open_source(config, "train", False)
    assert before.classes == names and before.labels.tolist() == list(range(len(names)))
    main(["--data.root", str(tmp_path), "--index-only"])
    again = open_source(config, "train", False)
    assert again.classes == names and again.labels.tolist() == before.labels.tolist()
    assert "classes" not in capsys.readouterr().out
    write(tmp_path / "train-9.tar", {"9.jpg": jpeg(9), "9.cls": "dog"})
    main(["--data.root", str(tmp_path), "--index-only"])
    assert f"not all of the {len(names)} classes of the index before" in capsys.readouterr().out
    assert open_source(config, "train", False).classes == tuple(sorted((*names, "dog")))


@pytest.mark.parametrize("captions", [None, pa.array([None, None], pa.string()), pa.array([None, "a cat"])])
def test_shards_without_captions_say_where_captions_go(captions: pa.Array | None) -> None:
    assert _about_captions(captions) == (HINT if captions is None or captions.null_count == 2 else "")


def test_progress_counts_images(images: Path) -> None:
    """Each image of both splits is one item, in a shard of its split."""
    given = Arguments(data=Images(root=str(images)), shard_size=4)
    found = parts(open_all(given), given)
    assert [number for items, _ in found for number in items] == list(range(22 + 9))
    assert all(len(items) == len(part.rows) for items, part in found)
    assert {part.shard[:-10] for _, part in found} == {"train", "test"} and found[6][1].shard == "test-00000.tar"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "pass --out"),
        (["--index-only", "--data.root", "none"], r"no folder of \.tar files"),
        (["--out", "OUT", "--shard_size", "0"], "--shard_size is 0"),
        (["--out", "OUT", "--quality", "0"], "quality is 0, but must be between 1 and 100"),
        (["--out", "OUT", "--data.root", "none"], "none"),
        (["--out", "OUT", "--text.captions", "x.csv"], "no option --text.captions: a table of captions is not packed"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main(arguments)
    assert not list(tmp_path.glob("OUT*"))


def kept(images: Path, out: Path) -> list[str]:
    """Arguments with which the images are packed as in `packed`."""
    about = ["--data.root", str(images), "--data.group_column", "pet", "--keep", "--shard_size", "5"]
    return [*about, "--out", str(out)]


def assert_same_files(out: Path, packed: Path) -> None:
    files = sorted(path.name for path in packed.iterdir())
    assert sorted(path.name for path in out.iterdir()) == files
    assert all(sha256(out / name) == sha256(packed / name) for name in files)


def _killed_in_the_third_shard(words: list[str]) -> None:
    """The command, killed once the shard is written, and before that is recorded."""

    def do(shards: Shards, items: Sequence[Sequence[Any]], make: Callable[[Pool], Worker], *_: object) -> None:
        worker = make(CPU)
        for shard in shards.missing():
            content = worker(list(items[shard]))
            if shard == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            shards.add(shard, worker.about, content)

    pack.do_missing = do
    main(words)


def test_killed_it_continues_and_nothing_is_lost_or_doubled(
    images: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = FORKS.Process(target=_killed_in_the_third_shard, args=(kept(images, out),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob("out.unfinished/*.shard"))) == 2 and not (out / INDEX).exists()
    packs: list[int] = []
    pack_one = pack.Packer.__call__
    monkeypatch.setattr(pack, "do_missing", do_here)
    monkeypatch.setattr(pack.Packer, "__call__", lambda own, items: packs.append(1) or pack_one(own, items))
    main(kept(images, out))
    assert len(packs) == 7 - 2, "what is finished is not packed again"
    assert_same_files(out, packed)
    with pytest.raises(UserError, match="holds packed images already"):
        main(kept(images, out))


def test_shards_of_others_are_not_overwritten(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "do_missing", do_here)
    write(tmp_path / "out" / "train-00000.tar", {"a.jpg": jpeg(0), "a.cls": "0"})
    before = sha256(tmp_path / "out" / "train-00000.tar")
    with pytest.raises(UserError, match="holds shards already, such as train-00000.tar"):
        main(kept(images, tmp_path / "out"))
    assert [sha256(path) for path in (tmp_path / "out").iterdir()] == [before]
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize(("old", "new"), [('"label": "cat"', '"label": "dog"'), ("number 0", "number none")])
def test_labels_and_captions_that_change_before_it_continues_are_not_mixed(
    old: str, new: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, root)

    def one(shards: Shards, items: Sequence[Sequence[Any]], make: Callable[[Pool], Worker], *_: object) -> None:
        worker = make(CPU)
        shards.add(0, worker.about, worker(list(items[0])))
        raise UserError("killed")

    monkeypatch.setattr(pack, "do_missing", one)
    with pytest.raises(UserError, match="killed"):
        main(kept(root, out))
    about = root / "train" / "metadata.jsonl"
    about.write_text(about.read_text().replace(old, new, 1))
    monkeypatch.setattr(pack, "do_missing", do_here)
    with pytest.raises(UserError, match="was begun with other labels, captions and groups"):
        main(kept(root, out))


@pytest.mark.release
def test_killed_with_its_actors_it_continues(images: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tt_ray.pack", *kept(images, out), "--actors", "1"]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(tmp_path.glob("out.unfinished/*.shard")) or process.poll() is not None, 300)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert_same_files(out, packed)
