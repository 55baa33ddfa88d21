"""Trains arms for the same epochs and for the same wall-clock time, over seeds, and writes one table of them.

    python -m tt_ray.train shapes_vision_teacher && python -m tt_ray.compare --out compare
    python -m tt_ray.compare --arms baseline=in1k_vit_s_baseline textteacher=in1k_vit_s_textteacher \
        distilled=in1k_vit_s_dinov2_l --set data.root=IMAGENET text.embeddings=STORE --seeds 0 --out compare

An arm is NAME=RECIPE or NAME=config.yaml, with changes after a plus: long=shapes_baseline+optim.lr=0.001. The first
arm is the baseline. Below the table are the differences between arms other than the teacher, and what the table allows
to say: intervals over seeds (paired t), p values corrected for the number of arms (Holm), and for transfer an interval
over test images and seeds (bootstrap). Five seeds, the default, are as few as a claim can do with.

Same epochs: every arm trains for the baseline's epochs with every seed, one run after the other, seeds outermost, so
that the arms of a seed find the machine in much the same state. An arm's time per epoch is the median time of its
steps (all of the loop but validation, from metrics.jsonl; the first reading left out; epochs with and without a teacher
by themselves, where text.schedule has both), times the steps of its epochs (more where it has more training images, as
with data.unlabelled), over the baseline's with the same seed, and of these ratios the median over seeds. On a machine
that others use, add --interleave 40: arms then take turns of a few steps in one process, and the median is over rounds.
Embedding the captions, once, is not part of it.

Same time: the budget is the time of the baseline's epochs. An arm whose epoch takes r times the baseline's trains
again for floor(epochs / r) epochs, with the learning rate's whole schedule in them: no run is cut off half-way. Where
that is the same number of epochs, the first run counts for both.

Transfer is the average of linear probes over tasks (`python -m eval`), on the runs of the same epochs. The same command
again continues: finished runs are kept, an unfinished one resumes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tt_ray.io.one_writer import inside, one_writer
from tt_ray.terminal.command import program, read_arguments, run_command

DEFAULT_ARMS = ("baseline=shapes_baseline", "textteacher=shapes_textteacher", "distilled=shapes_distilled")


@dataclass(frozen=True)
class Arguments:
    """Train arms under one recipe, for the same epochs and for the same time, over seeds; write one table."""

    out: Path
    """Folder of the runs and of compare.md, .csv and .json."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=RECIPE ...")] = DEFAULT_ARMS
    """NAME=RECIPE or NAME=config.yaml, with +PATH=VALUE after it for each change; the first is the baseline."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds (train.seed) that every arm is trained with; with fewer than five hardly anything can be claimed."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = ()
    """Changes of all arms, such as train.epochs=10 data.label_noise=0."""
    tasks: tuple[str, ...] = ("builtin",)
    """Tasks or suites of python -m eval for the transfer average; `none` leaves it out."""
    interleave: int = 0
    """Rounds in which arms take turns to measure their time per epoch; 0 takes it from what their runs logged."""


def main(arguments: list[str]) -> None:
    """The command."""
    given = read_arguments(Arguments, arguments, program("tt_ray.compare"))
    from tt_ray.compare.arms import check, read_arms, try_models
    from tt_ray.compare.comparison import compare
    from tt_ray.compare.transfer import check_tasks

    arms, out = read_arms(given.arms, given.set), given.out.expanduser()
    check(arms, given.seeds)
    tasks = () if given.tasks == ("none",) else given.tasks
    if tasks:
        check_tasks(tasks, out)
    try_models(arms)
    with one_writer(inside(out), f"comparison {out}"):
        print(compare(arms, given.seeds, out, tasks, given.interleave))


if __name__ == "__main__":
    run_command(main)
