"""Rows of CSV and TSV files: one stray quote costs its own row, and line numbers are those of the file.

Arrow's reader does not report line numbers below quoted newlines, and Python's reads on to the end of the file after a
stray quote.
"""

import csv
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePath
from typing import TextIO


def csv_rows(text: TextIO, delimiter: str, image: int) -> Iterator[tuple[int, list[str] | str]]:
    """Rows below the header as lists of cells, or what is wrong with the row, each with its line number from 1.

    `image` is the column of image ids. Quotes inside a quoted text may be doubled, or follow a backslash.
    """
    width = len(next(csv.reader([text.readline()], delimiter=delimiter)))
    lines = _Lines(text)
    while line := lines.take():
        number = lines.number
        if not line.strip("\r\n"):
            continue
        row = _quoted_row(lines, line, delimiter, width, image) if '"' in line else line.rstrip("\r\n").split(delimiter)
        if isinstance(row, list) and len(row) != width:
            row = f"{len(row)} columns instead of {width}"
        yield number, row


class _Lines:
    """A table's lines below its header, which can be put back."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._ahead: deque[str] = deque()
        self.number = 1
        """Number of the line that was taken last."""

    def take(self) -> str:
        """The next line; empty at the end."""
        line = self._ahead.popleft() if self._ahead else self._text.readline()
        self.number += bool(line)
        return line

    def give_back(self, lines: list[str]) -> None:
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)


def _quoted_row(lines: _Lines, first: str, delimiter: str, width: int, image: int) -> list[str] | str:
    """The row that begins on a line with quotes, or what is wrong with it.

    A quoted text may span several lines. Where its quote is never closed, or what follows looks like rows of their own,
    only the first line is bad, and the others are put back: one stray quote must not swallow rows.
    """
    plain, escaped = (_row_of(line, delimiter) for line in (first, _doubled(first)))
    fit = [row for row in (plain, escaped) if row and len(row) == width]
    if len(fit) == 2 and plain != escaped:
        return 'a backslash before a quote, which can be read in two ways: double the quotes ("")'
    if fit or plain or escaped:
        return [*fit, plain or escaped][0]
    for double in (False, True) if "\\" in first else (False,):
        taken: list[str] = []
        row = _row_over_lines(lines, first, taken, delimiter, double)
        if row and not any(_is_like(row, line, delimiter, width, image) for line in taken):
            return row
        lines.give_back(taken)
    if '\\"' in first:
        return 'a backslash before a quote, where the text does not end: double the quotes ("")'
    try:  # read alone and leniently: "STOP" sign has its quotes at the wrong place, but means no more
        (row,) = csv.reader([first.rstrip("\r\n") + "\n"], delimiter=delimiter)
    except csv.Error as error:
        return str(error)
    return "a quote that is not closed" if any("\n" in cell for cell in row) else row


def _doubled(line: str) -> str:
    """The line with doubled quotes for those after a backslash, which other programs write."""
    return line.replace('\\"', '""')


def _row_of(line: str, delimiter: str) -> list[str]:
    """The row on one line; empty where it is not one."""
    with suppress(csv.Error):
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    return []


def _row_over_lines(lines: _Lines, first: str, taken: list[str], delimiter: str, double: bool) -> list[str]:
    """The row that begins on `first`, and the further lines that it took; empty where there is none."""

    def feed() -> Iterator[str]:
        yield _doubled(first) if double else first
        while line := lines.take():
            taken.append(line)
            yield _doubled(line) if double else line

    with suppress(csv.Error):
        return next(csv.reader(feed(), delimiter=delimiter, strict=True))
    return []


def _is_like(row: list[str], line: str, delimiter: str, width: int, image: int) -> bool:
    """Whether a line inside a row's quotes looks like a row itself, with an image id of the same kind."""
    cells = line.rstrip("\r\n").split(delimiter)
    if len(cells) != width or len(row) <= image:
        return len(row) <= image
    own, other = row[image], cells[image]
    return PurePath(own).suffix == PurePath(other).suffix and len(own.split()) == len(other.split())
