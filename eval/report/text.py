"""A report as Markdown, CSV and LaTeX, and the words and rounded numbers that all formats share."""

import csv
import io
import re

from eval.jobs.costs import Costs
from eval.report.calibration import Reliability
from eval.report.content import MIN_DIFFERING, Cell, Difference, Report, Section
from tt_ray.bootstrap import RESAMPLES

DASH = "—"
COSTS = (
    "Of one image: FLOPs of matrix products, attention and convolutions, a multiplication and an addition being two; "
    "activations are their outputs. Measured figures are by python -m eval.efficiency, float32."
)
PAIRS = ["images", "both right", "both wrong", "better", "worse", "p"]
"""Columns of the table of pairs after task and model, see `pairs_words`."""
MARKS = {1: "▲", -1: "▼", 0: ""}
COLUMNS = (
    "status protocol protocol_hash task task_version metric main_metric model model_spec weights mean std seeds n "
    "difference low high differing significant rank reason"
).split(" ")
# Cells of a column that Markdown aligns to the right: values, bold ones, dashes, empty ones.
_STARTS_NUMBER = re.compile(rf"[-+]?(\*\*)?\d|{DASH}|$")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
} | {sign: "\\" + sign for sign in "&%$#_{}"}


def number(value: float | None, digits: int = 2) -> str:
    """A value with two decimals; a dash for None."""
    return DASH if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}" if round(value, 2) else "0.00"


def interval(difference: Difference) -> str:
    found = difference.interval
    return "" if found is None else f"[{number(found.low)}, {number(found.high)}]"


def p_value(p: float | None) -> str:
    """Two digits; a dash for None."""
    return DASH if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def pairs_words(baseline: str) -> str:
    """How to read the table of pairs."""
    return (
        "Test images that both name right in every seed and draw, that both name wrong in every one, and that the "
        f"model names right more often (better) or less often (worse) than {baseline}, over the seeds that both have. "
        "p is that of an exact sign test over images, which with one seed is McNemar's test. An image counts once, "
        "however many seeds there are; p says nothing of other trainings, and is not corrected for the number of "
        "comparisons."
    )


def reliability_words(found: Reliability) -> str:
    """The numbers of a reliability diagram."""
    confidence, accuracy = found.means()
    error = number(found.ece) + ("" if found.ece_std is None else f" ± {number(found.ece_std)}")
    return f"ECE {error}, confidence {number(confidence)}, accuracy {number(accuracy)} %"


def overview(report: Report) -> str:
    """The run in one line."""
    tasks = {task for section in report.sections for task in section.tasks}
    parts = [
        _several(len(report.models), "model"),
        _several(len(tasks), "task"),
        _several(len(report.sections), "protocol"),
        f"{_several(report.jobs, 'job')} done",
        f"{len(report.failures)} failed",
        f"baseline {report.baseline}",
    ]
    return ", ".join(parts)


def explanations(report: Report) -> list[str]:
    """How to read the tables: what the numbers are, and what they do not say."""
    by_chance = f"about {number(0.05 * report.comparisons, 1)} of them" if report.comparisons else "one in twenty"
    return [
        "Values are per cent of each task's own metric: top1, the share of test images named right, or mean_per_class, "
        "the mean over classes of their shares. They are mean ± sample standard deviation over seeds; with one seed "
        f"there is no spread. {DASH} means no result. The best value of a row is bold.",
        f"Below a value is its difference to {report.baseline}, paired by seed, with a 95 % interval by paired "
        f"bootstrap over test images: {RESAMPLES:,} resamples, each with the same images for both models, of shares "
        "averaged over seeds. It covers the drawing of test images, not the variance between training runs.",
        "What a seed draws: the validation images of tasks that have none of their own (all that linear and knn draw: "
        "their spread is that of the choice of C or k, and 0 where the same value was chosen); few_shot: shots; "
        "linear_sgd and finetune: the training of head or model as well. No spread covers the training of the model "
        "that is compared: for that, evaluate several runs of it.",
        f"{MARKS[1]} and {MARKS[-1]} mark differences whose interval excludes 0, where the models differ on at least "
        f"{MIN_DIFFERING} images (of fewer, a bootstrap says too much). {_several(report.comparisons, 'interval')} in "
        f"all, {report.marked} marked; were all models alike, {by_chance} would be by chance: there is no correction "
        "for multiple comparisons.",
        "Ranks: 1 is best, equal values share the average. Averages and ranks of a protocol are over the tasks on "
        "which every model that it shows has a result, so that a missing one counts neither for nor against anyone.",
    ]


