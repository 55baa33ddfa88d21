"""Class names of tables: each file's own count, in whatever order they stand; and paths that look like patterns."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.registry import open_source, open_splits, open_unlabelled
from tt_ray.data.sources.table_files import load_table, read_file
from tt_ray.terminal.errors import UserError

Names = Sequence[str] | None
ANT, BEE, COW = "ant", "bee", "cow"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def message(call: Callable[[], object]) -> str:
    """The text of the UserError that a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def rows_of(labels: Sequence[Any], names: Names, kind: Any = None) -> datasets.Dataset:
    """Rows with labels by name where `names` declares them, otherwise as they are."""
    label: Any = datasets.ClassLabel(names=list(names)) if names else datasets.Value(kind or "int64")
    features = datasets.Features({"image": datasets.Value("binary"), "label": label})
    if names:
        labels = [names.index(each) if isinstance(each, str) else each for each in labels]
    table = pa.table({"image": [png()] * len(labels), "label": labels}, features.arrow_schema)
    return datasets.Dataset(table)


def write(path: Path, labels: Sequence[Any], names: Names, kind: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table: pa.Table = rows_of(labels, names, kind).data.table
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)


def named(config: DataConfig, split: Any = "train") -> list[str]:
    source = open_source(config, split, False)
    return [source.classes[label] for label in source.labels]


def tables(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": "datasets", "root": str(root), **changes})


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_names_in_another_order_in_test(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "data"
    write(root / f"train.{suffix}", [ANT, BEE, COW, ANT], [ANT, BEE, COW])
    write(root / f"test.{suffix}", [COW, ANT, BEE], [COW, BEE, ANT])
    train, val = open_splits(tables(root), need_captions=False)
    assert train.classes == val.classes == (ANT, BEE, COW)
    assert train.labels.tolist() == [0, 1, 2, 0] and val.labels.tolist() == [2, 0, 1]
    assert named(tables(root), "val") == [COW, ANT, BEE]


SHARDS = [([ANT, BEE, ANT], [ANT, BEE, COW]), ([COW, ANT], [COW, BEE, ANT]), ([BEE, "dog", BEE], ["dog", BEE])]
IN_ORDER = [name for labels, _ in SHARDS for name in labels]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", IN_ORDER),
        ("train[2:5]", IN_ORDER[2:5]),
        ("train[-3:]+train[:2]", [*IN_ORDER[-3:], *IN_ORDER[:2]]),
        ("train[25%:75%]", IN_ORDER[2:6]),
        ("test+train[4:]", [BEE, *IN_ORDER[4:]]),
    ],
)
def test_names_in_another_order_in_one_shard(tmp_path: Path, suffix: str, split: str, expected: list[str]) -> None:
    root = tmp_path / "data"
    for number, (labels, names) in enumerate(SHARDS):
        write(root / f"train-{number:05}-of-00003.{suffix}", labels, names)
    write(root / f"test-00000-of-00001.{suffix}", [BEE], [BEE, ANT])
    assert named(tables(root, train_split=split)) == expected


def test_names_in_another_order_in_a_saved_shard(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.disable_progress_bars()
    rows_of([ANT, BEE, COW, ANT], [ANT, BEE, COW]).save_to_disk(str(saved), num_shards=2)
    datasets.enable_progress_bars()
    assert named(tables(saved)) == [ANT, BEE, COW, ANT]
    state = json.loads((saved / "state.json").read_text())
    write(saved / state["_data_files"][1]["filename"], [COW, ANT], [ANT, COW, BEE])
    assert named(tables(saved)) == [ANT, BEE, COW, ANT]


@pytest.mark.parametrize("layout", ["splits", "shards"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (([0, 1], [ANT, BEE], None), ([1, 0], None, None)),
        (([0, 1], None, None), ([1, 0], [ANT, BEE], None)),
        (([0, 1], None, None), (["1", "0"], None, "string")),
        (([ANT, BEE], None, "string"), ([1, 0], [ANT, BEE], None)),
        (([0, 1], None, None), ([1.0, 0.0], None, "float64")),
    ],
)
def test_labels_of_two_kinds_are_refused(tmp_path: Path, layout: str, first: Any, second: Any) -> None:
    root = tmp_path / "data"
    paths = [
        root / name
        for name in (
            ("train-0.parquet", "train-1.parquet") if layout == "shards" else ("train.parquet", "test.parquet")
        )
    ]
    for path, rows in zip(paths, (first, second), strict=True):
        write(path, *rows)
    text = message(lambda: named(tables(root), "train" if layout == "shards" else "val"))
    assert all(path.name in text for path in paths) and "cannot be matched by name" in text, text


def test_texts_beside_names_are_matched(tmp_path: Path) -> None:
    write(tmp_path / "data/train-0.parquet", [ANT, BEE], [ANT, BEE])
    write(tmp_path / "data/train-1.parquet", [BEE, ANT], None, "string")
    assert named(tables(tmp_path / "data")) == [ANT, BEE, BEE, ANT]


def test_plain_numbers_stay_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "data/train-0.parquet", [0, 2], None)
    write(tmp_path / "data/train-1.parquet", [1], None, "int32")
    assert named(tables(tmp_path / "data")) == ["0", "2", "1"]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [(5, "row 1, id 1: label is 5, but it names 3 classes, 0 to 2"), (-1, "(null, -1 or a blank name)")],
)
def test_numbers_outside_the_names(tmp_path: Path, split: str, kind: str, wrong: int, expected: str) -> None:
    root, names = tmp_path / "data", [ANT, BEE, COW]
    labels = {"train": [0, 1, 2], "test": [0, 1, 2]}
    labels["train" if split == "train" else "test"][1] = wrong
    if kind == "saved":
        datasets.disable_progress_bars()
        datasets.DatasetDict({key: rows_of(each, names) for key, each in labels.items()}).save_to_disk(str(root))
        datasets.enable_progress_bars()
    else:
        for key, each in labels.items():
            write(root / f"{key}.{kind}", each, names)
    text = message(lambda: open_splits(tables(root), need_captions=False))
    assert expected in text and "row 1, id 1" in text, text
    assert kind == "saved" or f"{'train' if split == 'train' else 'test'}.{kind}, row 1" in text
    if split == "train":
        assert len(open_unlabelled(tables(root), "train")[0]) == 3, "captioning needs no labels"


