"""What a shard holds, as others read it, and what the index says of it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.data.sources.test_webdataset import jpeg
from tt_ray.config import DataConfig
from tt_ray.data.shard_writer import ImageOptions, end_of, write_shard
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.registry import open_source
from tt_ray.data.sources.tar_index import FIELDS, INDEX, ShardFile, index_table, write_index
from tt_ray.data.sources.tar_scan import scan
from tt_ray.io.files import sha256

SIZES = ((30, 20), (8, 90), (16, 16))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two classes; the second image of the first cannot be read, and a name is longer than a tar's header holds."""
    for label in ("cat", "dog"):
        folder = tmp_path / "images" / "train" / label
        folder.mkdir(parents=True)
        for number, size in enumerate(SIZES):
            (folder / f"{number}.jpg").write_bytes(jpeg(number, size))
    (tmp_path / "images" / "train" / "cat" / "1.jpg").write_bytes(b"a web page")
    (tmp_path / "images" / "train" / "dog" / ("é" * 60 + ".jpg")).write_bytes(jpeg(9))
    return open_source(DataConfig(source="imagefolder", root=str(tmp_path / "images")), "train", False)


def packed(source: Source, path: Path, **options: Any) -> list[dict[str, Any]]:
    return write_shard(path, path.name, source, range(len(source)), ImageOptions(**options))


def read_back(rows: list[dict[str, Any]], folder: Path) -> Source:
    shards = {path.name: ShardFile(path.stat().st_size, sha256(path)) for path in folder.glob("*.tar")}
    write_index(index_table(pa.Table.from_pylist(rows, schema=FIELDS), shards), folder / INDEX)
    return open_source(DataConfig(source="webdataset", root=str(folder), on_bad_image="skip"), "train", False)


def test_kept_images_are_the_same_bytes_under_the_same_ids(source: Source, tmp_path: Path) -> None:
    rows = packed(source, tmp_path / "out" / "train-00000.tar", keep=True)
    again = read_back(rows, tmp_path / "out")
    whole = [row for row in range(len(source)) if source.ids[row].as_py() != "cat/1.jpg"]
    assert again.ids.to_pylist() == source.ids.take(np.array(whole)).to_pylist()
    assert [again.encoded(row) for row in range(len(again))] == [source.encoded(row) for row in whole]
    assert again.classes == source.classes and again.labels.tolist() == source.labels[whole].tolist()
    (bad,) = [row for row in rows if row["bad"]]
    assert bad["image_id"] == "cat/1.jpg" and bad["length"] == 0 and bad["bad"] == "its format is not known"


def test_larger_images_are_shrunk_to_the_short_side(source: Source, tmp_path: Path) -> None:
    rows = packed(source, tmp_path / "train-00000.tar", short_side=10, quality=95)
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in rows if not row["bad"]}
    small = next(row for row in range(len(source)) if source.ids[row].as_py() == "dog/1.jpg")
    assert sizes["dog/0.jpg"] == (15, 10) and sizes["dog/1.jpg"] == (8, 90) and sizes["dog/2.jpg"] == (10, 10)
    again = read_back(rows, tmp_path)
    kept = again.encoded(again.ids.to_pylist().index("dog/1.jpg"))
    assert kept == source.encoded(small), "what need not be shrunk is not encoded again"
    for row, name in enumerate(again.ids.to_pylist()):
        assert again.read(row).size == sizes[name]
    expected = Image.open(io.BytesIO(jpeg(0, SIZES[0]))).convert("RGB").resize((15, 10), Image.Resampling.BICUBIC)
    found = np.asarray(again.read(again.ids.to_pylist().index("cat/0.jpg")), int)
    assert np.abs(found - np.asarray(expected, int)).mean() < 12  # of noise, at quality 95


def test_what_is_shrunk_has_tables_of_its_own_or_those_of_the_standard_for_noise(tmp_path: Path) -> None:
    """Pillow's memory is too small for the tables of some images, which are packed all the same."""
    folder = tmp_path / "images" / "train" / "one"
    folder.mkdir(parents=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (300, 300, 3), np.uint8) * 255)
    calm = Image.linear_gradient("L").resize((300, 300)).convert("RGB")
    for name, image in {"calm": calm, "noise": noise}.items():
        image.save(folder / f"{name}.png")
    source = open_source(DataConfig(source="imagefolder", root=str(tmp_path / "images")), "train", False)
    again = read_back(packed(source, tmp_path / "train-00000.tar", short_side=280, quality=94), tmp_path)
    for row, image in enumerate((calm, noise)):
        plain = io.BytesIO()
        image.resize((280, 280), Image.Resampling.BICUBIC, reducing_gap=3.0).save(plain, "JPEG", quality=94)
        content = again.encoded(row)
        assert content is not None
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(Image.open(plain)))
        assert (len(content) < len(plain.getvalue())) == (row == 0)


def test_an_index_made_anew_from_the_shard_is_the_same(source: Source, tmp_path: Path) -> None:
    """But for images that have no bytes, of which nothing is in the shard."""
    path = tmp_path / "train-00000.tar"
    rows = [row for row in packed(source, path, keep=True) if not row["bad"]]
    with path.open("rb") as stream:
        table, file = scan(stream, str(path), path.name, "label", "caption")
    assert table.to_pylist() == rows and file == (path.stat().st_size, sha256(path))


def test_all_formats_that_folders_are_read_in_are_found_in_shards() -> None:
    """By the ends that `--keep` gives them: an index that is made anew would lack their images."""
    from tt_ray.data.sources.file_listing import image_suffixes

    suffixes = image_suffixes()
    formats = {name for suffix, name in Image.registered_extensions().items() if suffix in suffixes}
    assert not {name for name in formats if f".{end_of(name)}" not in suffixes} and end_of("MPO") == "jpg"


def test_the_same_images_make_the_same_bytes(source: Source, tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        packed(source, tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


@pytest.mark.filterwarnings("ignore")  # of files that the library leaves to the garbage collector
def test_the_webdataset_library_and_datasets_read_it(source: Source, tmp_path: Path) -> None:
    import datasets
    import webdataset

    path = tmp_path / "train-00000.tar"
    rows = [row for row in packed(source, path, keep=True) if not row["bad"]]
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [sample["json"]["image_id"] for sample in samples] == [row["image_id"] for row in rows]
    assert [source.classes[sample["cls"]] for sample in samples] == [row["label"] for row in rows]
    assert [sample["jpg"].size for sample in samples] == [(row["width"], row["height"]) for row in rows]
    table = datasets.load_dataset(
        "webdataset", data_files={"train": str(path)}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(table, datasets.Dataset)
    assert [entry["label"] for entry in table["json"]] == [row["label"] for row in rows]
    assert table[0]["jpg"].size == (rows[0]["width"], rows[0]["height"])