def to_markdown(report: Report) -> str:
    """GitHub's Markdown."""
    lines = ["# Transfer evaluation", "", f"{_md(overview(report))}.", "", "## Summary", "", *_md_summary(report)]
    for section in report.sections:
        lines += ["", f"## {_md(section.label)}", "", *_md_section(section)]
        if section.others:
            lines += ["", f"### Other metrics of {_md(section.label)}", "", *_md_others(section)]
        if pairs := report.examples.of(section.label).pairs:
            rows = [[each.task, each.model, *map(str, each.counts()), p_value(each.p)] for each in pairs]
            lines += ["", f"### Images of {_md(section.label)}", "", *_md_table(["task", "model", *PAIRS], rows)]
    words = explanations(report)
    if report.examples.pairs:
        words.append(f"Images of a protocol: {pairs_words(report.baseline)} differing.csv has every such image.")
    lines += ["", "## How to read this", "", *(f"- {_md(text)}" for text in words)]
    if report.costs:
        lines += ["", "## What the models cost", "", *_md_table(*cost_table(report)), "", _md(COSTS)]
    if report.failures:
        rows = [[each.model, each.task, each.protocol, str(each.seed), each.reason] for each in report.failures]
        lines += ["", "## What failed", "", *_md_table(["model", "task", "protocol", "seed", "reason"], rows)]
    if report.remarks:
        lines += ["", "## Remarks", "", *(f"- {_md(text)}" for text in report.remarks)]
    lines += ["", "## Where the numbers come from", "", *_md_origin(report)]
    return "\n".join(lines) + "\n"


def to_csv(report: Report) -> str:
    """One line a value, and a failed job; numbers in full, so that they parse back to the same ones."""
    stream = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    specs = {source.label: source for source in report.sources}
    for section in report.sections:
        tables = [("yes", section.cells), *(("no", cells) for cells in section.others.values())]
        for main, cells in tables:
            for (task, model), cell in sorted(cells.items()):
                about = {"status": "done", "protocol": section.label, "protocol_hash": section.hash, "task": task}
                about |= {"task_version": str(section.versions[task]), "model": model, "main_metric": main}
                about |= {"model_spec": specs[model].spec, "weights": specs[model].weights}
                writer.writerow(about | _csv_cell(cell))
    for model, costs in report.costs:
        for metric, value in costs_by_metric(costs).items():
            kind = "measured" if "batch" in metric else "counted"
            writer.writerow({"status": kind, "model": model, "metric": metric, "mean": repr(value)})
    for each in report.failures:
        failed = {"status": "failed", "protocol": each.protocol, "task": each.task, "model": each.model}
        writer.writerow(failed | {"seeds": str(each.seed), "reason": each.reason})
    return stream.getvalue()


def to_latex(report: Report) -> str:
    r"""One table a protocol, to be \input; needs the package booktabs."""
    lines = [rf"% {_comment(overview(report))}. Needs \usepackage{{booktabs}}."]
    for section in report.sections:
        lines += ["", *_latex_section(report, section)]
    if report.costs:
        lines += ["", *_latex_costs(report)]
    for name, texts in _origin(report).items():
        lines += ["", *(f"% {name}: {_comment(text)}" for text in texts)]
    lines += [
        f"% failed: {_comment(f'{each.model}, {each.task}, {each.protocol}, seed {each.seed}: {each.reason}')}"
        for each in report.failures
    ]
    return "\n".join(lines) + "\n"


