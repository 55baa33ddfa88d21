"""What all commands share: one-line errors, exit codes, and how `[RECIPE | FILE] [--dotted.path value ...]` is read."""

import contextlib
import functools
import io
import json
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.terminal.background import busy_in_background
from tt_ray.terminal.errors import Stopped, UserError, nearest, shown
from tt_ray.terminal.signals import ENDED, end_at_once

_OPTION = re.compile(r"^(--[^=\s]+)=")
_LONGEST = 3000
"""Characters of an error, whatever it quotes."""
_KWARGS = "--model.kwargs"
T = TypeVar("T")


def run_command(main: Callable[[list[str]], None]) -> None:
    """Runs a command and exits: 0, 2 after the user's mistake, 1 after a failure, 130 after Ctrl-C, 143 after SIGTERM.

    Errors are one line on stderr; `--debug` anywhere on the command line shows where they come from.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    alone = main.__module__ == "__main__"  # nothing but this command is in the process
    try:
        for argument in arguments:
            if shown(argument, len(argument)) != argument:
                raise UserError(f"the argument {shown(argument)} is not UTF-8: rename the file, or write it in UTF-8")
        main(arguments)
    except KeyboardInterrupt:
        _fail(ENDED[signal.SIGINT], 128 + signal.SIGINT, alone)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.code) from None
    except SystemExit as end:
        # What signals_act_soon exits with on SIGTERM, and Ray once it runs.
        if end.code in (128 + signal.SIGTERM, signal.SIGTERM):
            _fail(ENDED[signal.SIGTERM], 128 + signal.SIGTERM, alone)
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        mistake = isinstance(error, UserError)
        text = _one_line(error)
        at_once = alone and busy_in_background()
        _fail(text if mistake else f"{text} (--debug shows more)", 2 if mistake else 1, at_once)


def _one_line(error: Exception) -> str:
    """The error's text; torch's loader processes put a traceback in front of it."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.rpartition("\n  ")[2].partition("\n")[2].partition(": ")[2] or text
    return shown(" ".join(text.split()), _LONGEST) or type(error).__name__


def _fail(text: str, code: int, at_once: bool) -> None:
    print(f"error: {text}", file=sys.stderr)
    if at_once and sys.platform == "linux":
        end_at_once(code)
    raise SystemExit(code)


def read_config(arguments: list[str], prog: str) -> Config:
    """The configuration of a command line; raises UserError on anything unknown.

    The first argument may be a recipe's name or a YAML file. tyro writes the help and parses values.
    """
    import tyro

    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else "shapes_textteacher"
    base = _base(name)
    rest = _split_equals(arguments[named:])
    if not {"-h", "--help"} & set(rest):
        _check_names(rest)
    base, rest = _take_kwargs(base, rest)
    if name in RECIPES:
        base = _keep_own_labels(base, rest)
    rest = _as_tyro(rest)
    parser = tyro.conf.configure(tyro.conf.FlagConversionOff)(Config)
    description = f"{prog} [RECIPE | FILE.yaml] [--dotted.path value ...]\n\nRecipes: {', '.join(RECIPES)}."
    try:
        return _tyro(parser, args=rest, default=base, prog=prog, description=description, use_underscores=True)
    except _TyroComplaint as complaint:
        _raise_wrong_value(base, rest)
        raise UserError(str(complaint)) from None


def read_arguments(form: type[T], arguments: list[str], prog: str) -> T:
    """The arguments of a command that takes no configuration, as its dataclass; raises UserError on anything wrong."""
    return _tyro(form, args=arguments, prog=prog)


class _TyroComplaint(UserError):
    """tyro's box of several lines, as one."""


