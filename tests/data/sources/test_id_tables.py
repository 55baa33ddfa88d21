"""Tables that spreadsheets have saved as something else than their suffix says are one line, whatever they hold."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tt_ray.data.corrected_labels import read_label_table
from tt_ray.terminal.errors import UserError
from tt_ray.text.caption_table import read_captions

TEXT = "image_id,{0}\na.png,dog\n"


@pytest.mark.parametrize(("read", "column"), [(read_label_table, "label"), (read_captions, "caption")])
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("a.csv", lambda text: text.replace(",", ";"), "separated by semicolons, but must be by commas"),
        ("a.csv", lambda text: text.replace(",", "\t"), "separated by tabs, but must be by commas"),
        ("a.tsv", lambda text: text, "separated by commas, but must be by tabs"),
        ("a.csv", lambda text: f'"{text.strip()}"'.replace(",", '";"'), "separated by semicolons"),
        ("a.csv", lambda text: text.encode("utf-16"), "is UTF-16, or no text at all: save it as UTF-8"),
        ("a.tsv", lambda text: text.encode("utf-16-be"), "is UTF-16"),
    ],
)
def test_what_spreadsheets_save(
    name: str,
    change: Callable[[str], str | bytes],
    said: str,
    read: Callable[[Path], object],
    column: str,
    tmp_path: Path,
) -> None:
    content = change(TEXT.format(column))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        read(tmp_path / name)


def test_a_byte_order_mark_and_the_line_ends_of_other_systems_are_no_trouble(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + TEXT.format("label").replace("\n", end).encode())
        assert read_label_table(tmp_path / "a.csv").labels.to_pylist() == ["dog"]
