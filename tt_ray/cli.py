"""Reads a configuration from a command line: `[RECIPE | FILE.yaml] [--dotted.path value ...]`."""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.terminal.command import TyroComplaint, parse
from tt_ray.terminal.errors import UserError, nearest

_OPTION = re.compile(r"^(--[^=\s]+)=")
_KWARGS = "--model.kwargs"
_SWITCHES = ("data.source", "model.name")
"""Fields on which others depend: see `Config.override`."""


def split_fields(form: type, arguments: Iterable[str], also: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Parts a command line that takes options of its own and the fields of a configuration.

    Args:
        form: The command's dataclass of arguments, of which the first is no option.
        arguments: The words after the command's name.
        also: Further names, such as those of fields, that an unknown option may be meant for.

    Returns:
        The command's own words, and those from each `--dotted.path` to the next option.

    Raises:
        UserError: The command has no such option.
    """
    own, fields = list[str](), list[str]()
    target = own
    for word in arguments:
        if word.startswith("--"):
            target = fields if "." in word.partition("=")[0] else own
        target.append(word)
    options = [(field.name.replace("_", "-"), field.type is bool) for field in dataclasses.fields(form)[1:]]
    known = [f"--{name}" for name, _ in options]
    off = [f"--no-{name}" for name, switch in options if switch]  # as the help shows them
    for word in own:
        name = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and name not in (*known, *off, "--help"):
            raise UserError(f"no option {word}; {nearest(name, [*known, *also])}")
    return own, fields


def read_config(arguments: list[str], prog: str) -> Config:
    """The configuration of a command line. tyro writes the help and parses values.

    Args:
        arguments: A recipe's name or a YAML file, or neither for the default recipe, and then `--dotted.path value`.
        prog: The command as the help shows it, see `terminal.command.program`.

    Raises:
        UserError: A name is unknown, or a value cannot be used.
    """
    import tyro

    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else "shapes_textteacher"
    base = _base(name)
    rest = _split_equals(arguments[named:])
    if not {"-h", "--help"} & set(rest):
        _check_names(rest)
    base, rest = _take_kwargs(_switch(base, rest), rest)
    rest = _as_tyro(rest)
    parser = tyro.conf.configure(tyro.conf.FlagConversionOff)(Config)
    description = f"{prog} [RECIPE | FILE.yaml] [--dotted.path value ...]\n\nRecipes: {', '.join(RECIPES)}."
    try:
        read = parse(parser, args=rest, default=base, prog=prog, description=description, use_underscores=True)
    except TyroComplaint as complaint:
        _raise_wrong_value(base, rest)
        raise UserError(str(complaint)) from None
    return read.naming([*base.named, *(word[2:].replace("-", "_") for word in rest if word.startswith("--"))])


def refuse_own(config: Config, own: Mapping[str, str], what: str) -> None:
    """Raises UserError where a user has set a field that a command sets by itself, which would do nothing.

    Args:
        config: As `read_config` returns it.
        own: What to set instead, by the field's path; empty where nothing does it.
        what: The command, as "a search".
    """
    for path, instead in own.items():
        if path in config.named:
            raise UserError(f"{what} sets {path} itself: {f'choose {instead}' if instead else f'leave --{path} out'}")


def as_words(config: Config) -> list[str]:
    """A command line that `read_config` reads as this configuration but for `run.`: a recipe and what differs from it.

    The recipe is the one that it differs least from.
    """
    return min((_words(config, name) for name in RECIPES if _keeps_kwargs(config, RECIPES[name]())), key=len)


def _keeps_kwargs(config: Config, base: Config) -> bool:
    """Whether every model.kwargs of a recipe is one of the configuration too: an option can only add to them."""
    return base.model.name != config.model.name or base.model.kwargs.keys() <= config.model.kwargs.keys()


def _words(config: Config, name: str) -> list[str]:
    base = RECIPES[name]()
    switched = base.override({path: config.get(path) for path in _SWITCHES})  # without what read_config drops too
    words = [name]
    for path in Config.paths():
        if not path.startswith("run.") and (value := config.get(path)) != (base if path in _SWITCHES else switched).get(
            path
        ):
            words += [f"--{path}", *_values(value)]
    return words


def _values(value: Any) -> list[str]:
    """A value as words, as `_pairs` and tyro read them."""
    if isinstance(value, dict):
        return [word for key, each in value.items() for word in (key, _unliteral(each))]
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def _unliteral(value: Any) -> str:
    """The text that `_literal` reads as this value."""
    return value if isinstance(value, str) and _literal(value) == value else json.dumps(value)


def _base(name: str) -> Config:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        config = Config.from_yaml(Path(name))
        return config if config.run.name else config.override("run.name", Path(name).stem)
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; {nearest(name, RECIPES)} (a file's name ends in .yaml)")
    return RECIPES[name]()


def _switch(base: Config, arguments: list[str]) -> Config:
    """The base with the data and the model that the options name, without what was meant for its own."""
    given = {option[2:]: value for option, value in pairwise(arguments) if option[2:] in _SWITCHES}
    given = {path: value for path, value in given.items() if not value.startswith("--")}  # else it has none
    return base.override(given)


def _take_kwargs(base: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """Adds `--model.kwargs key value ...` to the recipe's own, as far as they are left.

    tyro would take only keys that the recipe has. A repeated option adds to the earlier ones, and the last value of
    a key counts, as for every option. `--model.kwargs.key value` means the same.
    """
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
    """Reports in one line, as for YAML files, what tyro reports in a box."""
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
