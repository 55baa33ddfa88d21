"""A report as one page that needs nothing else: style, script and charts are within."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from eval.report.charts import bars, breakable, colour, forest, scatter
from eval.report.content import Cell, Report, Section
from eval.report.text import COSTS, DASH, MARKS, cost_table, explanations, interval, number, other_cell, signed, summary

# The browser itself refuses whatever the page would fetch.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_HERE = Path(__file__).parent


def to_html(report: Report) -> str:
    """The whole page."""
    numbers = {model: number for number, model in enumerate(report.models)}
    parts = [_header(report), _filters(report, numbers), "<main>", _summary(report, numbers)]
    parts += [_section(report, section, numbers) for section in report.sections]
    parts += [_costs(report, numbers), _failures(report, numbers), _reading(report), _origin(report), "</main>"]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Transfer evaluation</title>
<style>
{(_HERE / "report.css").read_text()}</style>
</head>
<body>
{"".join(parts)}
<script>
{(_HERE / "report.js").read_text()}</script>
</body>
</html>
"""


def _header(report: Report) -> str:
    tasks = {task for section in report.sections for task in section.tasks}
    counts = [
        (len(report.models), "models", ""),
        (len(tasks), "tasks", ""),
        (len(report.sections), "protocols", ""),
        (report.jobs, "jobs done", ""),
        (len(report.failures), "failed", "bad" if report.failures else ""),
    ]
    tiles = "".join(f'<li class="{look}"><b>{count:,}</b>{what}</li>' for count, what, look in counts)
    dates = " to ".join(dict.fromkeys(time[:16].replace("T", " ") for time in report.created))
    about = f"Compared with <b>{escape(report.baseline)}</b>. Jobs ended {escape(dates)} UTC."
    return (
        f'<header><div><h1>Transfer evaluation</h1><p class="soft">{about}</p>'
        f'<ul class="tiles">{tiles}</ul></div></header>\n'
    )


def _filters(report: Report, numbers: dict[str, int]) -> str:
    """The bar of filters, whose models are the charts' legend as well."""
    protocols = "".join(f"<option>{escape(section.label)}</option>" for section in report.sections)
    chips = "".join(
        f'<label class="chip" title="{escape(model)}"><input type="checkbox" name="model" value="{place}" checked>'
        f"{_swatch(place)}<span>{escape(model)}</span></label>"
        for model, place in numbers.items()
    )
    return (
        '<nav aria-label="Filters"><form autocomplete="off">'
        '<label><span class="label">Protocol</span><select name="protocol">'
        f'<option value="">All protocols</option>{protocols}</select></label>'
        '<label><span class="label">Task</span><input type="search" name="task" placeholder="Filter tasks"></label>'
        f'<fieldset><legend>Models</legend>{chips}</fieldset><button type="reset" class="reset">Reset</button>'
        "</form></nav>\n"
    )


def _swatch(place: int) -> str:
    return f'<i class="f{colour(place)}"></i>'


def _sorting(name: str, kind: str, attributes: str = "", mark: str = "") -> str:
    """A column's header that sorts when pressed; `kind` is text or number."""
    look = ' class="text"' if kind == "text" else ""
    button = f'<button type="button">{mark}<span>{name}</span></button>'
    return f'<th scope="col" data-kind="{kind}"{look}{attributes}>{button}</th>'


def _table(head: Iterable[str], body: Iterable[str], foot: Iterable[str] = ()) -> str:
    """Rows are complete `tr` elements."""
    parts = f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody>"
    footer = f"<tfoot>{''.join(foot)}</tfoot>" if foot else ""
    return f'<div class="scroll"><table>{parts}{footer}</table></div>'


def _cell(text: str, value: float | str | None = None, look: str = "") -> str:
    """`text` is HTML; `value` is what the column sorts by."""
    key = "" if value is None else f' data-v="{escape(value) if isinstance(value, str) else repr(value)}"'
    return f"<td{key}{f' class={look!r}' if look else ''}>{text}</td>"


