"""The embedding store: what is written is what is read, damage is told in one line, and joins are right."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tt_ray.embeddings import build
from tt_ray.embeddings.build import embed_captions, write_store
from tt_ray.embeddings.store import EmbeddingStore, open_store
from tt_ray.terminal.errors import UserError

ENCODER = {"id": "toy", "revision": "0", "pooling": "mean", "max_tokens": 8}
ROWS, DIM = 50, 6


def toy_values() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(ROWS, DIM)) @ rng.normal(size=(DIM, DIM)) + 100).astype(np.float32)


def _ids(rows: int = ROWS) -> pa.StringArray:
    return pa.array([f"image {row}" for row in range(rows)], pa.string())


def make_store(path: Path, dtype: Literal["float16", "float32"] = "float32") -> EmbeddingStore:
    values = toy_values()
    return write_store(path, _ids(), iter([values[:7], values[7:7], values[7:]]), DIM, dtype, ENCODER)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(tmp_path: Path, dtype: Literal["float16", "float32"], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BLOCK", 9)  # statistics are merged from several blocks
    store = make_store(tmp_path / "new" / "store", dtype)
    written = toy_values().astype(dtype)
    assert isinstance(store.embeddings, np.memmap) and not store.embeddings.flags.writeable
    assert store.embeddings.dtype == dtype and store.embeddings.flags.c_contiguous
    np.testing.assert_array_equal(store.embeddings, written)
    np.testing.assert_allclose(store.mean, written.astype(np.float64).mean(0), rtol=1e-7)
    np.testing.assert_allclose(store.std, written.astype(np.float64).std(0), rtol=1e-6)
    assert store.ids == _ids() and len(store) == ROWS and store.dim == DIM
    assert store.manifest["encoder"] == ENCODER
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["store"]
    assert open_store(store.path, verify=True).sha256 == store.sha256


def test_files_are_the_contract(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", "float16").path
    names = ["embeddings.npy", "ids.parquet", "manifest.json", "stats.npy"]
    assert sorted(file.name for file in path.iterdir()) == names
    assert np.load(path / "stats.npy").shape == (2, DIM) and np.load(path / "stats.npy").dtype == np.float32
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format_version"], manifest["rows"], manifest["dim"], manifest["dtype"]) == (
        1,
        ROWS,
        DIM,
        "float16",
    )
    assert set(manifest["files"]) == {"embeddings.npy", "ids.parquet", "stats.npy"}


def test_rows_of(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    rows = store.rows_of(pa.array(["image 7", "none", "image 0", None, "image 7"], pa.string()))
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, [7, -1, 0, -1, 7])


def test_pickles_as_path(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    assert len(store.ids) == ROWS  # what was read lazily must not travel either
    data = pickle.dumps(store)
    assert len(data) < 500
    again = pickle.loads(data)
    assert isinstance(again.embeddings, np.memmap)
    np.testing.assert_array_equal(again.embeddings, store.embeddings)


def test_opening_does_not_read_ids(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store").path
    damaged = path / "ids.parquet"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    store = open_store(path)
    with pytest.raises(UserError, match="ids.parquet cannot be read"):
        store.rows_of(_ids(1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _set(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "manifest.json").unlink(), "is not complete"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"format_version": 1}'), "lacks entries"),
        (lambda path: _set(path / "manifest.json", format_version=2), "has format version 2"),
        (lambda path: _set(path / "manifest.json", rows=ROWS + 1), "it is not float32 of shape"),
        (lambda path: cut(path / "embeddings.npy"), "embeddings.npy has 1327 bytes instead of 1328"),
        (lambda path: cut(path / "ids.parquet"), "ids.parquet has"),
        (lambda path: (path / "stats.npy").unlink(), "stats.npy is missing"),
        (lambda path: _flip(path / "embeddings.npy"), "wrong checksum of embeddings.npy"),
        (lambda path: _flip(path / "ids.parquet"), "wrong checksum of ids.parquet"),
        (lambda path: _flip(path / "stats.npy"), "wrong checksum of stats.npy"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    path = make_store(tmp_path / "store").path
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        open_store(path, verify=True)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        open_store(tmp_path / "none")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store").path
    np.save(path / "stats.npy", np.array([{}], object), allow_pickle=True)
    files = json.loads((path / "manifest.json").read_text())["files"]
    files["stats.npy"]["bytes"] = (path / "stats.npy").stat().st_size
    _set(path / "manifest.json", files=files)
    with pytest.raises(UserError, match="is damaged"):
        open_store(path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield toy_values()[:5]
        raise RuntimeError("encoder died")

    with pytest.raises(RuntimeError, match="encoder died"):
        write_store(tmp_path / "store", _ids(), blocks(), DIM, "float16", ENCODER)
    assert list(tmp_path.iterdir()) == []


def test_write_refuses(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store").path
    with pytest.raises(UserError, match="exists already"):
        write_store(path, _ids(), [toy_values()], DIM, "float32", ENCODER)
    with pytest.raises(UserError, match="none twice"):
        write_store(tmp_path / "b", pa.array(["a", "a"]), [toy_values()[:2]], DIM, "float32", ENCODER)
    with pytest.raises(UserError, match="none twice"):
        write_store(tmp_path / "b", pa.array(["a", None]), [toy_values()[:2]], DIM, "float32", ENCODER)
    with pytest.raises(AssertionError, match="49 embeddings for 50 ids"):
        write_store(tmp_path / "b", _ids(), [toy_values()[:-1]], DIM, "float32", ENCODER)
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(("value", "dtype"), [(7e4, "float16"), (np.nan, "float32"), (np.inf, "float16")])
def test_the_image_whose_embedding_is_not_finite_is_named(
    tmp_path: Path, value: float, dtype: Literal["float16", "float32"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_BLOCK", 9)
    values = toy_values()
    values[31, 2] = value
    with pytest.raises(UserError, match=f"the embedding of image image 31 is not finite as {dtype}") as caught:
        write_store(tmp_path / "b", _ids(), [values[:20], values[20:]], DIM, dtype, ENCODER)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_store_that_is_being_written_cannot_be_opened(tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield toy_values()[:5]
        for verify in (False, True):
            with pytest.raises(UserError, match="no embedding store .*store: it is being written.*; wait for it"):
                open_store(tmp_path / "store", verify)
        yield toy_values()[5:]

    assert len(write_store(tmp_path / "store", _ids(), blocks(), DIM, "float32", ENCODER)) == ROWS
    (tmp_path / "other.unfinished").mkdir()
    with pytest.raises(UserError, match="it is being written"):
        open_store(tmp_path / "other")


def test_a_full_disk_leaves_nothing(mounted: Path) -> None:
    rows = 700_000  # 5.6 MB for 4 MiB
    blocks = (np.zeros((7000, 4), np.float32) for _ in range(100))
    with pytest.raises(OSError, match="No space left on device"):
        write_store(mounted / "store", _ids(rows), blocks, 4, "float16", ENCODER)
    assert list(mounted.iterdir()) == []


def test_statistics_can_be_given(tmp_path: Path) -> None:
    stats = np.arange(2.0 * DIM).reshape(2, DIM)
    store = write_store(tmp_path / "s", _ids(), [toy_values()], DIM, "float32", ENCODER, stats)
    np.testing.assert_array_equal([store.mean, store.std], stats)


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    def slow() -> Iterator[np.ndarray]:
        make_store(tmp_path / "store")
        yield np.zeros((ROWS, DIM), np.float32)

    store = write_store(tmp_path / "store", _ids(), slow(), DIM, "float32", ENCODER)
    np.testing.assert_array_equal(store.embeddings, toy_values())
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


class ToyEncoder:
    """Embeds a caption as its length and its first letter; counts what it encodes."""

    name, revision, pooling, max_tokens, dim, truncated = "toy", "1", "mean", 8, 2, 0

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, captions: list[str]) -> np.ndarray:
        self.seen += captions
        return np.array([[len(caption), ord(caption[0])] for caption in captions], np.float32)


@pytest.mark.parametrize("captions", [["cat", "a dog", "cat", None, "bird", "a dog"], ["one", "two", "three"]])
def test_embed_captions(tmp_path: Path, captions: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BLOCK", 2)
    encoder, calls = ToyEncoder(), []
    ids = _ids(len(captions))
    texts = pa.array(captions, pa.string())
    store = embed_captions(ids, texts, encoder, tmp_path / "store", lambda done, total: calls.append((done, total)))
    kept = [(image, text) for image, text in zip(ids.to_pylist(), captions, strict=True) if text]
    distinct = list(dict.fromkeys(text for _, text in kept))
    assert encoder.seen == distinct
    assert calls[0] == (0, 3) and calls[-1] == (3, 3)
    assert store.ids.to_pylist() == [image for image, _ in kept]
    assert store.embeddings.dtype == np.float16
    np.testing.assert_array_equal(store.embeddings, ToyEncoder().encode([text for _, text in kept]))
    assert store.manifest["encoder"] == {"id": "toy", "revision": "1", "pooling": "mean", "max_tokens": 8}
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_several_captions_of_an_image_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BLOCK", 2)
    ids = pa.array(["a", "b", "a", "c", "a", "d", "c"])
    captions = ["cat", "a dog", "bird", "cat", "cat", None, "no"]
    encoder = ToyEncoder()
    store = embed_captions(ids, pa.array(captions, pa.string()), encoder, tmp_path / "store")
    assert encoder.seen == ["cat", "a dog", "bird", "no"]
    assert store.ids.to_pylist() == ["a", "b", "c"]
    parts = [["cat", "bird", "cat"], ["a dog"], ["cat", "no"]]
    expected = [ToyEncoder().encode(part).mean(0) for part in parts]
    np.testing.assert_allclose(store.embeddings, expected, rtol=1e-3)


def test_captions_without_image_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 captions have no image id"):
        embed_captions(pa.array(["a", None]), pa.array(["x", "y"]), ToyEncoder(), tmp_path / "store")


def test_embed_no_captions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no captions to embed"):
        embed_captions(_ids(1), pa.array([None], pa.string()), ToyEncoder(), tmp_path / "store")


def test_ids_of_another_length(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store").path
    pq.write_table(pa.table({"image_id": ["a"]}), path / "ids.parquet")
    files = json.loads((path / "manifest.json").read_text())["files"]
    files["ids.parquet"]["bytes"] = (path / "ids.parquet").stat().st_size
    _set(path / "manifest.json", files=files)
    with pytest.raises(UserError, match="has 1 ids for 50 rows"):
        open_store(path).rows_of(_ids(1))
