"""Image ids and labels: read from folders and tables; file names meet ids only where there is no doubt."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tt_ray.terminal.errors import UserError
from tt_ray.text.image_ids import class_of, match_ids, read_ids, read_labels

IDS = ["n1/n1_0.JPEG", "n1/n1_1.JPEG", "n2/n2_0.JPEG"]


def _strings(values: list[str] | list[str | None]) -> pa.StringArray:
    return pa.array(values, pa.string())


def test_ids_of_a_folder(tmp_path: Path) -> None:
    for name in [*IDS, "n1/notes.txt", ".hidden/x.png"]:
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    assert read_ids(tmp_path / "train").to_pylist() == IDS


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["image_id", "file_name"])
def test_tables(tmp_path: Path, suffix: str, column: str) -> None:
    path = tmp_path / f"t.{suffix}"
    labels = [7, 8, 7]
    if suffix == "parquet":
        pq.write_table(pa.table({column: IDS, "label": labels}), path)
    elif suffix == "jsonl":
        rows = [f'{{"{column}": "{image}", "label": {label}}}\n' for image, label in zip(IDS, labels, strict=True)]
        path.write_text("".join(rows))
    else:
        rows = [[column, "label"], *([image, str(label)] for image, label in zip(IDS, labels, strict=True))]
        path.write_text("".join(("," if suffix == "csv" else "\t").join(row) + "\n" for row in rows))
    assert read_ids(path).to_pylist() == IDS
    ids = _strings([IDS[1], "none", IDS[0]])
    assert read_labels(path, ids).to_pylist() == ["8", None, "7"]


def test_ids_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_id,label\n01,a\n1,b\n")
    assert read_labels(tmp_path / "t.csv", _strings(["1", "01"])).to_pylist() == ["b", "a"]


def test_labels_of_folders(tmp_path: Path) -> None:
    assert read_labels(tmp_path, _strings([*IDS, "loose.png"])).to_pylist() == ["n1", "n1", "n2", None]
    rows = '{"file_name": "a", "label": 1, "label_name": "cat"}\n{"file_name": "b", "label": 2}\n'
    (tmp_path / "metadata.jsonl").write_text(rows)
    assert read_labels(tmp_path, _strings(["b", "a"])).to_pylist() == [None, "cat"]


@pytest.mark.parametrize("names", [["ant", "bee"], ["bee", "ant"]])
def test_labels_are_the_names_that_parquet_declares(tmp_path: Path, names: list[str]) -> None:
    kind = datasets.Features({"image_id": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"image_id": IDS, "label": ["bee", "ant", None]}
    datasets.Dataset.from_dict(rows, features=kind).to_parquet(str(tmp_path / "t.parquet"))
    assert read_labels(tmp_path / "t.parquet", _strings(IDS)).to_pylist() == ["bee", "ant", None]
    table = pq.read_table(tmp_path / "t.parquet")
    pq.write_table(table.set_column(1, table.schema.field(1), [[0, -1, 2]]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet:3: label is 2, but it names 2 classes, 0 to 1"):
        read_labels(tmp_path / "t.parquet", _strings(IDS))


def test_labels_are_stripped_and_blank_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"image_id,label\n{IDS[0]}, cat\n{IDS[1]},  \n{IDS[2]},\n", encoding="utf-8")
    assert read_labels(tmp_path / "t.csv", _strings(IDS)).to_pylist() == ["cat", None, None]
    assert read_labels(tmp_path, _strings([" cat/1.png", "  /2.png"])).to_pylist() == ["cat", None]


@pytest.mark.parametrize("column", ["image_id", "label"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_decimals_are_neither_ids_nor_labels(tmp_path: Path, column: str, suffix: str) -> None:
    columns = {"image_id": [1, 2], "label": [0, 1], column: [1.0, 2.5]}
    if suffix == "parquet":
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f":1: column {column} holds 1.0, not a text or an integer"):
        read_labels(tmp_path / f"t.{suffix}", _strings(["1"]))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_without_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"image_id": pa.array([], pa.string()), "label": pa.array([], pa.string())}), path)
    else:
        path.write_text("image_id,label\n" if suffix == "csv" else "")
    with pytest.raises(UserError, match=r"t\.\w+") as caught:
        read_ids(path)
    assert "\n" not in str(caught.value)


def test_paths_that_look_like_patterns(tmp_path: Path) -> None:
    path = tmp_path / "a[1]" / "label=7" / "t {x}*.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image_id": IDS, "label": ["a", "b", "c"]}), path)
    assert read_labels(path, _strings(IDS)).to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image_id,class\na,b\n", "needs columns image_id and label, but has image_id, class"),
        ("t.csv", "image_id,label\na,b\na,c\n", "1 rows repeat an image id"),
        ("t.csv", "image_id,label\nx,b\n", "has no label for image ids such as a, b"),
        ("t.csv", "", "needs columns image_id and label, but has none"),
        ("t.txt", "image_id", "neither a folder nor a table"),
        ("none.csv", None, "cannot read"),
        ("t.csv", b"image_id,label\na,\xff\n", "t.csv:2: not UTF-8"),
    ],
)
def test_bad_labels(tmp_path: Path, name: str, text: str | bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(tmp_path / name, _strings(["a", "b"]))
    assert "\n" not in str(caught.value)


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images"):
        read_ids(tmp_path)


def test_file_names_meet_ids() -> None:
    names = _strings(["n2_0.JPEG", "unknown.JPEG", "x/n1_1.JPEG", "n1/n1_0.JPEG"])
    np.testing.assert_array_equal(match_ids(_strings([*IDS, "n3/n3_0.JPEG"]), names), [3, 2, 0, -1])


def test_any_order_meets() -> None:
    rng = np.random.default_rng(0)
    ids = [f"{rng.integers(9)}/{number}.png" for number in range(200)]
    order = rng.permutation(200)[:150]
    names = [ids[row] if rng.random() < 0.3 else ids[row].split("/")[1] for row in order]
    expected = np.full(200, -1)
    expected[order] = np.arange(150)
    np.testing.assert_array_equal(match_ids(_strings(ids), _strings(names)), expected)


def test_ambiguity_is_refused_with_counts() -> None:
    with pytest.raises(UserError, match="2 file names are those of several image ids, such as 0.png, 1.png: "):
        match_ids(_strings(["a/0.png", "b/0.png", "a/1.png", "b/1.png", "a/2.png"]), _strings(["0.png", "1.png"]))
    with pytest.raises(UserError, match="1 file names are those of several names, such as 0.png: "):
        match_ids(_strings(["0.png"]), _strings(["a/0.png", "b/0.png"]))


def test_whole_ids_and_names_of_nobody_are_no_ambiguity() -> None:
    ids = _strings(["a/0.png", "b/0.png", "c/1.png", "d/1.png"])
    np.testing.assert_array_equal(match_ids(ids, _strings(["b/0.png", "a/0.png", "2.png"])), [1, 0, -1, -1])


def test_class_of() -> None:
    assert class_of(_strings([*IDS, "cat.png"])).to_pylist() == ["n1", "n1", "n2", "cat.png"]
