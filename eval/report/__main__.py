"""A report of an evaluation's results: `python -m eval.report DIR [--baseline NAME] [--out DIR]`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval.jobs.results import read_table
from eval.report.calibration import reliability_csv
from eval.report.classes import classes_csv, confusion_csv, write_images
from eval.report.content import Report
from eval.report.html import to_html
from eval.report.numbers import build_report
from eval.report.pairs import differing_csv
from eval.report.text import overview, to_csv, to_latex, to_markdown
from tt_ray.io.files import new_file
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError, reason
from tt_ray.terminal.progress import Display

_FORMATS = {"report.md": to_markdown, "report.csv": to_csv, "report.tex": to_latex, "report.html": to_html}
_TABLES: dict[str, Callable[[Report], str]] = {
    "confusion.csv": lambda report: confusion_csv(report.examples.confusions),
    "classes.csv": lambda report: classes_csv(report.examples.with_pairs()),
    "differing.csv": lambda report: differing_csv(report.examples.pairs),
    "reliability.csv": lambda report: reliability_csv(report.examples.reliabilities),
}


@dataclass(frozen=True)
class Arguments:
    """Results of `python -m eval` -> report.md, .csv, .tex and .html, one page that needs nothing else.

    And what the stored predictions say of single classes and images: classes.csv, confusion.csv, images.parquet,
    differing.csv (images that a model names right and the baseline does not, or the other way round), reliability.csv.
    """

    results: tyro.conf.Positional[Path]
    """Folder that `python -m eval` wrote with --out; it may still be at work."""
    baseline: str = ""
    """Model that the others are compared with; empty takes `baseline` or `base`, or else the first one."""
    out: Path | None = None
    """Folder of the report; the default is that of the results."""


def write_report(results: Path, baseline: str = "", out: Path | None = None) -> list[Path]:
    """Writes the report in all formats and returns the files. The same results make the same bytes.

    Raises UserError where there are no results, or none of the baseline.
    """
    results, out = results.expanduser(), (out or results).expanduser()
    if not results.is_dir():
        raise UserError(f"no folder {results}: pass the one that python -m eval wrote with --out")
    with Display() as display:
        report = build_report(results, read_table(results), baseline or None, display.show)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{out} is not a folder: choose another --out") from None
    except OSError as error:
        raise UserError(f"cannot write to {out}: {reason(error)}: choose another --out") from None
    with new_file(out / "images.parquet", durable=False) as partial:
        write_images(report.examples.confusions, partial)
    for name, write in {**_TABLES, **_FORMATS}.items():
        with new_file(out / name, durable=False) as partial:
            partial.write_text(write(report), encoding="utf-8")
    for text in report.damaged:
        display.console.print(f"left out {text}", markup=False, highlight=False)
    print(f"{overview(report)}\n{out / 'report.html'}")
    return [out / name for name in _FORMATS]


def main(arguments: list[str]) -> None:
    """The command."""
    given = read_arguments(Arguments, arguments, program("eval.report"))
    write_report(given.results, given.baseline, given.out)


if __name__ == "__main__":
    run_command(main)
