"""How long the teacher is needed: accuracy of runs whose text loss stops after k epochs.

    python -m eval.text_until --out text_until
    python -m eval.text_until --recipe in1k_vit_s_textteacher --until 0 30 50 100 300 --seeds 0 --out text_until \
        --set data.root=IMAGENET text.embeddings=STORE run.num_workers=8

TextTeacher's paper calls it a preconditioner of the early phase: most of the benefit comes in the first 30 to 50 of 300
epochs (arXiv 2605.22098). Runs of one recipe and seed differ in `text.schedule` alone, jump-A-A-0 with A = k - 1, so
that the text loss has its full weight in k epochs and none in the others; 0 is a run without text, at the same learning
rate. Writes text_until.png, .csv and .md. The same command again resumes, and adds to earlier results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from eval.why.figures import Curve, draw_curves, to_csv, write
from tt_ray.cli import read_config, refuse_own
from tt_ray.compare.arms import OWN, Arm, as_words, check
from tt_ray.compare.runs import train_arms
from tt_ray.compare.table import FinishedRun, arm_figure, show, steps_apart
from tt_ray.config import Config
from tt_ray.io.one_writer import inside, one_writer
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Train a recipe with the text loss stopped after k epochs, for several k and seeds; draw accuracy over k."""

    out: Path
    """Folder of the runs and of text_until.md, .csv and .png."""
    recipe: str = "shapes_textteacher"
    """Recipe or config.yaml with text."""
    until: tuple[int, ...] = ()
    """Epochs after which the text loss stops; empty takes 0, 1, quarters of the recipe's epochs, and all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds (train.seed)."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = ()
    """Changes of the recipe, such as train.epochs=10."""


def main(arguments: list[str]) -> None:
    """The command."""
    given = read_arguments(Arguments, arguments, program("eval.text_until"))
    words = [word for change in given.set for word in as_words(change)]
    config = read_config([given.recipe, *words], "--recipe")
    refuse_own(config, OWN, "python -m eval.text_until")
    arms = stopped_arms(config, given.until or default_stops(config.train.epochs))
    check(arms, given.seeds)
    out = given.out.expanduser()
    with one_writer(inside(out), f"results {out}"):
        runs = train_arms(arms, given.seeds, {arm.name: config.train.epochs for arm in arms}, out)
        print(report(runs, out))


def default_stops(epochs: int) -> tuple[int, ...]:
    """0, 1, quarters, and all."""
    return tuple(sorted({0, 1, epochs // 4, epochs // 2, 3 * epochs // 4, epochs}))


def stopped_arms(config: Config, until: Sequence[int]) -> list[Arm]:
    """One arm for each number of epochs with text.

    Raises UserError on those that the run does not have, and where it has a schedule of its own.
    """
    epochs = config.train.epochs
    if not config.teaches:
        raise UserError("text.weight is 0: choose a --recipe with text")
    if config.text.schedule != "const":
        raise UserError(f"text.schedule is {config.text.schedule}, which --until would replace: leave it const")
    if wrong := [k for k in until if not 0 <= k <= epochs]:
        raise UserError(f"--until {wrong[0]} is not between 0 and the recipe's {epochs} epochs")
    arms: list[Arm] = []
    for k in sorted(until):
        if k == 0:
            changed = config.override("text.weight", 0.0)
        else:
            changed = config.override("text.schedule", f"jump-{k - 1}-{k - 1}-0" if k < epochs else "const")
        arms.append(Arm(f"until{k}", changed))
    return arms


def report(runs: Sequence[FinishedRun], out: Path) -> str:
    """Writes the figure and the tables and returns the Markdown; differences are to the first arm."""
    top1 = {(run.arm, run.seed): run.top1 for run in runs}
    names = list(dict.fromkeys(run.arm for run in runs))
    until = [int(name.removeprefix("until")) for name in names]
    figures = [arm_figure(top1, name, names[0]) for name in names]
    curve = Curve(until, [each.mean for each in figures], [each.std or 0.0 for each in figures])
    draw_curves(out / "text_until.png", {"top-1, %": {"mean, spread over seeds": curve}}, "epochs with text")
    lines = [[run.arm.removeprefix("until"), run.seed, run.epochs, run.top1] for run in runs]
    write(out / "text_until.csv", to_csv(["epochs_with_text", "seed", "epochs", "top1"], lines))
    head = [f"| epochs with text, of {runs[0].epochs} | top-1 (difference to {until[0]}) |", "| --- | --- |"]
    text = "\n".join([*head, *(f"| {k} | {show(each)} |" for k, each in zip(until, figures, strict=True)), ""])
    text += "".join(f"\n{note}\n" for note in steps_apart(runs))
    write(out / "text_until.md", f"{text}\n![Top-1 over epochs with text](text_until.png)\n")
    return text


if __name__ == "__main__":
    run_command(main)
