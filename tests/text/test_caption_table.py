"""Caption tables: every format reads alike, and what is wrong is left out and named with file and line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tt_ray.data.sources.tar_index import INDEX
from tt_ray.terminal.errors import UserError
from tt_ray.text.caption_table import CaptionTable, find_captions, read_captions, write_captions


def _write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _pairs(table: CaptionTable) -> dict[str, str]:
    return dict(zip(table.ids.to_pylist(), table.captions.to_pylist(), strict=True))


EXPECTED = {"a/1.png": 'a "red", round ball', "a/2.png": "ein Würfel"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'image_id,caption,source\na/1.png,"a ""red"", round ball",blip\na/2.png,ein Würfel,blip\n'),
        (
            "c.csv",
            '\ufeffsource,file_name,caption\r\nblip,a/1.png,"a ""red"", round ball"\r\nblip,a/2.png,ein Würfel\r\n',
        ),
        ("c.tsv", 'image_id\ttext\tsource\na/1.png\t"a ""red"", round ball"\tblip\na/2.png\tein Würfel\tblip\n'),
        ("blip_0_of_1.csv", 'a/1.png:\ta "red", round ball\na/2.png:\tein Würfel\n'),
        ("blip_0_of_1.csv", 'a/1.png\ta "red", round ball\r\na/2.png\tein Würfel\r\n'),
        (
            "metadata.jsonl",
            '{"file_name": "a/1.png", "text": "a \\"red\\", round ball", "source": "blip"}\n\n'
            '{"file_name": "a/2.png", "text": "ein Würfel", "source": "blip"}\n',
        ),
    ],
)
def test_formats_read_alike(tmp_path: Path, name: str, text: str) -> None:
    table = read_captions(_write(tmp_path / name, text), strict=True)
    assert _pairs(table) == EXPECTED
    assert table.source.to_pylist() == ["blip", "blip"]
    assert table.problems == () and len(table) == 2


def test_parquet_round_trip(tmp_path: Path) -> None:
    table = read_captions(_write(tmp_path / "c.csv", "image_id,caption\nx,one\ny,two\n"))
    write_captions(table, tmp_path / "new" / "c.parquet")
    assert read_captions(tmp_path / "new" / "c.parquet", strict=True) == table
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["c.parquet"]


def test_parquet_other_types_and_nulls(tmp_path: Path) -> None:
    columns = {"image_id": pa.array([7, 8, 9]), "caption": pa.array(["one", None, "  "], pa.large_string())}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    table = read_captions(tmp_path / "c.parquet")
    assert _pairs(table) == {"7": "one"}
    assert [p.rsplit("/", 1)[1] for p in table.problems] == [
        "c.parquet:2: no caption for 8",
        "c.parquet:3: no caption for 9",
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_a_parquet_row_that_is_not_utf8_costs_itself(tmp_path: Path, kind: pa.DataType) -> None:
    raw = pa.array(
        [b"one", b"tw\xffo", None, "drei \u00fc".encode()], pa.large_binary() if "large" in str(kind) else pa.binary()
    )
    captions = pa.Array.from_buffers(kind, 4, raw.buffers())
    pq.write_table(pa.table({"image_id": ["a", "b", "c", "d"], "caption": captions}), tmp_path / "c.parquet")
    table = read_captions(tmp_path / "c.parquet")
    assert _pairs(table) == {"a": "one", "d": "drei \u00fc"}
    assert [p.rsplit("/", 1)[1] for p in table.problems] == ["c.parquet:2: not UTF-8", "c.parquet:3: no caption for c"]


def test_a_parquet_column_of_lists_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["a"], "caption": [["x"]]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"c.parquet:1: caption is \['x'\], not a text") as caught:
        read_captions(tmp_path / "c.parquet")
    assert "\n" not in str(caught.value)


def test_problems_carry_file_and_line(tmp_path: Path) -> None:
    text = b'image_id,caption\na,"two\nlines"\nb\nc,x,y\n,empty\nd,\xff\ne,fine\ne,fine\ne,other\n'
    path = _write(tmp_path / "c.csv", text)
    table = read_captions(path)
    assert _pairs(table) == {"a": "two\nlines", "e": "fine"}
    assert table.problems == (
        f"{path}:4: 1 columns instead of 2",
        f"{path}:5: 3 columns instead of 2",
        f"{path}:6: no image id",
        f"{path}:7: not UTF-8",
        f"{path}:10: a second, different caption for e",
    )
    with pytest.raises(UserError, match="5 malformed rows, the first at .*c.csv:4: 1 columns"):
        read_captions(path, strict=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in_m_0_of_1.csv", "a.png:\ta sign:\tno: entry, please\n"),
        ("in_m_0_of_1.csv", "a.png\ta sign:\tno: entry, please\n"),
        ("c.csv", 'image_id,caption\na.png,"a sign:\tno: entry, please"\n'),
        ("c.tsv", 'image_id\tcaption\na.png\t"a sign:\tno: entry, please"\n'),
    ],
)
def test_a_caption_with_the_separator_in_it(tmp_path: Path, name: str, text: str) -> None:
    table = read_captions(_write(tmp_path / name, text), strict=True)
    assert _pairs(table) == {"a.png": "a sign:\tno: entry, please"}


def test_an_unquoted_separator_is_a_problem(tmp_path: Path) -> None:
    for name, separator in (("c.csv", ","), ("c.tsv", "\t")):
        lines = ["image_id caption", "a red{0}ball", "b fine"]
        text = "\n".join(line.replace(" ", separator).format(separator) for line in lines)
        table = read_captions(_write(tmp_path / name, text))
        assert _pairs(table) == {"b": "fine"}
        assert table.problems == (f"{tmp_path / name}:2: 3 columns instead of 2",)


def test_several_captions_are_kept_when_asked_for(tmp_path: Path) -> None:
    path = _write(tmp_path / "c.csv", "image_id,caption\na,one\nb,one\na,two\na,one\na,two\na,three\nc,\n")
    table = read_captions(path, several=True)
    pairs = list(zip(table.ids.to_pylist(), table.captions.to_pylist(), strict=True))
    assert pairs == [("a", "one"), ("b", "one"), ("a", "two"), ("a", "three")]
    assert table.problems == (f"{path}:8: no caption for c",)
    assert [p.rsplit(":", 2)[1] for p in read_captions(path).problems] == ["4", "6", "7", "8"]
    with pytest.raises(UserError, match="4 malformed rows"):
        read_captions(path, strict=True)


def test_unclosed_quote_is_a_problem(tmp_path: Path) -> None:
    path = _write(tmp_path / "c.csv", 'image_id,caption\na,fine\nb,"' + "long " * 40_000 + "\n")
    table = read_captions(path)
    assert _pairs(table) == {"a": "fine"}
    assert table.problems[0].startswith(f"{path}:3: field larger")


@pytest.mark.parametrize(
    ("name", "body", "bad", "pairs"),
    [
        ("c.csv", 'a,"fine\nb,ok\nc,ok\n', [2], {"b": "ok", "c": "ok"}),  # never closed
        ("c.csv", 'a,"fine\nb,ok"\nc,ok\n', [2], {"b": 'ok"', "c": "ok"}),  # closed by chance
        ("c.csv", 'a,"fine\nb,"ok"\nc,ok', [2], {"b": "ok", "c": "ok"}),
        ("c.csv", 'a,fine\nb,"ok', [3], {"a": "fine"}),
        ("c.csv", 'a,"one" two,"three\nb,ok', [2], {"b": "ok"}),
        ("c.tsv", 'a\t"Hello there\nb\tfine\nc\tfine\nd\t"bye\n', [2, 5], {"b": "fine", "c": "fine"}),
        ("c.tsv", 'a\t"Hello there\nb\tfine\nd\tbye"\n', [2], {"b": "fine", "d": 'bye"'}),
        ("c.csv", 'a,"STOP" sign\nb,a "red" ball\n', [], {"a": "STOP sign", "b": 'a "red" ball'}),
        (
            "c.csv",
            'a.jpg,"a dog, brown,\nthat sits, and\nwaits"\n',
            [],
            {"a.jpg": "a dog, brown,\nthat sits, and\nwaits"},
        ),
    ],
)
def test_a_stray_quote_swallows_no_rows(
    tmp_path: Path, name: str, body: str, bad: list[int], pairs: dict[str, str]
) -> None:
    head = "image_id\tcaption\n" if name.endswith("tsv") else "image_id,caption\n"
    path = _write(tmp_path / name, head + body)
    table = read_captions(path)
    assert _pairs(table) == pairs
    assert [int(problem.removeprefix(f"{path}:").split(":")[0]) for problem in table.problems] == bad
    if bad:
        with pytest.raises(UserError, match=f"{len(bad)} malformed rows"):
            read_captions(path, strict=True)


def test_bad_json_lines(tmp_path: Path) -> None:
    lines = [
        "{",
        "[1]",
        '{"image_id": 3.0, "caption": "x"}',
        '{"image_id": "a"}',
        '{"image_id": "a", "caption": "x", "more": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"image_id": "a", "caption": "x", "more": ' + "1" * 5000 + "}",
        '{"image_id": true, "caption": "x"}',
        json.dumps({"image_id": "b", "text": "c"}),
    ]
    path = _write(tmp_path / "c.jsonl", "\n".join(lines))
    table = read_captions(path)
    assert _pairs(table) == {"b": "c"}
    assert [p.split(":")[1] for p in table.problems] == ["1", "2", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_numeric_image_id_is_its_text_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"image_id": [7, 12], "caption": ["one", "two"]}), path)
    elif suffix == "jsonl":
        path.write_text('{"image_id": 7, "caption": "one"}\n{"image_id": 12, "caption": "two"}\n')
    else:
        path.write_text("image_id,caption\n7,one\n12,two\n".replace(",", "\t" if suffix == "tsv" else ","))
    assert _pairs(read_captions(path, strict=True)) == {"7": "one", "12": "two"}


def test_decimals_are_no_image_ids(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": [7.0, None], "caption": ["one", "two"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="c.parquet:1: image_id is 7.0, not a text or an integer"):
        read_captions(tmp_path / "c.parquet")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_a_folder_with_metadata(tmp_path: Path, name: str) -> None:
    if name.endswith("csv"):
        (tmp_path / name).write_text("file_name,caption\na.png,one\n")
    elif name.endswith("jsonl"):
        (tmp_path / name).write_text('{"file_name": "a.png", "caption": "one"}\n')
    else:
        pq.write_table(pa.table({"file_name": ["a.png"], "caption": ["one"]}), tmp_path / name)
    assert _pairs(read_captions(tmp_path)) == {"a.png": "one"}
    (tmp_path / f"metadata.{'jsonl' if name.endswith('csv') else 'csv'}").touch()
    with pytest.raises(UserError, match=r"has metadata.csv and metadata.\w+: name one"):
        read_captions(tmp_path)


@pytest.mark.parametrize(
    ("cell", "caption"),
    [
        (r'"he said \"hi\""', 'he said "hi"'),
        (r'"\"hi\", he said"', '"hi", he said'),
        (r'"5\" pipe, red"', '5" pipe, red'),
        (r'"a \" alone"', 'a " alone'),
        ('"one \\"two\\"\nthree"', 'one "two"\nthree'),
        ('"he said ""hi"""', 'he said "hi"'),
        ('"a path\\"', "a path\\"),
        ('"a \\n path"', "a \\n path"),
        (r"C:\dir", r"C:\dir"),
    ],
)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_quotes_after_a_backslash(tmp_path: Path, cell: str, caption: str, separator: str) -> None:
    path = tmp_path / ("c.csv" if separator == "," else "c.tsv")
    path.write_text(separator.join(["image_id", "caption"]) + "\n" + f"a{separator}{cell}\nb{separator}fine\n")
    assert _pairs(read_captions(path, strict=True)) == {"a": caption, "b": "fine"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('image_id,caption\na,say \\"hi\\" now\nb,fine\n', "two ways"),
        ('image_id,caption\na,"say \\"hi now\nb,fine\n', "a backslash before a quote"),
    ],
)
def test_a_backslash_that_cannot_be_read_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    table = read_captions(_write(tmp_path / "c.csv", text))
    assert _pairs(table) == {"b": "fine"}
    (line,) = table.problems
    assert line.startswith(f"{tmp_path}/c.csv:2: ") and problem in line


