"""Others' embeddings become stores: values and ids as they were; archives are read in place and not trusted."""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_here import fill
from tt_ray.embeddings import __main__ as store_commands
from tt_ray.embeddings import importers
from tt_ray.embeddings.exporter import export_dataset
from tt_ray.embeddings.importers import Imported, Target, import_dataset, import_zip
from tt_ray.embeddings.store import open_store
from tt_ray.embeddings.zip_archive import Archive
from tt_ray.io.resumable import Shards
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError

DIM = 5
NAMES = [f"n{number % 3:02d}_{number}.JPEG" for number in range(11)]
VALUES = (np.random.default_rng(0).normal(size=(len(NAMES), DIM)) + 2).astype(np.float32)


def silent(what: str, done: int, of: int) -> None:
    """Shows nothing."""


def _npy(array: Any, pickled: bool = False) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=pickled)
    return content.getvalue()


def _zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    members = {f"{name}.emb.npy": _npy(vector) for name, vector in zip(NAMES, VALUES, strict=True)}
    return _zip(tmp_path / "all_encodings.zip", members | {"readme.txt": b"not an embedding"})


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importers, "_SHARD", 4)
    monkeypatch.setattr(importers, "_BLOCK", 3)


def _import(archive: Path, ids: list[str] | None = None, stats: Path | None = None, dtype: Any = "float32") -> Imported:
    given = None if ids is None else pa.array(ids, pa.string())
    return import_zip(archive, Target(archive.with_name("store"), dtype, "bert"), given, stats, silent)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_archive_by_its_own_names(archive: Path, dtype: Any) -> None:
    made = _import(archive, dtype=dtype)
    np.testing.assert_array_equal(made.store.embeddings, VALUES.astype(dtype))
    assert made.store.ids.to_pylist() == NAMES and made.notes == ()
    assert made.store.manifest["encoder"]["id"] == "bert"
    assert sorted(path.name for path in archive.parent.iterdir()) == ["all_encodings.zip", "store"]
    np.testing.assert_allclose(made.store.mean, made.store.embeddings.astype(np.float64).mean(0), rtol=1e-6)


def test_an_archive_joined_with_images(archive: Path) -> None:
    ids = [f"{name.split('_')[0]}/{name}" for name in reversed(NAMES[2:])] + ["n07/n07_0.JPEG"]
    made = _import(archive, ids)
    assert sorted(made.store.ids.to_pylist()) == sorted(ids[:-1])
    rows = made.store.rows_of(pa.array(ids[:-1]))
    np.testing.assert_array_equal(made.store.embeddings[rows], VALUES[:1:-1])
    assert made.notes == (
        "1 images have no embedding and are left out",
        "2 embeddings belong to no image and are left out",
    )


def test_class_embeddings_stand_in(tmp_path: Path) -> None:
    members = {f"n{number:02d}.emb.npy": _npy(VALUES[number]) for number in range(2)}
    members["n01_3.JPEG.emb.npy"] = _npy(VALUES[9])
    ids = [f"n01/n01_{number}.JPEG" for number in range(9)] + ["n00/n00_1.JPEG"]
    made = _import(_zip(tmp_path / "all_encodings.zip", members), ids)
    expected = np.concatenate([np.repeat(VALUES[1:2], 9, 0), VALUES[:1]])
    expected[3] = VALUES[9]
    np.testing.assert_array_equal(made.store.embeddings[made.store.rows_of(pa.array(ids))], expected)
    assert made.notes == ("9 images have their class's embedding",)


def test_statistics_come_with_the_archive(archive: Path, tmp_path: Path) -> None:
    stats = np.stack([VALUES.mean(0) + VALUES.std(0) / 4, VALUES.std(0)])
    np.save(tmp_path / "stats.npy", stats)
    made = _import(archive)
    np.testing.assert_array_equal([made.store.mean, made.store.std], stats)
    assert made.notes == ("mean and std are those of the given file; its mean is up to 0.25 std off the rows'",)


