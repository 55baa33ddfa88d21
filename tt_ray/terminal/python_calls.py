"""Functions that people call from Python: what is wrong with a call is said in words of Python, not of a command."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from tt_ray.terminal.errors import UserError, nearest

P = ParamSpec("P")
T = TypeVar("T")
_OPTION = re.compile(r"(?<!\w)--([a-z]\w*(?:[.-]\w+)*)(?: ([\w.]+)=([^\s,;:]+))?")


def from_python(options: Mapping[str, str] | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function of the library.

    An argument that it does not have is a TypeError that offers the nearest one. UserErrors speak of its arguments
    where the command, which shares the code, speaks of options, and of fields without the dashes before them.

    Args:
        options: Arguments whose options are called otherwise, by the option's name.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters
        names = {name: name for name in parameters} | dict(options or {})
        takes_all = any(each.kind == each.VAR_KEYWORD for each in parameters.values())

        @wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> T:
            for name in keywords if not takes_all else ():
                if name not in parameters:
                    called = function.__qualname__.removesuffix(".__init__")
                    known = [each for each in parameters if each != "self"]
                    raise TypeError(f"{called}() has no argument {name!r}; {nearest(name, known)}")
            try:
                return function(*arguments, **keywords)
            except UserError as error:
                error.args = (_OPTION.sub(lambda found: _argument(found, names), str(error)),)
                raise

        return call

    return decorate


def _argument(found: re.Match[str], names: Mapping[str, str]) -> str:
    """An option in a text, perhaps with NAME=VALUE after it, as the argument or the field that it stands for."""
    option, key, value = found.groups()
    if "." in option:
        return found[0].removeprefix("--")
    if (name := names.get(option.replace("-", "_"))) is None:
        return found[0]
    return name if key is None else f"{name}={{'{key}': '{value}'}}"
