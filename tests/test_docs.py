"""The pages keep their word: links lead somewhere, and generated pages and the picture are up to date.

Commands: test_page_commands.py and test_page_runs.py. Figures: test_page_figures.py.
"""

import importlib
import re
from pathlib import Path

import pytest

import docs.generate
from benchmarks import picture
from tests.pages import PAGES, ROOT, anchors, links
from tt_ray.config import Config

README = ROOT / "README.md"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set[Path](), [README]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            target = target / "README.md" if target.is_dir() else target
            todo += [target] if target in PAGES else []
    assert reached == set(PAGES)


def test_generated_pages_are_up_to_date() -> None:
    for name, text in docs.generate.pages().items():
        assert (ROOT / "docs" / name).read_text() == text, "run python -m docs.generate"


def test_the_page_of_fields_has_them_all() -> None:
    text = docs.generate.configuration(Config())
    assert re.findall(r"^\| `([\w.]+\.\w+)` \|", text, re.MULTILINE) != []
    assert set(re.findall(r"^\| `(\w+\.[\w.]+)` \|", text, re.MULTILINE)) == set(Config.paths())
    assert "| `text.weight` | `0.5` | number, 0 to 1 |" in text
    assert not re.search(r"\| +\|$", re.sub(r"\| field .*", "", text.split("## Recipes")[0]), re.MULTILINE)


def test_the_page_of_the_library_shows_signatures_and_docstrings() -> None:
    text = docs.generate.api(importlib.import_module("tt_ray.embeddings.store"))
    assert "open_store(path: str | Path, verify: bool = False) -> EmbeddingStore" in text
    assert "- `path`: Folder of the store." in text and "### `EmbeddingStore.rows_of`" in text


def test_the_picture_is_that_of_the_rows() -> None:
    assert picture.OUT.read_text() == picture.picture(), "run python -m benchmarks.picture"
