"""An error in the words in which it was raised, whatever Ray, Ray Data and Ray Train have wrapped around it."""

import pickle
import re
from collections.abc import Mapping

# A frame of a traceback: its place, the indented lines of source and carets that follow, and how often it recurs.
_FRAME = re.compile(r'^ *File ".*", line \d+.*\n(?:(?: {4,}.*| *\[Previous line .*)?\n)*', re.MULTILINE)
_MODULE = re.compile(r"^(?:\w+\.)+(?=\w+(?::|$))")
_COLOUR = re.compile(r"\x1b\[\d+m")
_LIMIT = 500

ENDED = "its process ended unexpectedly (killed, or out of memory)"


def own_words(error: BaseException) -> str:
    """Type and text of the exception that was raised in a task, an actor or a worker, in one line.

    Where nothing was raised because the process or its machine is gone, says that.
    """
    while (inner := _inside(error)) is not None:
        error = inner
    text = str(error)
    if _FRAME.search(text):
        return last_raised(text)
    return _death(error) or _line(f"{type(error).__name__}: {text}" if text.strip() else type(error).__name__)


def last_raised(text: str) -> str:
    """Type and text of the exception that a traceback ends with; `ENDED` where it is Ray's of a dead process."""
    *_, words = _FRAME.split(_COLOUR.sub("", text))
    words = _MODULE.sub("", words.strip())
    return ENDED if re.match("(ActorDied|ActorUnavailable|WorkerCrashed|NodeDied)Error", words) else _line(words)


def is_death(error: BaseException) -> bool:
    """Whether a process or its machine is gone, rather than that Python raised something there."""
    while (inner := _inside(error)) is not None:
        error = inner
    return bool(_death(error)) and not _FRAME.search(str(error))


def first_own_words(failures: Mapping[int, Exception]) -> tuple[int, str]:
    """The worker whose failure explains those of the others, and its own words.

    A worker that is gone comes first, then one that raised something: its peers only lose their connection.
    """
    order = sorted(failures, key=lambda rank: (not is_death(failures[rank]), lost_peer(failures[rank]), rank))
    return (order[0], own_words(failures[order[0]])) if order else (0, "no reason is known")


def lost_peer(error: BaseException) -> bool:
    """Whether torch or Ray reports that another process is gone, which is the failure of that one."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"DistError", "ConnectionError", "RayError"}) or bool(re.search("gloo|NCCL", str(error)))


def portable(error: Exception) -> Exception:
    """The exception, or its own words in one that can leave this process, where it cannot be pickled and read again."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(own_words(error))


def _inside(error: BaseException) -> BaseException | None:
    """The exception that this one only wraps."""
    from ray.exceptions import RayTaskError, UserCodeException

    if isinstance(error, RayTaskError):
        inner = error.cause
    elif isinstance(error, UserCodeException):
        inner = error.__cause__
    else:
        inner = getattr(error, "controller_failure", None) or getattr(error, "health_check_failure", None)
    return inner if isinstance(inner, BaseException) else None


def _death(error: BaseException) -> str:
    from ray import exceptions

    if isinstance(error, exceptions.OutOfMemoryError):
        return "its process was ended for lack of memory"
    if isinstance(error, exceptions.NodeDiedError):
        return "its machine was lost"
    gone = exceptions.RayActorError | exceptions.WorkerCrashedError | exceptions.LocalRayletDiedError
    return ENDED if isinstance(error, gone) else ""


def _line(text: str) -> str:
    return " ".join(text.split())[:_LIMIT]
