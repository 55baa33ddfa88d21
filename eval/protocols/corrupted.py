"""Protocols on corrupted test images: `linear_corrupted` fits once what `linear` fits, and tests every corruption.

Nothing that is fitted or chosen sees a corrupted image. Each metric of the protocol is its mean over all corruptions:
kinds (see `eval.features.corruptions`) times severities. Hendrycks and Dietterich (2019, arXiv 1903.12261) divide
errors by AlexNet's before they average; here nothing is divided. Further metrics, with `top1` for the task's own:

    top1@clean              the score of the protocol itself, on images as they are
    relative_drop           per cent of it that is lost on average
    top1@fog, top1@fog-3    means over the severities of a kind, and each corruption
    top1@severity-3         means over kinds

Predictions have one row for each corruption (and draw), so that intervals are those of the mean over corruptions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eval.contract import Corruption, EvalConfig, Result, Traits
from tt_ray.terminal.errors import UserError

if TYPE_CHECKING:  # they import torch and timm, which planning can do without
    from eval.features.backbone import Backbone
    from eval.tasks.registry import Task

SUFFIX = "_corrupted"


@dataclass(frozen=True)
class Options:
    """The recipe."""

    of: Any
    """The protocol's own options."""
    corruptions: tuple[Corruption, ...]
    """What the test images are corrupted by, one after the other."""

    @property
    def recipe_numbers(self) -> dict[str, Any]:
        """Every number, for the protocol's hash."""
        from eval.features.corruptions import VERSION

        own = self.of.recipe_numbers if hasattr(self.of, "recipe_numbers") else asdict(self.of)
        return {"of": own, "corruptions": [str(each) for each in self.corruptions], "images": VERSION}


class Corrupted:
    """What `eval.protocols.registry.ProtocolModule` asks for, made of another protocol."""

    Options: ClassVar[type[Any]] = Options

    def __init__(self, name: str, module: Any) -> None:
        """Raises UserError when the protocol fits nothing apart from testing it."""
        if not hasattr(module, "fit"):
            raise UserError(
                f"--corruptions: protocol {name} cannot test again what it has fitted (it defines no fit())"
            )
        self.fit = module.fit
        traits: Traits = module.TRAITS
        self.TRAITS = replace(traits, cost=3 * traits.cost)

    def evaluate(self, backbone: "Backbone", task: "Task", config: EvalConfig) -> Result:
        """Fits once, and tests on images as they are and on every corruption of them."""
        options: Options = config.options
        test = self.fit(backbone, task, replace(config, options=options.of))
        clean = test(None)
        results = {corruption: test(corruption) for corruption in options.corruptions}
        metrics = {name: fmean(each.metrics[name] for each in results.values()) for name in clean.metrics}
        metrics |= _by_corruption(task.metric, clean, results)
        rows = [each.predictions for each in results.values() if each.predictions is not None]
        predictions = np.vstack(rows) if len(rows) == len(results) else None
        return Result(metrics, clean.n, predictions, clean.labels if predictions is not None else None, clean.chosen)


def _by_corruption(metric: str, clean: Result, results: dict[Corruption, Result]) -> dict[str, float]:
    """The task's own metric on images as they are, by kind, by severity, and by both; and how much is lost."""
    at_first = clean.metrics[metric]
    values = {corruption: result.metrics[metric] for corruption, result in results.items()}
    groups: dict[str, list[float]] = {}
    for corruption, value in values.items():
        for name in (corruption.kind, f"severity-{corruption.severity}", str(corruption)):
            groups.setdefault(f"{metric}@{name}", []).append(value)
    lost = 100 * (1 - fmean(values.values()) / at_first) if at_first else float("nan")
    means = {name: fmean(each) for name, each in groups.items()}
    return {f"{metric}@clean": at_first, "relative_drop": lost} | means


def corrupted_options(options: dict[str, Any], corruptions: Sequence[Corruption]) -> dict[str, Any]:
    """Options of the protocols' corrupted versions, by their names."""
    return {f"{name}{SUFFIX}": Options(each, tuple(corruptions)) for name, each in options.items()}


def corruptions_of(options: Any) -> tuple[Corruption, ...]:
    """What a protocol with these options corrupts test images by."""
    return options.corruptions if isinstance(options, Options) else ()
