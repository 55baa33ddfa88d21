"""Searches a space of configurations: `python -m tt_ray.tune SPACE [--base RECIPE] [--dotted.path value ...]`.

Selection and test are kept apart. Trials validate on a part of the training images that is held out of their training
(data.val_share, a fifth by default; stratified, the same for all trials and seeds; with data.group_column,
images of one thing stay together), and never open the validation split that recipes report on. The winner is then
compared with the base recipe on that split: both train on all training images, on --final-seeds, which the search has
not used, since a winner of many owes something to the luck of its seeds.
"""

import signal
import threading

from tt_ray.cli import read_config, refuse_own, split_fields
from tt_ray.cluster.connect import join_ray, keep_ray_quiet
from tt_ray.config import Config
from tt_ray.io.one_writer import inside, one_writer
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import Stopped
from tt_ray.terminal.progress import Display
from tt_ray.terminal.signals import stop_on_signals
from tt_ray.tune.search import Arguments, Search
from tt_ray.tune.space import find_space

MODULE = "tt_ray.tune"
_OWN = {
    "train.seed": "--seeds and --final-seeds",
    "run.num_workers": "--workers-per-trial",
    "run.use_gpu": "--gpus-per-trial",
    "run.name": "--out",
    "run.overwrite": "another --out",
    "run.async_validation": "",
    "run.checkpoint_every": "",
    "run.keep_checkpoints": "",
}
"""Fields that trials have of the search, whatever their base has, and the option that sets each."""


def main(arguments: list[str]) -> None:
    """Runs the command; exit status 1 when no trial has a result."""
    keep_ray_quiet()  # before the file of the space imports Ray
    given, base = read(arguments)
    search = Search(given, base, find_space(given.space))
    search.check()
    with one_writer(inside(search.out), f"search {search.out}"):
        search.check_out()
        _search(search)


def _search(search: Search) -> None:
    stop = threading.Event()
    with Display() as display:
        display.show("starting Ray", 0, 1)
        joined = join_ray(display.say)
    # Only now: Ray takes SIGTERM for itself when it starts.
    with Display() as display, stop_on_signals(stop.set, signal.SIGINT, signal.SIGTERM) as came:
        try:
            search.run(display, stop, joined)
        finally:
            text = search.write()
    if came:
        left = "the same command resumes the search"
        raise Stopped(f"{text}\nstopped; {left}, results so far are in {search.out}", 128 + came[0])
    print(text)
    if search.best() is None:
        reasons = [record.reason for record in search.journal.of("search") if record.reason]
        first = f" ({reasons[0]})" if reasons else ""
        raise RuntimeError(f"no trial has a result{first}: see {search.out / 'summary.md'}")


def read(arguments: list[str]) -> tuple[Arguments, Config]:
    """Returns the command's own options, and the base configuration with the --dotted.path changes."""
    own, fields = split_fields(Arguments, arguments)
    given = read_arguments(Arguments, own, program(MODULE))
    base = read_config([given.base, *fields], program(MODULE))
    refuse_own(base, _OWN, "a search")
    return given, base


if __name__ == "__main__":
    run_command(main)