def _tyro(*arguments: Any, **options: Any) -> Any:
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(*arguments, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    text = " ".join(re.sub("[╭╮╰╯│─]", " ", complaint.getvalue()).split())
    raise _TyroComplaint(re.sub(r"^(.+) \1", r"\1", text))  # the box's title is the first words of its text


def _base(name: str) -> Config:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        config = Config.from_yaml(Path(name))
        return config if config.run.name else replace(config, run=replace(config.run, name=Path(name).stem))
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; {nearest(name, RECIPES)} (a file's name ends in .yaml)")
    return RECIPES[name]()


def _take_kwargs(base: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """Adds `--model.kwargs key value ...` to the recipe's own, dropped where `--model.name` differs.

    tyro would take only keys that the recipe has. Given again, it adds to what was given before, and the last value of
    a key counts, as it does of every option. `--model.kwargs.key value` means the same.
    """
    names = [value for option, value in pairwise(arguments) if option == "--model.name"]
    if names and names[-1] != base.model.name:
        base = base.override("model.kwargs", {})
    added, rest = dict[str, Any](), list[str]()
    position = 0
    while position < len(arguments):
        option, start = arguments[position], position + 1
        stop = start + _until_option(arguments[start:])
        if option == _KWARGS:
            added |= _pairs(arguments[start:stop])
        elif option.startswith(f"{_KWARGS}."):
            added |= _pairs([option.removeprefix(f"{_KWARGS}."), *arguments[start:stop]])
        else:
            rest += arguments[position:stop]
        position = stop
    return base.override("model.kwargs", {**base.model.kwargs, **added}) if added else base, rest


def _pairs(words: list[str]) -> dict[str, Any]:
    """Keys and values of one --model.kwargs."""
    keys, values = words[::2], words[1::2]
    for key in keys:
        if not key.isidentifier():
            raise UserError(f"{_KWARGS} takes pairs of key and value, such as depth 4, but {key!r} is no key")
    if not keys or len(keys) != len(values):
        lack = f"{keys[-1]} has no value" if keys else "there is none"
        raise UserError(f"{_KWARGS} takes pairs of key and value, such as depth 4, but {lack}")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{_KWARGS} has {twice[0]} twice: leave out one of them")
    return {key: _literal(value) for key, value in zip(keys, values, strict=True)}


def _keep_own_labels(recipe: Config, arguments: list[str]) -> Config:
    """A recipe's label noise is for the data that it names: labels of another `--data.source` are taken as they are."""
    sources = [value for option, value in pairwise(arguments) if option == "--data.source"]
    own = bool(sources) and sources[-1] != recipe.data.source
    return recipe.override("data.label_noise", 0.0) if own else recipe


def _literal(text: str) -> Any:
    """A number, a boolean or a list where the text is one in JSON; else the text."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def _split_equals(arguments: list[str]) -> list[str]:
    """`--name=value` as two words."""
    return [word for argument in arguments for word in _OPTION.split(argument)[-2:]]


def _as_tyro(arguments: list[str]) -> list[str]:
    """tyro wants Python's True and False; people also write true and FALSE."""
    flags = {path for path in Config.paths() if isinstance(Config().get(path), bool)}
    before = ["", *arguments]
    return [
        word.capitalize() if word.lower() in ("true", "false") and option[2:].replace("-", "_") in flags else word
        for option, word in zip(before, arguments, strict=False)
    ]


def _check_names(arguments: list[str]) -> None:
    paths = Config.paths()
    for argument in arguments:
        name = argument[2:].split("=")[0]
        known = name.replace("-", "_") in paths or name.startswith("model.kwargs.")
        if argument.startswith("--") and not known:
            raise UserError(f"no option {argument}; {nearest(name, paths, '--')}")


def _raise_wrong_value(base: Config, arguments: list[str]) -> None:
    """Says in one line, as for YAML files, what tyro says in a box."""
    tree = base.to_dict()
    for position, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        following = arguments[position + 1 :]
        values = following[: _until_option(following)]
        if not values:
            raise UserError(f"{argument} needs a value")
        *groups, name = argument[2:].replace("-", "_").split(".")
        node = functools.reduce(lambda inner, group: inner[group], groups, tree)
        if isinstance(node[name], bool) and values[-1] not in ("True", "False"):  # pydantic takes yes and 1, tyro not
            raise UserError(f"{argument[2:]} is {values[-1]!r}, but must be True or False")
        node[name] = values[0] if len(values) == 1 else values
    Config.from_dict(tree)


def _until_option(arguments: list[str]) -> int:
    return next((i for i, argument in enumerate(arguments) if argument.startswith("--")), len(arguments))