def test_the_row_is_that_of_its_file(tmp_path: Path) -> None:
    write(tmp_path / "data/train-0.parquet", [0, 1, 1], [ANT, BEE])
    write(tmp_path / "data/train-1.parquet", [0, 1, 2], [BEE, ANT])
    text = message(lambda: named(tables(tmp_path / "data")))
    assert "train-1.parquet, row 2, id 5: label is 2" in text
    text = message(lambda: named(tables(tmp_path / "data", train_split="train[4:]")))
    assert "train-1.parquet, row 2, id 1: label is 2" in text


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "", "b"], "1 images have no label: train.parquet, row 1, id 1"),
        (["a", " \t", None], "2 images have no label: train.parquet, row 1, id 1, train.parquet, row 2"),
        (["dog", " dog", "b"], "'dog' and ' dog'"),
        (["1", "01", "2"], "'1' and '01'"),
    ],
)
def test_texts_that_are_no_names(tmp_path: Path, labels: list[Any], expected: str) -> None:
    write(tmp_path / "data/train.parquet", labels, None, "string")
    assert expected in message(lambda: named(tables(tmp_path / "data")))


@pytest.mark.parametrize(
    ("numbers", "names", "expected"),
    [
        ([0, 1, 0], ["x", "y", "z"], "label 0 is called both 'x' and 'z'"),
        ([0, 1, 2], ["x", "y", "x"], "labels 0 and 2 are both called 'x'"),
    ],
)
def test_names_beside_numbers_that_contradict(
    tmp_path: Path, numbers: list[int], names: list[str], expected: str
) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        part = slice(shard * 2, shard * 2 + 2)
        columns = {"image": [png()] * len(numbers[part]), "label": numbers[part], "label_name": names[part]}
        pq.write_table(pa.table(columns), tmp_path / f"data/train-{shard}.parquet")
    text = message(lambda: named(tables(tmp_path / "data")))
    assert expected in text and "train-1.parquet, row 0, id 2" in text, text


def test_names_beside_numbers_are_matched_between_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, names in (("train", [ANT, BEE, COW]), ("test", [COW, ANT, BEE])):
        columns = {"image": [png()] * 3, "label": [0, 1, 2], "label_name": names}
        pq.write_table(pa.table(columns), tmp_path / f"data/{split}.parquet")
    train, val = open_splits(tables(tmp_path / "data"), need_captions=False)
    assert train.classes == (ANT, BEE, COW) and val.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["cl [v2]", "a[1]", "a*b", "a?b", "a{x,y}", "[!x]", "a[", "a]b", "a#b"])
