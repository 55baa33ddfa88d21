"""Whatever Ray wraps around an exception, a command shows the words of the one that was raised."""

import threading
import traceback
from collections.abc import Callable

import pytest
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    UnserializableException,
    UserCodeException,
    WorkerCrashedError,
)
from ray.train import ControllerError

from tt_ray.cluster.launch import raised_again
from tt_ray.cluster.ray_errors import ENDED, first_own_words, is_death, last_raised, lost_peer, own_words, portable
from tt_ray.terminal.errors import Interrupted

RAY = "\nTo change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext`."


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Pair(Exception):
    """Is pickled, and cannot be read again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"pair {one} {two}")


def task_error(error: Exception) -> RayTaskError:
    """As Ray makes it in a worker."""
    try:
        raise error
    except Exception:
        text = traceback.format_exc()
    return RayTaskError("f", text, error, proctitle="ray::f", pid=1, ip="192.0.2.1", actor_id="a", actor_repr="A")


def of_user_code(error: Exception) -> RayTaskError:
    """As Ray Data makes it."""
    wrapped = UserCodeException(f"{error}{RAY}")
    wrapped.__cause__ = error
    return task_error(wrapped)


WRAPPINGS: list[Callable[[Exception], BaseException]] = [
    lambda error: error,
    task_error,
    lambda error: task_error(error).as_instanceof_cause(),
    lambda error: task_error(task_error(error)),
    lambda error: ActorDiedError(task_error(error)),
    lambda error: UnserializableException(task_error(error).traceback_str),
    of_user_code,
    lambda error: ControllerError(task_error(error)),
]


@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("plain words"), "ValueError: plain words"),
        (ValueError("one line\n\n  and: another"), "ValueError: one line and: another"),
        (IndexError(), "IndexError"),
        (KeyError("x"), "KeyError: 'x'"),
        (Locked("own words"), "Locked: own words"),
        (Pair(1, 2), "Pair: pair 1 2"),
    ],
)
def test_an_exception_s_own_words(error: Exception, words: str, wrap: Callable[[Exception], BaseException]) -> None:
    assert own_words(wrap(error)) == words
    assert not is_death(wrap(error))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ActorDiedError(), ENDED),
        (WorkerCrashedError(), ENDED),
        (OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node"), "memory"),
        (NodeDiedError("the node died\nmore"), "its machine was lost"),
    ],
)
def test_where_nothing_was_raised_the_end_of_the_process_is_told(error: Exception, words: str) -> None:
    assert words in own_words(error) and is_death(error)
    assert words in own_words(ControllerError(error)) and is_death(ControllerError(error))


def test_a_written_traceback_ends_with_the_words() -> None:
    text = task_error(ValueError("a\nb")).traceback_str
    assert last_raised(text) == "ValueError: a b"
    assert last_raised("ray.exceptions.ActorDiedError: The actor died unexpectedly.\n\tclass_name: T") == ENDED


def test_the_worker_that_explains_the_others_comes_first() -> None:
    lost, own = RuntimeError("[gloo/transport] Connection closed by peer"), ValueError("own")
    assert lost_peer(lost) and not lost_peer(own)
    assert first_own_words({0: lost, 1: own}) == (1, "ValueError: own")
    assert first_own_words({0: own, 1: ActorDiedError()}) == (1, ENDED)
    assert first_own_words({}) == (0, "no reason is known")


@pytest.mark.parametrize(
    ("failures", "again"),
    [
        ({0: ValueError("batch norm")}, True),
        ({0: RuntimeError("gloo: closed by peer"), 1: ValueError("own")}, True),
        ({0: ActorDiedError(), 1: RuntimeError("gloo: closed by peer")}, False),
        ({0: ActorDiedError(), 1: ValueError("own")}, False),
        ({0: RuntimeError("NCCL: remote process exited")}, False),
        ({0: Interrupted("preempted", 3)}, False),
    ],
)
def test_what_would_be_raised_again(failures: dict[int, Exception], again: bool) -> None:
    assert raised_again(failures) == again


def test_an_exception_that_cannot_travel_leaves_its_words() -> None:
    plain = ValueError("x")
    assert portable(plain) is plain
    for error, words in ((Locked("own words"), "Locked: own words"), (Pair(1, 2), "Pair: pair 1 2")):
        assert type(portable(error)) is RuntimeError and str(portable(error)) == words
