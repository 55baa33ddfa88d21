"""Common to all commands: how they run and end, how their arguments are read, and by which name they are called."""

import contextlib
import io
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tt_ray.terminal.errors import Stopped, UserError, shown
from tt_ray.terminal.signals import begin, end_at_once, ended, said_by_worker_0

_LONGEST = 3000
"""Characters of an error, whatever it quotes."""
_BACKGROUND = "background"
T = TypeVar("T")


class Command(NamedTuple):
    """A command of the console script `tt-ray`."""

    module: str
    """Module that `python -m` runs; its `main` takes the arguments."""
    line: str
    """What the command does, for `tt-ray --help`."""


COMMANDS = {
    "train": Command("tt_ray.train", "train a model, with a language teacher, a vision teacher or none"),
    "tune": Command("tt_ray.tune", "search a space of configurations"),
    "compare": Command("tt_ray.compare", "train arms for equal epochs and equal time, and write one table"),
    "audit": Command("tt_ray.audit", "find wrong labels by captions, and say whether captions will help"),
    "export": Command("tt_ray.export", "turn a run or a checkpoint into a folder that timm loads"),
    "caption": Command("tt_ray.caption_images", "write captions for images"),
    "captions": Command("tt_ray.convert_captions", "check a caption table and write it as Parquet"),
    "pack": Command("tt_ray.pack", "pack images into WebDataset shards, or index shards that exist"),
    "embed": Command("tt_ray.embed_captions", "embed captions into a store"),
    "embeddings": Command("tt_ray.embeddings", "inspect, import or export embedding stores"),
    "eval": Command("eval", "evaluate models on tasks by linear probes, kNN, few shots or fine-tuning"),
    "report": Command("eval.report", "write the report of an evaluation"),
    "why": Command("eval.why", "analyse what one or two runs learn, by layer and epoch"),
    "similarity": Command("eval.similarity", "compare models' features or layers by CKA"),
    "picture": Command("eval.picture", "draw models' features by t-SNE or UMAP, coloured by class"),
    "efficiency": Command("eval.efficiency", "count and measure what models cost"),
    "text-until": Command("eval.text_until", "measure for how many epochs the teacher is needed"),
}
"""The commands of `tt-ray`, by name. Importing this module imports none of theirs."""


def program(module: str) -> str:
    """How a user calls the command of `module`: by `tt-ray NAME` inside that script, else by `python -m`."""
    if sys.argv[0].startswith("tt-ray "):
        return next(f"tt-ray {name}" for name, command in COMMANDS.items() if command.module == module)
    return f"python -m {module}"


def run_command(main: Callable[[list[str]], None]) -> None:
    """Runs a command and exits: 0, 2 after the user's mistake, 1 after a failure, 130 after Ctrl-C, 143 after SIGTERM.

    Errors are one line on stderr; `--debug` anywhere on the command line adds the traceback.
    """
    begin()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    # Nothing but this command is in the process: not so in tests and where another command calls this one.
    alone = main.__module__ == "__main__" or sys.argv[0].startswith("tt-ray ")
    try:
        for argument in arguments:
            if shown(argument, len(argument)) != argument:
                raise UserError(f"the argument {shown(argument)} is not UTF-8: rename the file, or write it in UTF-8")
        main(arguments)
    except KeyboardInterrupt:
        _fail(ended(signal.SIGINT), 128 + signal.SIGINT, alone)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.code) from None
    except SystemExit as end:
        # Status on SIGTERM: the first is of signals_act_soon, the second of Ray once it runs.
        if end.code in (128 + signal.SIGTERM, signal.SIGTERM):
            _fail(ended(signal.SIGTERM), 128 + signal.SIGTERM, alone)
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        mistake = isinstance(error, UserError)
        if mistake and said_by_worker_0():
            raise SystemExit(2) from None
        text = _text_of(error)
        at_once = alone and _busy_in_background()
        _fail(text if mistake else f"{text} (--debug shows more)", 2 if mistake else 1, at_once)


def _text_of(error: Exception) -> str:
    """The whole text of an error in one line, without the traceback that torch's loader processes put before it."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.rpartition("\n  ")[2].partition("\n")[2].partition(": ")[2] or text
    return shown(" ".join(text.split()), _LONGEST) or type(error).__name__


def _fail(text: str, code: int, at_once: bool) -> None:
    print(f"error: {text}", file=sys.stderr)
    if at_once and sys.platform == "linux":
        end_at_once(code)
    raise SystemExit(code)


def in_background(function: Callable[..., T], *arguments: object) -> "Future[T]":
    """Starts to run `function` in a thread that does not keep the command from ending, unlike a thread pool's.

    Returns:
        The future result; waiting for it can be interrupted.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=_BACKGROUND, daemon=True).start()
    return future


def _busy_in_background() -> bool:
    """Whether a thread of `in_background` still runs."""
    return any(thread.name == _BACKGROUND for thread in threading.enumerate())


def read_arguments(form: type[T], arguments: list[str], prog: str) -> T:
    """Reads the arguments of a command that takes no configuration.

    Fields that are a Path cannot hold a URI: a folder "s3:" would be made on this machine.

    Args:
        form: The command's dataclass of arguments; its docstrings are the help.
        arguments: The words after the command's name.
        prog: The command as the help shows it, see `program`.

    Raises:
        UserError: An argument is unknown, missing or has a wrong value.
    """
    given = parse(form, args=arguments, prog=prog)
    for value in vars(given).values():
        if isinstance(value, Path) and (uri := re.match(r"([a-z][a-z0-9+.-]+:)/(.*)", str(value), re.DOTALL)):
            raise UserError(f"{uri[1]}//{uri[2]} is a URI, but must be a folder on this machine, or a file in one")
    return given


class TyroComplaint(UserError):
    """tyro's box of several lines, as one line."""


def parse(*arguments: Any, **options: Any) -> Any:
    """`tyro.cli`, with complaints raised as TyroComplaint."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(*arguments, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    text = " ".join(re.sub("[╭╮╰╯│─]", " ", complaint.getvalue()).split())
    raise TyroComplaint(re.sub(r"^(.+) \1", r"\1", text))  # the box's title is the first words of its text
