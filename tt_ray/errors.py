"""The one exception for mistakes of the user, and the help that goes into its text."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: commands print its text as one line and exit with code 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Ends an error about an unknown name: the closest known names, or all of them when none is close."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    tail = [path for path in known if path.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    if close or tail:
        return f"did you mean {' or '.join(dict.fromkeys([*tail, *close]))}?"
    return f"known: {', '.join(known)}"
