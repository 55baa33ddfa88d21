"""Draws docs/textteacher.svg: the method on the left, and on the right the rows of benchmarks/results.

    python -m benchmarks.picture

The figures are means and standard deviations over seeds, of the arms `baseline` and `textteacher` at the rates that
`benchmarks.what_text_buys` has chosen for them.
"""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.what_text_buys import TUNING_SEED, best_rates, read
from tt_ray.statistics import spread

RESULTS = Path(__file__).parent / "results"
OUT = Path(__file__).parents[1] / "docs" / "textteacher.svg"
STUDIES = {
    "shapes-noise": "shapes, half of the labels wrong",
    "emoji-noise": "emoji, half of the labels wrong",
    "emoji-clean": "emoji, clean labels",
}
_ARMS = {"baseline": "#9aa5b1", "textteacher": "#1f6feb"}
_BAR_LEFT, _BAR_WIDTH = 470, 260  # of 100 per cent


class Box(NamedTuple):
    """A rounded rectangle with lines of text in it."""

    x: int
    y: int
    width: int
    height: int
    fill: str
    lines: tuple[str, ...]


_BOXES = (
    Box(20, 62, 70, 56, "#ffffff", ("image",)),
    Box(120, 62, 92, 56, "#dbe9ff", ("backbone",)),
    Box(242, 40, 92, 36, "#dbe9ff", ("classifier",)),
    Box(242, 104, 92, 36, "#fff1cc", ("projection",)),
    Box(20, 190, 70, 56, "#ffffff", ("caption",)),
    Box(120, 190, 214, 56, "#fff1cc", ("frozen text encoder", "(embedded once)")),
    Box(364, 40, 66, 36, "#ffffff", ("label loss",)),
    Box(364, 128, 66, 76, "#ffffff", ("text loss",)),
)
_ARROWS = (
    ((90, 90), (120, 90)),
    ((212, 82), (242, 62)),
    ((212, 98), (242, 118)),
    ((334, 58), (364, 58)),
    ((334, 122), (364, 144)),
    ((90, 218), (120, 218)),
    ((334, 212), (364, 188)),
)


def main() -> None:
    """Draws the picture."""
    OUT.write_text(picture(), encoding="utf-8")
    print(OUT)


def picture() -> str:
    """The whole SVG, readable on light and on dark pages."""
    body = [*_method(), *_result()]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 270" width="780" height="270" '
    head += 'font-family="system-ui, sans-serif" font-size="12" fill="#1f2328" role="img" '
    head += 'aria-label="The method of TextTeacher, and its top-1 next to the baseline\'s">'
    marker = '<marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    marker += '<path d="M0 0 6 3 0 6z" fill="#57606a"/></marker>'
    paper = '<rect width="780" height="270" rx="8" fill="#ffffff"/>'
    return "\n".join([head, f"<defs>{marker}</defs>", paper, *body, "</svg>"]) + "\n"


def figures(study: str) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of top-1 over the seeds, by arm."""
    rows = read(RESULTS / f"{study}.jsonl")
    found = {}
    for arm, rate in best_rates(rows, list(_ARMS)).items():
        values = [
            row["top1"] for row in rows if (row["arm"], row["rate"]) == (arm, rate) and row["seed"] != TUNING_SEED
        ]
        found[arm] = fmean(values), spread(values) or 0.0
    return found


def _method() -> Iterable[str]:
    yield _text(20, 24, "training: one more loss", weight="600")
    for (x1, y1), (x2, y2) in _ARROWS:
        yield f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#57606a" marker-end="url(#tip)"/>'
    for box in _BOXES:
        yield (
            f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6" fill="{box.fill}" '
            'stroke="#57606a"/>'
        )
        first = box.y + box.height / 2 + 4 - 8 * (len(box.lines) - 1)
        for number, line in enumerate(box.lines):
            yield _text(box.x + box.width / 2, first + 16 * number, line, anchor="middle")
    yield _text(20, 262, "blue: what you deploy", fill="#1f6feb")
    yield _text(160, 262, "yellow: thrown away after training", fill="#9a6700")


def _result() -> Iterable[str]:
    yield _text(_BAR_LEFT, 24, "top-1 (%), with the spread over seeds", weight="600")
    for number, (study, name) in enumerate(STUDIES.items()):
        top = 48 + 68 * number
        yield _text(_BAR_LEFT, top, name)
        for place, (arm, (mean, sd)) in enumerate(figures(study).items()):
            y, width = top + 8 + 20 * place, _BAR_WIDTH * mean / 100
            yield f'<rect x="{_BAR_LEFT}" y="{y}" width="{width:.1f}" height="16" fill="{_ARMS[arm]}"/>'
            ends = [_BAR_LEFT + _BAR_WIDTH * (mean + sign * sd) / 100 for sign in (-1, 1)]
            yield f'<path d="M{ends[0]:.1f} {y + 8}H{ends[1]:.1f}" stroke="#1f2328"/>'
            yield _text(ends[1] + 6, y + 12, f"{mean:.1f} ± {sd:.1f}")
    yield _text(_BAR_LEFT, 262, "grey: without text", fill="#57606a")
    yield _text(_BAR_LEFT + 120, 262, "blue: with text", fill="#1f6feb")


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "400", fill: str = "#1f2328") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">{text}</text>'


if __name__ == "__main__":
    main()