def test_official_shards_in_numeric_order(tmp_path: Path) -> None:
    for shard in range(11):
        bad = "a bad line\n" if shard == 3 else ""
        _write(tmp_path / f"ImageNet_coca_{shard}_of_11.csv", f"{bad}n{shard}.JPEG:\tphoto: {shard}\n")
    table = read_captions(tmp_path)
    assert table.ids.to_pylist() == [f"n{shard}.JPEG" for shard in range(11)]
    assert table.captions[10].as_py() == "photo: 10"
    assert set(table.source.to_pylist()) == {"ImageNet_coca"}
    expected = f"{tmp_path}/ImageNet_coca_3_of_11.csv:1: not <image file name>:<tab><caption>"
    assert table.problems == (expected,)


@pytest.mark.parametrize("start", [0, 1])
def test_missing_shard_is_refused(tmp_path: Path, start: int) -> None:
    for shard in (start, start + 2):
        _write(tmp_path / f"in_m_{shard}_of_3.csv", "a:\tb\n")
    with pytest.raises(UserError, match=f"2 of 3 shards of in_m: missing {start + 1}$"):
        read_captions(tmp_path)


def test_shards_of_two_tables_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "in_a_0_of_1.csv", "a:\tb\n")
    _write(tmp_path / "in_b_0_of_1.csv", "a:\tb\n")
    with pytest.raises(UserError, match="several caption tables"):
        read_captions(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "name,words\na,b\n", "neither a header"),
        ("c.csv", "", "neither a header"),
        ("c.csv", "image_id,caption\n", "holds no captions"),
        ("c.jsonl", "{\n", "1 malformed rows, the first at"),
        ("c.xls", "?", "no caption table: known are"),
        ("c.parquet", "?", "cannot read"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_captions(_write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="needs columns image_id and caption, but has image_id"):
        read_captions(tmp_path / "c.parquet")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no caption table"):
        read_captions(tmp_path / "none")
    with pytest.raises(UserError, match="neither caption shards"):
        read_captions(tmp_path)


def test_official_lines_have_the_form_of_most_and_others_are_listed(tmp_path: Path) -> None:
    colon = read_captions(_write(tmp_path / "in_a_0_of_1.csv", "a.png\tno colon\nb.png:\tone\nc.png:\ttwo\n"))
    assert _pairs(colon) == {"b.png": "one", "c.png": "two"}
    assert [problem.partition(".csv")[2] for problem in colon.problems] == [":1: not <image file name>:<tab><caption>"]
    plain = read_captions(_write(tmp_path / "in_b_0_of_1.csv", "name\twords\na.png\tone: two\nb c.JPEG\ttwo\n"))
    assert _pairs(plain) == {"a.png": "one: two", "b c.JPEG": "two"}
    assert [problem.partition(".csv")[2] for problem in plain.problems] == [":1: not <image file name><tab><caption>"]


def test_two_columns_that_are_no_files_and_captions_are_not_taken_for_them(tmp_path: Path) -> None:
    """Without the colon a table of anything would look like captions: names must be those of files."""
    for name in ("c.tsv", "c.csv"):
        with pytest.raises(UserError, match="neither a header with image_id and caption nor lines of <image file>"):
            read_captions(_write(tmp_path / name, "name\twords\n1\tone\n2\ttwo\n"))


@pytest.mark.parametrize(("other", "same"), [("a cat", True), ("a dog", False)])
def test_an_index_in_which_an_id_has_captions_of_two_splits_is_refused(other: str, same: bool, tmp_path: Path) -> None:
    """Which of them is the training image's does not show; where both are equal it does not matter."""
    path = tmp_path / INDEX
    rows = [
        {"image_id": "0.jpg", "caption": caption, "shard": f"{split}-0.tar", "offset": 512}
        for split, caption in (("test", other), ("train", "a cat"), ("more", None))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    if same:
        assert read_captions(path).captions.to_pylist() == ["a cat"] and find_captions(path, ["0.jpg"])
        return
    for read in (lambda: read_captions(path), lambda: read_captions(path, several=True)):
        with pytest.raises(UserError, match="1 images that have another caption in another split, such as 0.jpg"):
            read()
    with pytest.raises(UserError, match="--index-only --out DIR"):
        find_captions(path, ["0.jpg"])