def cost_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of models; measured columns only where something has been measured."""
    measured = any(costs.measured for _, costs in report.costs)
    head = ["model", "parameters (M)", "GFLOPs", "activations (M)", "px"]
    head += ["batch", "images/s", "inference (MB)", "training step (MB)", "on"] if measured else []
    rows: list[list[str]] = []
    for model, costs in report.costs:
        counted = [number(each) for each in (costs.params / 1e6, costs.flops / 1e9, costs.activations / 1e6)]
        about = [model, *counted, str(costs.image_size)]
        if not costs.measured:
            rows.append(about + [DASH] * (len(head) - len(about)))
        for each in costs.measured:
            figures = [number(value, 1) for value in (each.images_per_s, each.inference_mb, each.training_mb)]
            rows.append([*about, str(each.batch_size), *figures, costs.device])
    return head, rows


def costs_by_metric(costs: Costs) -> dict[str, float]:
    """Every figure by a name with its unit and, where it was measured, its batch size."""
    found: dict[str, float] = {name: getattr(costs, name) for name in ("params", "flops", "activations", "image_size")}
    for each in costs.measured:
        for name in ("images_per_s", "inference_mb", "training_mb"):
            found[f"{name}_batch_{each.batch_size}"] = getattr(each, name)
    return found


def caption(section: Section) -> str:
    """The caption of a section's table."""
    spread = "mean ± standard deviation over seeds"
    return f"{section.label}: per cent, {spread}; below it the difference to the baseline with its 95 % interval"