def _summary(report: Report, numbers: dict[str, int]) -> str:
    names = ["protocol", "model", "average", "average rank", "tasks averaged", "better", "worse"]
    kinds = ["text", "text", *["number"] * 5]
    rows = []
    for section in report.sections:
        for line in summary(report, section):
            place = numbers[line[1]]
            cells = [_cell(escape(text), text if text != DASH else None) for text in line[2:]]
            # "3 of 4" sorts by its first number.
            cells[2] = _cell(escape(line[4]), float(len(section.common)))
            model = _cell(f"{_swatch_inline(place)}{escape(line[1])}", line[1], "text")
            name = f'<th scope="row" data-v="{escape(line[0])}">{escape(line[0])}</th>'
            rows.append(f'<tr data-protocol="{escape(line[0])}" data-m="{place}">{name}{model}{"".join(cells)}</tr>')
    head = [_sorting(name, kind) for name, kind in zip(names, kinds, strict=True)]
    note = "Tasks on which a model is significantly better or worse than the baseline; see “How to read this”."
    return f'<section><h2>Summary</h2>{_table(head, rows)}<p class="soft small">{note}</p></section>\n'


def _swatch_inline(place: int) -> str:
    return f'<i class="dot f{colour(place)}"></i>'


def _section(report: Report, section: Section, numbers: dict[str, int]) -> str:
    charts = "".join(
        f'<figure data-task="{escape(task)}"><figcaption>{escape(task)}</figcaption>{bars(section, task, numbers)}'
        "</figure>"
        for task in section.tasks
    )
    against = scatter(section, report.baseline, numbers)
    if against:
        name = escape(report.baseline)
        differences = f"<h3>Difference to {name}, points, 95 % intervals</h3>{forest(section, numbers)}"
        against = (
            f'<div class="pair"><div>{differences}</div>'
            f"<div><h3>Models against {name}, a point a task</h3>{against}</div></div>"
            '<p class="soft small">Filled points differ significantly from the baseline, dashed lines equal it.</p>'
        )
    others = _others(section, numbers) if section.others else ""
    return (
        f'<section data-protocol="{escape(section.label)}"><h2>{escape(section.label)}</h2>'
        f"{_results(section, numbers)}<h3>Accuracy by task, %</h3>"
        f'<div class="bars-all">{charts}</div>{against}{others}</section>\n'
    )


def _heads(section: Section, numbers: dict[str, int]) -> list[str]:
    return [
        _sorting(breakable(model), "number", f' data-m="{numbers[model]}"', _swatch(numbers[model]))
        for model in section.models
    ]


def _results(section: Section, numbers: dict[str, int]) -> str:
    rows = []
    for task in section.tasks:
        about = f'<span class="unit">{escape(section.metric(task))}, {section.images(task):,} images</span>'
        name = f'<th scope="row" data-v="{escape(task)}">{breakable(task)}{about}</th>'
        cells = "".join(
            _value(section.cells.get((task, model)), numbers[model], section.best(task)) for model in section.models
        )
        rows.append(f'<tr data-task="{escape(task)}">{name}{cells}</tr>')
    over = f"{len(section.common)} of {len(section.tasks)} tasks"
    foot = []
    for what, value in (("Average", section.mean), ("Average rank", section.rank)):
        cells = "".join(f'<td data-m="{numbers[model]}">{number(value(model))}</td>' for model in section.models)
        foot.append(f'<tr><th scope="row">{what}<span class="unit">over {over}</span></th>{cells}</tr>')
    return _table([_sorting("task", "text"), *_heads(section, numbers)], rows, foot)


def _value(cell: Cell | None, place: int, best: float | None) -> str:
    if cell is None:
        return f'<td data-m="{place}">{DASH}</td>'
    value = number(cell.mean)
    text = f'<span class="best">{value}</span>' if cell.mean == best else value
    if cell.std is not None:
        text += f' <span class="spread">± {number(cell.std)}</span>'
    if cell.difference is not None:
        mark = cell.difference.mark
        parts = [signed(cell.difference.value), interval(cell.difference), MARKS[mark]]
        look = {1: ' class="up"', -1: ' class="down"', 0: ""}[mark]
        shown = " ".join(part for part in parts if part)
        text += f'<div class="difference"><span{look}>{shown}</span></div>'
    seeds = f"seeds {', '.join(map(str, cell.seeds))}"
    return f'<td data-m="{place}" data-v="{cell.mean!r}" title="{seeds}">{text}</td>'