def test_paths_that_look_like_patterns(tmp_path: Path, name: str) -> None:
    for decoy in ("a1", "aXb", "ab", "b"):
        write(tmp_path / decoy / "train.parquet", [0], None)
        write(tmp_path / f"{decoy}.parquet", [0], None)
    write(tmp_path / name / "train.parquet", [ANT, BEE], [ANT, BEE])
    write(tmp_path / name / "sub/test.parquet", [BEE], [BEE])
    train, val = open_splits(tables(tmp_path / name), need_captions=False)
    assert train.labels.tolist() == [0, 1] and val.labels.tolist() == [1]
    write(tmp_path / f"{name}.parquet", [BEE, ANT], [ANT, BEE])
    write(tmp_path / f"{name}.arrow", [BEE, ANT], [ANT, BEE])
    for suffix in (".parquet", ".arrow"):
        assert named(tables(tmp_path / f"{name}{suffix}")) == [BEE, ANT]
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": rows_of([ANT], [ANT])}).save_to_disk(str(tmp_path / "saved" / name))
    datasets.enable_progress_bars()
    assert named(tables(tmp_path / "saved" / name)) == [ANT]


def test_files_whose_names_look_like_patterns(tmp_path: Path) -> None:
    write(tmp_path / "data/part [1].parquet", [ANT, BEE], [ANT, BEE])
    write(tmp_path / "data/part {2}*.parquet", [ANT], [BEE, ANT])
    assert named(tables(tmp_path / "data")) == [ANT, BEE, ANT]


def test_a_path_that_datasets_cannot_read(tmp_path: Path) -> None:
    write(tmp_path / "a::b/train.parquet", [0], None)
    assert "'::'" in message(lambda: named(tables(tmp_path / "a::b")))


@pytest.mark.parametrize("layout", ["file", "folder", "shard"])
@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [
        ("parquet", None, "train-0.parquet: it has no rows"),
        ("parquet", "", "train-0.parquet: the file is empty"),
        ("arrow", None, "has no rows"),
        ("arrow", "", "train-0.arrow: the file is empty"),
        ("csv", "image,label\n", "has no rows"),
        ("csv", "", "train-0.csv: the file is empty"),
        ("jsonl", "", "train-0.jsonl: the file is empty"),
        ("jsonl", "\n\n", "data (train)"),
    ],
)
def test_tables_without_rows(tmp_path: Path, suffix: str, content: str | None, expected: str, layout: str) -> None:
    path = tmp_path / f"data/train-0.{suffix}"
    write(path, [], [ANT, BEE])
    if content is not None:
        path.write_text(content)
    if layout == "shard":
        if suffix not in ("parquet", "arrow"):
            pytest.skip("these hold no images")
        write(tmp_path / f"data/train-1.{suffix}", [ANT], [ANT, BEE])
        if (suffix, content) == ("arrow", None):
            assert named(tables(path.parent)) == [ANT]
            return
    text = message(lambda: named(tables(path if layout == "file" else path.parent)))
    assert expected in text or (layout == "file" and suffix in ("csv", "jsonl")), text


def test_an_empty_image_of_a_folder_costs_itself(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png"):
        (tmp_path / "data/train" / name).parent.mkdir(parents=True)
        (tmp_path / "data/train" / name).write_bytes(png())
    (tmp_path / "data/train/b/1.png").write_bytes(b"")
    assert named(tables(tmp_path / "data")) == ["a", "b", "b"]


def test_saved_without_rows(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    rows_of([], [ANT]).save_to_disk(str(tmp_path / "saved"))
    datasets.enable_progress_bars()
    assert "saved has no rows" in message(lambda: named(tables(tmp_path / "saved")))
    (tmp_path / "saved/state.json").write_text("[]")
    assert "is not what save_to_disk writes" in message(lambda: named(tables(tmp_path / "saved")))


def test_files_of_the_hub_are_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for suffix in ("parquet", "arrow"):
        write(tmp_path / f"hub/datasets--some--set/snapshots/{'a' * 40}/data/train.{suffix}", [ANT, BEE], [ANT, BEE])
        file = read_file(f"hf://datasets/some/set@{'a' * 40}/data/train.{suffix}")
        assert file.rows == 2 and file.class_names("label") == (ANT, BEE)


def test_rows_know_their_files(tmp_path: Path) -> None:
    for number, (labels, names) in enumerate(SHARDS):
        write(tmp_path / f"data/train-{number}.parquet", labels, names)
    table = load_table(str(tmp_path / "data"), "", "train[1:]", "data")
    assert table.file_of_row().tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert [table.row_name(row) for row in (0, 2, 6)] == [
        "train-0.parquet, row 1",
        "train-1.parquet, row 0",
        "train-2.parquet, row 2",
    ]


def test_numbers_of_many_files_are_matched_without_a_loop_over_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"class {number}" for number in range(30)]
    expected: list[str] = []
    for shard in range(5):
        own = rng.permutation(names).tolist()
        labels = rng.integers(0, 30, 40)
        expected += [own[label] for label in labels]
        write(tmp_path / f"data/train-{shard}.parquet", labels.tolist(), own)
    assert named(tables(tmp_path / "data")) == expected