@pytest.mark.parametrize(
    "stats", [VALUES[:2, :3], np.stack([VALUES[0], -np.ones(DIM)]), np.full((2, DIM), np.nan), None]
)
def test_bad_statistics(archive: Path, tmp_path: Path, stats: np.ndarray | None) -> None:
    path = tmp_path / "other.npy"
    if stats is not None:
        np.save(path, stats)
    with pytest.raises(UserError, match=r"other.npy"):
        _import(archive, stats=path)
    assert not (tmp_path / "store").exists()


def test_a_killed_import_goes_on(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = Archive.read, []

    def dying(self: Archive, member: zipfile.ZipInfo) -> Any:
        seen.append(member.filename)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return read(self, member)

    monkeypatch.setattr(Archive, "read", dying)
    with pytest.raises(KeyboardInterrupt):
        _import(archive)
    assert not (archive.parent / "store").exists() and (archive.parent / "store.unfinished").is_dir()
    seen[:] = ["again"] * 7
    np.testing.assert_array_equal(_import(archive).store.embeddings, VALUES)
    # Its length is asked of the first member; the first shard's four are there.
    assert seen[7:] == [f"{name}.emb.npy" for name in [NAMES[0], *NAMES[4:]]]
    assert not (archive.parent / "store.unfinished").exists()


def test_a_finished_import_is_left_alone(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (archive.parent / ".store.1-0123abcd.partial").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shards, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        _import(archive)
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name, "store", "store.unfinished"]
    before = (archive.parent / "store" / "manifest.json").read_bytes()
    made = _import(archive)
    assert made.notes == ("it was complete already: nothing was done",) and len(made.store) == len(NAMES)
    assert not (archive.parent / "store.unfinished").exists()
    others: list[dict[str, Any]] = [{"ids": NAMES[1:]}, {"dtype": "float16"}]
    for other in others:
        with pytest.raises(UserError, match="exists already, made of something else"):
            _import(archive, **other)
    assert (archive.parent / "store" / "manifest.json").read_bytes() == before


def test_classes_that_become_image_ids_are_told(tmp_path: Path) -> None:
    members = {f"{name}.emb.npy": _npy(VALUES[0]) for name in ("n01", "n01_3.JPEG", "n02", "cat.JPEG")}
    (note,) = _import(_zip(tmp_path / "all_encodings.zip", members)).notes
    assert note.startswith("1 embeddings, such as n01, are named like other images' classes")


def test_another_archive_does_not_go_on(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(importers, "write_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        _import(archive)
    members = {f"{name}.emb.npy": _npy(vector) for name, vector in zip(NAMES, VALUES[::-1], strict=True)}
    _zip(archive, members)
    with pytest.raises(UserError, match="store.unfinished was begun with other archive"):
        _import(archive)


class Harmful:
    """Pickles as a call."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was read",)


SPOILT = [
    ({"../up.emb.npy": _npy(VALUES[0])}, "points outside of the archive"),
    ({"/etc/up.emb.npy": _npy(VALUES[0])}, "points outside of the archive"),
    ({"a\\..\\up.emb.npy": _npy(VALUES[0])}, "points outside of the archive"),
    ({"a.emb.npy": _npy(np.array([Harmful()], object), pickled=True)}, "a.emb.npy cannot be read .*allow_pickle=False"),
    ({"a.emb.npy": _npy(VALUES[0])[:-1]}, "a.emb.npy cannot be read"),
    ({"a.emb.npy": b"?"}, "a.emb.npy cannot be read"),
    ({"a.emb.npy": b""}, "a.emb.npy cannot be read"),
    ({"a.emb.npy": _npy(VALUES[0]).replace(b"(5,)", b"(2**60,)")}, "a.emb.npy cannot be read"),
    ({"a.emb.npy": bytes(2_000_000)}, "a.emb.npy has 2000000 bytes, which is no embedding"),
    ({"a.emb.npy": _npy(VALUES[:2])}, "a.emb.npy is float32 of shape .2, 5., which is no embedding"),
    ({"a.emb.npy": _npy(np.arange(5))}, "is int64 of shape"),
    ({"a.emb.npy": _npy(np.float32(3))}, "of shape .., which is no embedding"),
    ({"a.emb.npy": _npy(VALUES[0]), "b.emb.npy": _npy(VALUES[0, :4])}, "b.emb.npy has 4 numbers, but others have 5"),
    ({"a.emb.npy": _npy(VALUES[0] * np.nan)}, "the embedding of image a is not finite"),
    ({"a.npy": _npy(VALUES[0])}, "has no <image file name>.emb.npy"),
]


@pytest.mark.parametrize(("members", "message"), SPOILT)
def test_spoilt_archives(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    archive = _zip(tmp_path / "x.zip", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=message) as caught:
        _import(archive)
    assert "\n" not in str(caught.value) and not (tmp_path / "store").exists()


def test_damage(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.index(VALUES[3].tobytes())] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=f"{NAMES[3]}.emb.npy cannot be read .*CRC"):
        _import(archive)
    archive.write_bytes(content[:-30])
    with pytest.raises(UserError, match="is no intact zip file"):
        _import(archive)
    archive.unlink()
    with pytest.raises(UserError, match="cannot read archive .*No such file"):
        _import(archive)


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.emb.npy", _npy(VALUES[0]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a.emb.npy", _npy(VALUES[1]))
    with pytest.raises(UserError, match="none twice"):
        _import(tmp_path / "x.zip")


def test_nothing_that_fits(archive: Path) -> None:
    with pytest.raises(
        UserError, match="none of 1 images, such as x.png, has an embedding among 11, such as n00_0.JPEG"
    ):
        _import(archive, ["x.png"])


def test_what_is_there_stays(archive: Path) -> None:
    (archive.parent / "store").mkdir()
    (archive.parent / "store" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        _import(archive)
    assert [path.name for path in (archive.parent / "store").iterdir()] == ["thesis.tex"]


# Hugging Face data sets


def _dataset(
    source: Path, split: str = "train", dtype: Any = "float32", columns: tuple[str, str] = ("image_id", "embedding")
) -> Any:
    return import_dataset(str(source), split, *columns, Target(source.with_name("copy"), dtype), silent).store


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_exported_store_comes_back(
    archive: Path, tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tt_ray.embeddings.exporter._FILE_BYTES", 4 * DIM * np.dtype(dtype).itemsize)
    monkeypatch.setattr("tt_ray.embeddings.exporter._BLOCK", 3)
    store = _import(archive, dtype=dtype).store
    assert export_dataset(store, tmp_path / "hf", silent) == 3
    assert len(list((tmp_path / "hf" / "data").iterdir())) == 3
    again = _dataset(tmp_path / "hf", dtype=dtype)
    np.testing.assert_array_equal(again.embeddings, store.embeddings)
    assert again.ids == store.ids and again.sha256 == store.sha256
    assert again.manifest["encoder"] == store.manifest["encoder"]
    np.testing.assert_array_equal(again.mean, store.mean)
    read = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.asarray(read.with_format("numpy")["embedding"][:]), store.embeddings)
    assert read["image_id"][:] == NAMES
    with pytest.raises(UserError, match="hf exists already"):
        export_dataset(store, tmp_path / "hf", silent)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_other_data_sets(tmp_path: Path, saved: bool, fixed: bool) -> None:
    kind = pa.list_(pa.float64(), DIM) if fixed else pa.list_(pa.float64())
    columns = {"key": pa.array(range(len(NAMES))), "vector": pa.array(VALUES.tolist(), kind), "more": pa.array(NAMES)}
    table = pa.table(columns)
    if saved:
        datasets.DatasetDict({"test": datasets.Dataset(table)}).save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    store = _dataset(tmp_path / "data", "test", columns=("key", "vector"))
    np.testing.assert_array_equal(store.embeddings, VALUES)
    assert store.ids.to_pylist() == [str(number) for number in range(len(NAMES))]
    with pytest.raises(UserError, match="train"):
        import_dataset(str(tmp_path / "data"), "train", "key", "vector", Target(tmp_path / "other"), silent)


ROWS: list[tuple[dict[str, Any], str]] = [
    ({"image_id": ["a", "b"]}, "has no column embedding, but image_id"),
    ({"image_id": ["a", "b"], "embedding": ["x", "y"]}, "column embedding holds .*string, not lists"),
    ({"image_id": ["a", "b"], "embedding": [[1.0, 2.0], [1.0]]}, "differ in length"),
    ({"image_id": ["a", "b"], "embedding": [[1.0, 2.0], None]}, "empty embeddings"),
    ({"image_id": ["a", "b"], "embedding": [[1, 2], [3, 4]]}, "no floats"),
    ({"image_id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0, None]]}, "image b is not finite"),
    ({"image_id": ["a", "a"], "embedding": [[1.0, 2.0], [3.0, 4.0]]}, "none twice"),
    ({"image_id": ["a", None], "embedding": [[1.0, 2.0], [3.0, 4.0]]}, "none empty"),
    ({"image_id": list("abcd"), "embedding": [[1.0], [2.0], [3.0], [4.0, 5.0]]}, "both 1 and 2 numbers"),
]


@pytest.mark.parametrize(("columns", "message"), ROWS)
def test_bad_data_sets(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "data" / "train.parquet")
    with pytest.raises(UserError, match=message) as caught:
        _dataset(tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "copy").exists()


def test_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(UserError, match="cannot read"):
            _dataset(tmp_path / name)


# The commands


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
    try:
        run_command(store_commands.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_commands(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.csv").write_text("image_id\n" + "".join(f"x/{name}\n" for name in NAMES))
    assert _run(monkeypatch, "import-zip", archive, "--out", tmp_path / "s", "--ids", tmp_path / "ids.csv") == 0
    assert "s: 11 images, 5 numbers each, float16" in capsys.readouterr().out
    assert open_store(tmp_path / "s").ids[0].as_py() == f"x/{NAMES[0]}"
    assert _run(monkeypatch, "export", tmp_path / "s", "--out", tmp_path / "hf") == 0
    assert "1 Parquet files" in capsys.readouterr().out
    assert _run(monkeypatch, "import-dataset", tmp_path / "hf", "--out", tmp_path / "t") == 0
    assert open_store(tmp_path / "t").sha256 == open_store(tmp_path / "s").sha256


@pytest.mark.parametrize(
    "arguments",
    [
        ["import-zip", "none.zip", "--out", "s"],
        ["import-zip", "all_encodings.zip", "--out", "s", "--ids", "none.csv"],
        ["import-zip", "all_encodings.zip", "--out", "all_encodings.zip"],
        ["import-zip", "all_encodings.zip", "--out", "all_encodings.zip/s"],
        ["import-dataset", "none", "--out", "s"],
        ["export", "none", "--out", "s"],
        ["inspect", "none"],
        ["nonsense"],
        [],
    ],
)
def test_mistakes_are_one_line(
    archive: Path,
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert _run(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", ["import-zip", "import-dataset", "export"])
def test_a_full_disk(
    what: str,
    archive: Path,
    mounted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = _import(archive).store
    export_dataset(store, tmp_path / "hf", silent)
    source = {"import-zip": archive, "import-dataset": tmp_path / "hf", "export": store.path}[what]
    ballast = fill(mounted)
    before = sorted(mounted.rglob("*"))
    assert _run(monkeypatch, what, source, "--out", mounted / "out") == 2
    err = capsys.readouterr().err
    assert "cannot write" in err and "No space left on device" in err and err.count("\n") == 1
    assert [path for path in sorted(mounted.rglob("*")) if "unfinished" not in str(path)] == before
    ballast.unlink()
    assert _run(monkeypatch, what, source, "--out", mounted / "out") == 0
