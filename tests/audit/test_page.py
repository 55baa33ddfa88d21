"""Captions are whatever somebody wrote: no page lets them be anything but text, and pages fetch nothing."""

import re

import pytest

from tt_ray.audit.page import Page, Section, Table, Thumbnail, shown, to_html, to_markdown, to_thumbnails

EVIL = '<script>alert(1)</script> | "quoted" & `code`\n\n# heading [link](http://x) *bold*'


@pytest.fixture
def page() -> Page:
    table = Table(("what", "share"), [(EVIL, 0.25), ("x", None)], (1,))
    return Page(EVIL, EVIL, [EVIL], [Section(EVIL, [EVIL], [table])], EVIL)


def test_html_escapes_everything(page: Page) -> None:
    html = to_html(page) + to_thumbnails(EVIL, [Thumbnail("", (EVIL,), EVIL)])
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not re.search(r'(src|href)="(?!data:)', html) and "default-src 'none'" in html
    assert "25.0 %" in html and 'width="20.0"' in html


def test_markdown_keeps_its_tables(page: Page) -> None:
    lines = to_markdown(page).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4 and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert [line for line in lines if line.startswith("#")] == [lines[0], next(x for x in lines if x.startswith("## "))]
    assert "<script" not in "\n".join(lines[:-1]).replace("\\<script", "")


def test_cells() -> None:
    assert [shown(None), shown(1234), shown(0.5), shown(0.5, True), shown("a\n b")] == [
        "—",
        "1,234",
        "0.50",
        "50.0 %",
        "a b",
    ]
    assert len(shown("x" * 1000)) == 301
