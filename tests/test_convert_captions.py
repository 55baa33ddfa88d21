"""Official captions get the image ids of a data set; what does not fit is told."""

import sys
from pathlib import Path

import pytest

from tests.command_here import fill
from tt_ray import convert_captions
from tt_ray.terminal.command import run_command
from tt_ray.text.caption_table import read_captions

IDS = ["n1/n1_0.JPEG", "n1/n1_1.JPEG", "n2/n2_0.JPEG"]
SHARDS = [
    "n1_0.JPEG:\ta dog\nbad line\nn2_0.JPEG:\ta cat: asleep\n",
    "n2_0.JPEG:\ta cat, awake\nn9_0.JPEG:\tnobody\n",
]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number, text in enumerate(SHARDS):
        path = tmp_path / "captions" / f"in_coca_{number}_of_2.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for name in IDS:
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    return tmp_path / "captions"


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
    try:
        run_command(convert_captions.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_captions_get_image_ids(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.parquet"
    assert _run(monkeypatch, shards, "--out", out, "--ids", tmp_path / "train") == 0
    table = read_captions(out, strict=True)
    assert table.ids.to_pylist() == ["n1/n1_0.JPEG", "n2/n2_0.JPEG"]
    assert table.captions.to_pylist() == ["a dog", "a cat: asleep"] and table.source[0].as_py() == "in_coca"
    text = capsys.readouterr().out
    assert "in_coca_0_of_2.csv:2: not <image file name>" in text
    assert "in_coca_1_of_2.csv:1: a second, different caption for n2_0.JPEG" in text
    assert "note: 1 images have no caption" in text
    assert "note: 1 captioned images are none of these" in text
    assert "2 captions of 2 images" in text


def test_several_captions(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "c.parquet"
    assert _run(monkeypatch, shards, "--out", out, "--ids", tmp_path / "train", "--several") == 0
    table = read_captions(out, several=True)
    assert table.ids.to_pylist() == ["n1/n1_0.JPEG", "n2/n2_0.JPEG", "n2/n2_0.JPEG"]
    assert table.captions.to_pylist() == ["a dog", "a cat: asleep", "a cat, awake"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strict"], "malformed rows, the first at"),
        (["--ids", "other.csv"], "no caption, such as that of n1_0.JPEG, belongs to one of 1 images such as x.png"),
        (["--ids", "twice.csv"], "1 file names are those of several image ids, such as n1_0.JPEG"),
        (["--ids", "none.csv"], "cannot read"),
        (["--out", "other.csv"], "exists"),
        (["--out", "other.csv/c.parquet"], "cannot write"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_mistakes_are_one_line(
    shards: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("image_id\nx.png\n")
    (tmp_path / "twice.csv").write_text("image_id\na/n1_0.JPEG\nb/n1_0.JPEG\n")
    before = sorted(tmp_path.rglob("*"))
    assert _run(monkeypatch, shards, "--out", "c.parquet", *more) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk(
    shards: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(mounted)
    assert _run(monkeypatch, shards, "--out", mounted / "c.parquet") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in mounted.iterdir()] == ["ballast"]
