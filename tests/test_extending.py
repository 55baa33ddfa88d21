"""docs/extending.md shows what the tests run: every line of its code stands in the test that its section links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = PAGE.split("\n## ")[1:]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.split("\n")[0])
def test_the_code_of_a_section_is_its_tests(section: str) -> None:
    (test,) = re.findall(r"\]\(\.\./(tests/\S+?\.py)\)", section)
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL)
    assert blocks
    lines = {line.strip() for line in (ROOT / test).read_text().splitlines()}
    shown = {line.strip() for block in blocks for line in block.splitlines()}
    assert not (shown - lines), f"not in {test}"


def test_linked_files_are_there() -> None:
    for link in re.findall(r"\]\(\.\./(\S+?)\)", PAGE):
        assert (ROOT / link).is_file(), link
