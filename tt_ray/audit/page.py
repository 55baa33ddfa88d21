"""An audit as one HTML page that needs nothing else, as a page of thumbnails, and as Markdown.

Captions, class names and image ids are whatever somebody wrote: HTML escapes every value, Markdown whatever would be
markup.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from tt_ray.data.sources.base import Source
from tt_ray.io.html import templates
from tt_ray.terminal.errors import UserError

_HERE = Path(__file__).parent
# The browser itself refuses whatever the page would fetch.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_THUMBNAIL = 96
_LONGEST = 300
"""Characters of a caption that a page shows."""


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under a head; shares have a bar in HTML."""

    head: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]
    shares: tuple[int, ...] = ()
    """Columns of shares between 0 and 1."""


@dataclass(frozen=True)
class Section:
    """A heading, sentences and tables."""

    title: str
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """All that the formats show."""

    title: str
    verdict: str
    evidence: list[str]
    sections: list[Section]
    made: str
    """The command and the version that wrote it."""


@dataclass(frozen=True)
class Thumbnail:
    """An image of the page of thumbnails."""

    picture: str
    """A data: URI, empty where the image cannot be read."""
    lines: tuple[str, ...]
    image_id: str


def to_html(page: Page) -> str:
    """The whole page."""
    return _render("audit.html.j2", page=page)


def to_thumbnails(title: str, images: Sequence[Thumbnail]) -> str:
    """A page of images with what is said of each."""
    return _render("thumbnails.html.j2", title=title, images=images)


def thumbnail(source: Source, row: int, lines: tuple[str, ...]) -> Thumbnail:
    """The image of a row, small."""
    from PIL import Image

    name = source.ids[row].as_py()
    try:
        pixels = source.pixels(np.array([row]), _THUMBNAIL)[0]
    except UserError:
        return Thumbnail("", lines, name)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=85)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}", lines, name)


def to_markdown(page: Page) -> str:
    """The same as Markdown."""
    lines = [f"# {_plain(page.title)}", "", f"**{_plain(page.verdict)}**", ""]
    lines += [f"- {_plain(each)}" for each in page.evidence]
    for section in page.sections:
        lines += ["", f"## {_plain(section.title)}", *(f"\n{_plain(each)}" for each in section.sentences)]
        for table in section.tables:
            lines += ["", _row(table.head), f"|{' --- |' * len(table.head)}"]
            lines += [
                _row([shown(cell, place in table.shares) for place, cell in enumerate(row)]) for row in table.rows
            ]
    return "\n".join([*lines, "", f"`{' '.join(page.made.replace('`', '').split())}`", ""])


def shown(cell: object, share: bool = False) -> str:
    """A cell as text; shares in per cent."""
    if cell is None:
        return "—"
    if share and isinstance(cell, float):
        return f"{100 * cell:.1f} %"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    text = f"{cell:,}" if isinstance(cell, int) else " ".join(str(cell).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(each) for each in cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no cell or line that ends early."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def _render(name: str, **values: object) -> str:
    style = Markup((_HERE / "audit.css").read_text(encoding="utf-8"))
    return _environment().get_template(name).render(style=style, policy=Markup(_POLICY), **values)


@cache
def _environment() -> Environment:
    """The page's templates, and what they call."""
    environment = templates(_HERE)
    environment.globals["shown"] = shown
    return environment