def _others(section: Section, numbers: dict[str, int]) -> str:
    rows = []
    for metric, cells in section.shown_others():
        for task in section.tasks:
            found = {model: cells.get((task, model)) for model in section.models}
            if not any(found.values()):
                continue
            values = "".join(
                f'<td data-m="{numbers[model]}"{f" data-v={chr(34)}{cell.mean!r}{chr(34)}" if cell else ""}>'
                f"{other_cell(cell)}</td>"
                for model, cell in found.items()
            )
            name = f'<th scope="row" data-v="{escape(task)}">{escape(task)}</th>'
            rows.append(f'<tr data-task="{escape(task)}">{name}{_cell(escape(metric), metric, "text")}{values}</tr>')
    head = [_sorting("task", "text"), _sorting("metric", "text"), *_heads(section, numbers)]
    return f"<details><summary>Other metrics</summary>{_table(head, rows)}</details>"


def _failures(report: Report, numbers: dict[str, int]) -> str:
    if not report.failures:
        return ""
    rows = [
        f'<tr data-protocol="{escape(each.protocol)}" data-m="{numbers[each.model]}" data-task="{escape(each.task)}">'
        f'<th scope="row" data-v="{escape(each.model)}">{escape(each.model)}</th>'
        f"{_cell(escape(each.task), each.task, 'text')}{_cell(escape(each.protocol), each.protocol, 'text')}"
        f"{_cell(str(each.seed), float(each.seed))}{_cell(escape(each.reason), each.reason, 'text wrap')}</tr>"
        for each in report.failures
    ]
    names = ["model", "task", "protocol", "seed", "reason"]
    kinds = ["text", "text", "text", "number", "text"]
    head = [_sorting(name, kind) for name, kind in zip(names, kinds, strict=True)]
    return f'<section class="failed"><h2>What failed</h2>{_table(head, rows)}</section>\n'


def _costs(report: Report, numbers: dict[str, int]) -> str:
    if not report.costs:
        return ""
    head, lines = cost_table(report)
    rows = []
    for line in lines:
        name = f'<th scope="row" data-v="{escape(line[0])}">{escape(line[0])}</th>'
        cells = "".join(_cell(escape(text), text if text != DASH else None) for text in line[1:])
        rows.append(f'<tr data-m="{numbers[line[0]]}">{name}{cells}</tr>')
    kinds = ["text", *["number"] * (len(head) - 1)]
    table = _table([_sorting(name, kind) for name, kind in zip(head, kinds, strict=True)], rows)
    return f'<section><h2>What the models cost</h2>{table}<p class="soft small">{escape(COSTS)}</p></section>\n'


def _list(texts: Iterable[str]) -> str:
    return f'<ul class="plain">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def _reading(report: Report) -> str:
    remarks: Sequence[str] = [*report.notes, *(f"Left out: {text}" for text in report.damaged)]
    more = f"<h3>Remarks on single numbers</h3>{_list(remarks)}" if remarks else ""
    return f"<section><h2>How to read this</h2>{_list(explanations(report))}{more}</section>\n"


def _origin(report: Report) -> str:
    models = [
        f'<tr><th scope="row">{escape(each.label)}</th>{_cell(escape(each.spec), None, "text wrap")}'
        f"{_cell('<code>' + escape(each.weights or 'unknown') + '</code>', None, 'text wrap')}"
        f"{_cell(number(each.seconds, 0))}</tr>"
        for each in report.sources
    ]
    head = [
        f'<th scope="col"{look}>{name}</th>'
        for name, look in zip(
            ("model", "from", "weights and preprocessing (SHA-256)", "seconds of jobs"),
            ("", ' class="text"', ' class="text"', ""),
            strict=True,
        )
    ]
    tasks = sorted({f"{task} {section.versions[task]}" for section in report.sections for task in section.tasks})
    protocols = [f"{section.label}: {section.hash}" for section in report.sections]
    versions = [f"{each.text} ({each.jobs} job{'s' * (each.jobs != 1)})" for each in report.versions]
    commands = escape("\n".join(each.text for each in report.commands))
    return (
        f"<section><h2>Where the numbers come from</h2>{_table(head, models)}"
        f"<h3>Tasks and their versions</h3>{_list(tasks)}"
        f"<h3>Protocols and the hashes of their recipes</h3>{_list(protocols)}"
        f"<h3>Software</h3>{_list(versions)}<h3>Commands</h3><pre>{commands}</pre></section>\n"
    )
