"""Requests of a runner to the loop: looked for by the clock, by all workers after the same step."""

from time import perf_counter

import torch

from tt_ray.training.collectives import sum_over_workers
from tt_ray.training.context import Context

_INTERVAL_S = 2.0


class Interrupts:
    """Looks every two seconds: a cloud's notice may leave 25, and `run.log_every` steps may take longer.

    When workers look next follows from what they have exchanged, so that they agree on it without a barrier per step.
    """

    def __init__(self, context: Context, first: int) -> None:
        self._context = context
        self._last, self._next, self._since = first, first + 1, perf_counter()

    def look(self, done: int) -> bool:
        """Whether any worker has received a request, after `done` steps. Mostly returns at once."""
        if done < self._next:
            return False
        steps = done - self._last
        # Whole microseconds: their sum is exact, whichever the order, and thus the same on all workers.
        mine = [1, bool(self._context.requested()), round((perf_counter() - self._since) / steps * 1e6)]
        total = sum_over_workers(torch.tensor(mine, dtype=torch.float64, device=self._context.device))
        workers, asked, microseconds = total.tolist()
        self._since, self._last = perf_counter(), done
        # A first step takes longer than the others: the time between looks doubles at most.
        self._next = done + max(1, min(2 * steps, int(_INTERVAL_S * 1e6 * workers / max(microseconds, 1))))
        return asked > 0
