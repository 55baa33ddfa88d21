"""A model's first forward pass: where it does not run on the configured images, that is the user's to mend."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tt_ray.terminal.errors import UserError, one_line


@contextmanager
def trial_pass(what: str, size: int) -> Iterator[None]:
    """Turns any exception of a forward pass into a UserError: `what` does not run on images of `size` px.

    Models complain of a size in their own ways: with an AssertionError, an IndexError, a RuntimeError of torch.
    Memory that runs out is passed on: it says nothing about the size. So is what is a UserError already.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        raise UserError(f"{what} does not run on images of {size} px: {one_line(error)}") from None


def out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory, or the machine's, has run out; on CPUs torch raises a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
