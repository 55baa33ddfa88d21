from pathlib import Path

import pyarrow as pa
import pytest

from eval.jobs.image_names import ImageNames, keep_names, read_names

NAMES = ImageNames(("é <b>", "b, c"), pa.array(["red/1.png", "red/2.png", "x\ny"], pa.string()))


def test_names_come_back_and_are_written_once(tmp_path: Path) -> None:
    key = keep_names(tmp_path, "../mush rooms", NAMES)
    found = read_names(tmp_path, key)
    assert found is not None and found.classes == NAMES.classes and found.ids.equals(NAMES.ids)
    (file,) = (tmp_path / "images").iterdir()
    before = file.stat().st_mtime_ns
    assert keep_names(tmp_path, "../mush rooms", NAMES) == key and file.stat().st_mtime_ns == before


def test_other_names_are_another_file(tmp_path: Path) -> None:
    others = [NAMES, NAMES._replace(classes=("a", "b")), NAMES._replace(ids=NAMES.ids[:2])]
    keys = {keep_names(tmp_path, task, names) for task in ("a", "b") for names in others}
    assert len(keys) == 6 == len(list((tmp_path / "images").iterdir()))


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_a_report_can_do_without(tmp_path: Path, content: bytes | None) -> None:
    key = keep_names(tmp_path, "a", NAMES)
    file = tmp_path / "images" / f"{key}.parquet"
    file.unlink() if content is None else file.write_bytes(content)
    assert read_names(tmp_path, key) is None
