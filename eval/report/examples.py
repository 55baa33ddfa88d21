"""What a report says of classes, images and calibration, of all that jobs kept of single test images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.jobs.results import ResultRow
from eval.report.calibration import Reliability, reliability, without_diagram
from eval.report.classes import ClassResult, Confusion, class_results, confusion, shown_classes
from eval.report.kept import Key, read_kept
from eval.report.pairs import Pair, pair


class Examples(NamedTuple):
    """Everything in the order of protocols, tasks and models."""

    confusions: tuple[Confusion, ...] = ()
    pairs: tuple[Pair, ...] = ()
    """One for each model that was tested on the baseline's images, with a seed of the baseline's."""
    reliabilities: tuple[Reliability, ...] = ()

    def with_pairs(self) -> list[tuple[Confusion, Pair | None]]:
        """Every confusion matrix with the pair of its model and the baseline, where there is one."""
        pairs = {each[:3]: each for each in self.pairs}
        return [(each, pairs.get(each[:3])) for each in self.confusions]

    def of(self, protocol: str) -> "Examples":
        """Those of one protocol."""
        return Examples(
            tuple(each for each in self.confusions if each.protocol == protocol),
            tuple(each for each in self.pairs if each.protocol == protocol),
            tuple(each for each in self.reliabilities if each.protocol == protocol),
        )

    def shown_classes(self) -> list[tuple[Confusion, list[ClassResult]]]:
        """The rows of the page's table of classes, by task and model."""
        return [(each, shown_classes(class_results(each, pair))) for each, pair in self.with_pairs()]


def read_examples(
    out: Path, rows: Mapping[Key, Sequence[ResultRow]], baseline: str, note: Callable[[str], None]
) -> Examples:
    """Reads what jobs kept, one task at a time.

    Args:
        out: Folder of results.
        rows: Rows of jobs that are done, by labels of protocol, task and model; the last job of a seed last.
        baseline: Label of the model that the others are compared with.
        note: Called with a sentence on each thing that cannot be shown.
    """
    confusions: list[Confusion] = []
    pairs: list[Pair] = []
    reliabilities: list[Reliability] = []
    lacking: list[tuple[Key, bool]] = []
    by_task: dict[tuple[str, str], list[Key]] = {}
    for key in rows:
        by_task.setdefault(key[:2], []).append(key)
    for keys in by_task.values():
        found = [each for key in keys if (each := read_kept(out, key, rows[key], note)) is not None]
        reference = next((each for each in found if each.key[2] == baseline), None)
        for each in found:
            confusions.append(confusion(each))
            if each is not reference and reference is not None and (both := pair(each, reference)) is not None:
                pairs.append(both)
            if (diagram := reliability(each)) is not None:
                reliabilities.append(diagram)
            else:
                lacking.append((each.key, each.calibrated))
    for sentence in without_diagram(lacking):
        note(sentence)
    return Examples(tuple(confusions), tuple(pairs), tuple(reliabilities))
