"""A report as one page that needs nothing else: report.html.j2, with style, script and charts in it."""

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape

from eval.metrics import BINS
from eval.report import charts, classes, text
from eval.report.content import Report
from tt_ray.io.html import templates

_HERE = Path(__file__).parent
# The browser itself refuses whatever the page would fetch.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def to_html(report: Report) -> str:
    """The whole page."""
    return environment().get_template("report.html.j2").render(
        report=report,
        numbers={model: number for number, model in enumerate(report.models)},
        style=Markup((_HERE / "report.css").read_text()),
        script=Markup((_HERE / "report.js").read_text()),
        policy=Markup(_POLICY),
    )  # fmt: skip


@cache
def environment() -> Environment:
    """The page's templates, and what they call."""
    environment = templates(_HERE)
    shared = {name: getattr(text, name) for name in ("COSTS", "DASH", "MARKS", "number", "signed", "interval")}
    shared |= {name: getattr(text, name) for name in ("cost_table", "explanations", "other_cell", "summary")}
    shared |= {name: getattr(text, name) for name in ("PAIRS", "pairs_words", "p_value", "reliability_words")}
    shared |= {"MOST_CLASSES": classes.MOST_CLASSES, "BINS": BINS}
    drawn = {name: getattr(charts, name) for name in ("BAR", "ROW", "SIDE", "colour")}
    drawn |= {"STRIP": charts.STRIP, "chart_reliability": charts.reliability_diagram}
    drawn |= {"chart_bars": charts.bars, "chart_forest": charts.forest, "chart_scatter": charts.scatter}
    environment.globals |= {**shared, **drawn, "breakable": _breakable}
    return environment


def _breakable(name: str) -> Markup:
    """HTML of a name that may break into lines after its signs, rather than anywhere."""
    return Markup(re.sub(r"([_/.-])", r"\1<wbr>", str(escape(name))))