def _origin(report: Report) -> dict[str, list[str]]:
    """Everything that others need to repeat the numbers."""
    return {
        "model": [f"{each.label} = {each.spec}, weights {each.weights or 'unknown'}" for each in report.sources],
        "protocol": [f"{section.label} {section.hash}" for section in report.sections],
        "task versions": [", ".join(report.task_versions)],
        "versions": [f"{each.text} ({_several(each.jobs, 'job')})" for each in report.versions],
        "command": [each.text for each in report.commands],
        "created": [f"{report.created[0]} to {report.created[1]}"],
    }


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _md(text: str) -> str:
    """Text that Markdown shows as it is; names' inner underscores are harmless."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _md_table(head: list[str], rows: list[list[str]], escape: bool = True) -> list[str]:
    if escape:
        head, rows = [_md(cell) for cell in head], [[_md(cell) for cell in row] for row in rows]
    if not rows:
        return ["Nothing."]
    numeric = [all(_STARTS_NUMBER.match(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [head, ["---:" if right else "---" for right in numeric], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _md_summary(report: Report) -> list[str]:
    head = ["protocol", "model", "average", "average rank", "tasks averaged", "better", "worse"]
    return _md_table(head, [row for section in report.sections for row in summary(report, section)])


def summary(report: Report, section: Section) -> list[list[str]]:
    """One row a model: protocol, model, average, average rank, tasks they are over, tasks better and worse."""
    rows = []
    for model in section.models:
        counts = [DASH, DASH] if (marks := section.marks(model)) is None else [*map(str, marks)]
        averages = [number(section.mean(model)), number(section.rank(model))]
        rows.append([section.label, model, *averages, f"{len(section.common)} of {len(section.tasks)}", *counts])
    return rows


def _md_section(section: Section) -> list[str]:
    rows = []
    for task in section.tasks:
        cells = [_md_cell(section.cells.get((task, model)), section.best(task)) for model in section.models]
        rows.append([_md(task), _md(section.metric(task)), f"{section.images(task):,}", *cells])
    over = f"{len(section.common)} of {_several(len(section.tasks), 'task')}"
    for name, value in (("average", section.mean), ("average rank", section.rank)):
        rows.append([f"*{name} ({over})*", "", "", *(number(value(model)) for model in section.models)])
    rows += [[f"*{label}*", "", "", *map(number, means)] for label, means in section.group_means().items()]
    head = ["task", "metric", "images", *section.models]
    return _md_table([_md(cell) for cell in head], rows, escape=False)


def _md_cell(cell: Cell | None, best: float | None) -> str:
    if cell is None:
        return DASH
    value = f"**{number(cell.mean)}**" if cell.mean == best else number(cell.mean)
    spread = "" if cell.std is None else f" ± {number(cell.std)}"
    if cell.difference is None:
        return value + spread
    parts = [signed(cell.difference.value), interval(cell.difference), MARKS[cell.difference.mark]]
    return f"{value}{spread}<br>{' '.join(part for part in parts if part)}"


def _md_others(section: Section) -> list[str]:
    rows = []
    for metric, cells in section.shown_others():
        for task in section.tasks:
            found = [cells.get((task, model)) for model in section.models]
            if any(found):
                rows.append([metric, task, *(other_cell(cell) for cell in found)])
    return _md_table(["metric", "task", *section.models], rows)


def other_cell(cell: Cell | None) -> str:
    """Mean and spread of a metric of whatever unit."""
    if cell is None:
        return DASH
    digits = 2 if abs(cell.mean) >= 1 else 4
    return number(cell.mean, digits) + ("" if cell.std is None else f" ± {number(cell.std, digits)}")


def _md_origin(report: Report) -> list[str]:
    models = [[each.label, each.spec, each.weights or "unknown", number(each.seconds, 0)] for each in report.sources]
    lines = _md_table(["model", "from", "weights and preprocessing (SHA-256)", "seconds of jobs"], models)
    protocols = [[section.label, section.hash] for section in report.sections]
    lines += ["", *_md_table(["protocol", "hash"], protocols), ""]
    lines += [f"- {_md(each.text)} ({_several(each.jobs, 'job')})" for each in report.versions]
    commands = "\n".join(each.text for each in report.commands)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", commands)), default=0))
    lines.append(f"- tasks and their versions: {_md(', '.join(report.task_versions))}")
    return [*lines, f"- jobs ended {report.created[0]} to {report.created[1]}", "", f"{fence}sh", commands, fence]


def _csv_cell(cell: Cell) -> dict[str, str]:
    texts = {"metric": cell.metric, "mean": repr(cell.mean), "n": str(cell.n), "seeds": " ".join(map(str, cell.seeds))}
    if cell.std is not None:
        texts["std"] = repr(cell.std)
    if cell.rank is not None:
        texts["rank"] = repr(cell.rank)
    if cell.difference is not None:
        texts["difference"] = repr(cell.difference.value)
        if (found := cell.difference.interval) is not None:
            texts |= {"low": repr(found.low), "high": repr(found.high), "differing": str(found.differing)}
            texts["significant"] = {1: "better", -1: "worse", 0: "no"}[cell.difference.mark]
    return texts


def _tex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _comment(text: str) -> str:
    return " ".join(text.split())


def _latex_costs(report: Report) -> list[str]:
    head, rows = cost_table(report)
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines += [rf"{' & '.join(map(_tex, head))} \\", r"\midrule"]
    lines += [rf"{' & '.join(_tex(text).replace(DASH, '--') for text in row)} \\" for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{_tex(COSTS)}}}", r"\end{table}"]


def _latex_section(report: Report, section: Section) -> list[str]:
    columns = "l" + "r" * len(section.models)
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [rf"task & {' & '.join(_tex(model) for model in section.models)} \\", r"\midrule"]
    for task in section.tasks:
        cells = [section.cells.get((task, model)) for model in section.models]
        lines.append(rf"{_tex(task)} & {' & '.join(_tex_value(cell, section.best(task)) for cell in cells)} \\")
        if any(cell and cell.difference for cell in cells):
            lines.append(rf" & {' & '.join(_tex_difference(cell) for cell in cells)} \\")
    lines.append(r"\midrule")
    for name, value in (("average", section.mean), ("average rank", section.rank)):
        lines.append(rf"{name} & {' & '.join(_tex_number(value(model)) for model in section.models)} \\")
    lines += [rf"{label} & {' & '.join(map(number, means))} \\" for label, means in section.group_means().items()]
    over = f"Averages are over {len(section.common)} of {_several(len(section.tasks), 'task')}."
    text = _tex(f"{caption(section)}; baseline {report.baseline}. {over}").replace("±", r"$\pm$")
    return [*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{text}}}", r"\end{table}"]


def _tex_number(value: float | None) -> str:
    return "--" if value is None else number(value)


def _tex_value(cell: Cell | None, best: float | None) -> str:
    if cell is None:
        return "--"
    value = rf"\textbf{{{number(cell.mean)}}}" if cell.mean == best else number(cell.mean)
    return value if cell.std is None else rf"{value} {{\scriptsize $\pm$ {number(cell.std)}}}"


def _tex_difference(cell: Cell | None) -> str:
    if cell is None or cell.difference is None:
        return ""
    mark = {1: r"$^{\uparrow}$", -1: r"$^{\downarrow}$", 0: ""}[cell.difference.mark]
    found = cell.difference.interval
    bounds = "" if found is None else f" [${number(found.low)}$, ${number(found.high)}$]"
    return rf"{{\scriptsize ${signed(cell.difference.value)}${bounds}{mark}}}"
