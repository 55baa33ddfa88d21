"""One report in all formats: the same numbers, whatever names contain."""

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.report.__main__ import write_report
from eval.report.text import number, signed, to_csv, to_latex, to_markdown
from tests.eval.sample_results import COMMAND, LABELS, Job, build, fail, finish

NASTY = '<img src=x onerror="alert(1)">&|`*_$#{}~^\\%'


def cells(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(build(out)))))


def test_csv_parses_back_to_the_same_numbers(sample: Path) -> None:
    report, rows = build(sample), cells(sample)
    for section in report.sections:
        for (task, model), cell in section.cells.items():
            place = {"protocol": section.label, "task": task, "model": model, "main_metric": "yes"}
            (row,) = [row for row in rows if place.items() <= row.items()]
            assert float(row["mean"]) == cell.mean and int(row["n"]) == cell.n
            assert (float(row["std"]) if row["std"] else None) == cell.std
            assert (float(row["rank"]) if row["rank"] else None) == cell.rank
            if cell.difference is not None and cell.difference.interval is not None:
                found = float(row["difference"]), float(row["low"]), float(row["high"]), int(row["differing"])
                assert found == (cell.difference.value, *cell.difference.interval)
    assert sum(row["main_metric"] == "yes" for row in rows) == sum(len(each.cells) for each in report.sections)
    assert [row["reason"] != "" for row in rows if row["status"] == "failed"] == [True] * 3


class _Tables(HTMLParser):
    """Texts of the cells of all tables: by table, row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._inside = True
        elif self._inside and tag in ("div", "span"):
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[-1][-1][-1] += data


def _numbers(text: str) -> list[str]:
    return re.findall(r"[-+]?\d+\.\d+", text)


def test_numbers_are_the_same_in_all_formats(sample: Path, tmp_path: Path) -> None:
    write_report(sample, out=tmp_path)
    markdown, latex = (tmp_path / "report.md").read_text(), (tmp_path / "report.tex").read_text()
    parser = _Tables()
    parser.feed((tmp_path / "report.html").read_text())
    rows = [row for row in cells(sample) if row["main_metric"] == "yes"]
    tables = [table for table in parser.tables if len(table[0]) == 4 and table[-1][0].startswith("Average rank")]
    for table, protocol in zip(tables, ("linear", "knn"), strict=True):
        page = {re.split(r" *(top1|mean_per)", row[0])[0].strip(): row[1:] for row in table[1:]}
        section = markdown.split(f"\n## {protocol}\n")[1].split("\n#")[0]
        lines = {
            line.split("|")[1].strip(): line.split("|")[4:] for line in section.splitlines() if line.startswith("|")
        }
        pieces = latex.split(r"\begin{table}")[1 if protocol == "linear" else 2].splitlines()
        for task in ("digits", "flowers102", "dtd"):
            place = next(number for number, line in enumerate(pieces) if line.startswith(f"{task} &"))
            tex = [
                f"{one} {two}" for one, two in zip(pieces[place].split("&"), pieces[place + 1].split("&"), strict=True)
            ]
            for column, model in enumerate(("base", "textteacher", "deit")):
                found = [row for row in rows if (row["protocol"], row["task"], row["model"]) == (protocol, task, model)]
                expected = [text for row in found for text in _shown(row)]
                assert _numbers(page[task][column]) == expected, (task, model)
                assert _numbers(lines[task][column]) == expected
                assert _numbers(tex[column + 1]) == expected
                assert found or (page[task][column], lines[task][column].strip()) == ("—", "—")


def _shown(row: dict[str, str]) -> list[str]:
    texts = [number(float(row["mean"])), number(float(row["std"]))]
    if row["difference"]:
        texts += [signed(float(row["difference"])), number(float(row["low"])), number(float(row["high"]))]
    return texts


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    for model in ("base", NASTY):
        command = f"python -m eval --models base=a '{model}=b' </script><script>alert(2)</script>"
        finish(tmp_path, Job(model, protocol="linear", command=command), LABELS, LABELS)
        fail(tmp_path, Job(model, seed=1), f"{NASTY}\n</script> | second line")
    for file in write_report(tmp_path):
        text = file.read_text()
        if file.suffix == ".html":
            assert "<img" not in text and text.count("<script>") == text.count("</script>") == 1
        if file.suffix == ".tex":
            body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
            escaped = re.sub(
                r"\\(textbackslash|textasciitilde|textasciicircum|text\w+|char34)\{\}|\\[&%$#_{}]", "", body
            )
            assert "alert" in escaped and "<" not in escaped and "#" not in escaped and "~" not in escaped
            assert all("second line" not in line for line in text.splitlines() if not line.startswith("%"))
        if file.suffix == ".md":
            table = text.split("## What failed")[1].split("##")[0].strip().splitlines()
            assert len(table) == 4 and "<img" not in text.split("```")[0]
            assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in table)
        if file.suffix == ".csv":
            assert {row["model"] for row in csv.DictReader(io.StringIO(text))} == {"base", NASTY}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs: apt-get install texlive")
def test_latex_takes_the_tables(sample: Path, tmp_path: Path) -> None:
    shutil.copytree(sample, tmp_path, dirs_exist_ok=True)
    finish(tmp_path, Job(NASTY), LABELS, LABELS)
    write_report(tmp_path)
    body = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{report.tex}\end{document}"
    (tmp_path / "main.tex").write_text(body)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert answer.returncode == 0, answer.stdout[-1000:]


def test_versions_hashes_and_commands_are_told(sample: Path) -> None:
    report = build(sample)
    weights = next(source.weights for source in report.sources if source.label == "textteacher")
    for text in (to_markdown(report), to_latex(report)):
        for wanted in (COMMAND, "torch 2.15.0", weights, report.sections[0].hash, "runs/textteacher"):
            assert wanted in text
        assert "digits 1, dtd 1, flowers102 1" in text
    assert report.sections[0].hash in to_csv(report) and weights in to_csv(report)
