"""Exceptions that commands report in one line, and the help that goes into their text."""

import difflib
import os
from collections.abc import Iterable, Sequence

_NEAR = 0.15
"""How much less similar than the nearest name another one may be to be offered as well."""
_MANY = 30
"""Names that a line can hold."""


class UserError(ValueError):
    """A mistake that the user can fix: commands print its text as one line and exit with code 2."""


class NonFiniteLoss(RuntimeError):
    """Loss, gradient or weights became infinite or NaN: says at which step, and where the last good state is."""


class Interrupted(RuntimeError):
    """Training has stopped because it was asked to; its checkpoint holds every step that was taken."""

    def __init__(self, request: str, step: int) -> None:
        super().__init__(request, step)
        self.request, self.step = request, step


class Stopped(RuntimeError):
    """A command was asked to end, and has ended in order: commands print its text and exit with `code`."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Ends an error about an unknown name: the closest known names, or all of them when none is close.

    `prefix` goes before each name that is shown, as -- before options.
    """
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, each, name).ratio() for each in close]
    close = [each for each, ratio in zip(close, likeness, strict=True) if ratio > likeness[0] - _NEAR]
    tail = [path for path in known if path.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    if close or tail:
        return f"did you mean {' or '.join(prefix + each for each in dict.fromkeys([*tail, *close]))}?"
    if len(known) > _MANY:  # timm has over a thousand models
        return f"known: {', '.join(prefix + each for each in known[:5])} and {len(known) - 5} more"
    return f"known: {', '.join(prefix + each for each in known)}"


def one_line(error: BaseException) -> str:
    """The error's text, its line breaks spaces, at most 500 characters; its type where it has no text."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def reason(error: BaseException) -> str:
    """Why something failed, in one line: the system's words for an OSError that has a number, else the error's."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(error, OSError) and number else one_line(error)


def first_line(error: BaseException) -> str:
    """The first line of the error's text, for libraries that write a page; its type where it has no text."""
    return " ".join((str(error).strip() or type(error).__name__).split("\n", 1)[0].split())


def shown(value: object, limit: int = 200) -> str:
    """A user's value as an error quotes it: bytes that are no UTF-8 escaped, the middle of a long one left out."""
    text = str(value)
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, of JSON
        text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 4 :]} ({len(text)} characters)"


def absent(kind: str, name: str, names: Iterable[str], where: str, options: str) -> UserError:
    """The error about a column, folder or split `name` that is not among `names`; `options` can change it."""
    known = sorted(names)
    close = nearest(name, known)
    hint = f", {close}" if close.startswith("did") else "."
    return UserError(f"{where} has no {kind} {name!r}{hint} There are: {some(known, 20) or 'none'}; set {options}")


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names in one line."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more
