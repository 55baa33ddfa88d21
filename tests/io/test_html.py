"""Pages show what people wrote, whatever that is, as text."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from tt_ray.io.html import templates


def test_values_are_text_and_unknown_names_are_errors(tmp_path: Path) -> None:
    (tmp_path / "page.html.j2").write_text("<p>{{ caption }}</p>\n")
    page = templates(tmp_path).get_template("page.html.j2")
    assert page.render(caption="<b>&") == "<p>&lt;b&gt;&amp;</p>\n"
    with pytest.raises(UndefinedError, match="caption"):
        page.render(captoin="")
