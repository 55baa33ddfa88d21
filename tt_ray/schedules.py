"""How the text weight moves over epochs (arXiv 2605.22098 and its code)."""

import math
import re
from collections.abc import Callable

from tt_ray.terminal.errors import UserError, nearest

Schedule = Callable[[int], float]
# Each maps the share t/E of training that is done, in [0, 1), to a share of the full weight.
SHAPES: dict[str, Callable[[float], float]] = {
    "const": lambda share: 1.0,
    "lin": lambda share: 1 - share,
    "cos": lambda share: math.cos(math.pi * share / 2),
    "fullcos": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "shiftcos": lambda share: math.cos((share + 1) * math.pi / 2) + 1,
    "cntrcos": lambda share: (1 + math.cos(math.pi * min(max(3 * share - 1, 0), 1))) / 2,
}
VL2 = "vl2"
_JUMP = re.compile(r"jump-(\d+)-(\d+)-(\d*\.?\d+)")


def build_schedule(spec: str, weight: float, epochs: int) -> Schedule:
    """A function from the epoch, counted from 0, to the text weight.

    Named shapes are 0 from `epochs` on. `jump-A-B-R` stays at `weight` up to and including epoch A, falls linearly to
    `R * weight` at epoch B, and stays there. `vl2` is 1 - t/8E at epoch t of E, whatever `weight` is, unless that is 0:
    the first epoch then learns from text alone. Raises UserError on an unknown `spec`.
    """
    if spec == VL2:
        return lambda epoch: 1 - epoch / (8 * epochs) if weight and epoch < epochs else 0.0
    if shape := SHAPES.get(spec):
        return lambda epoch: weight * shape(epoch / epochs) if epoch < epochs else 0.0
    if not (match := _JUMP.fullmatch(spec)):
        raise UserError(f"text.schedule is {spec!r}; {nearest(spec, [*SHAPES, VL2, 'jump-A-B-R'])}")
    first, last, rest = int(match[1]), int(match[2]), float(match[3])
    if last < first:
        raise UserError(f"text.schedule is {spec!r}: epoch B = {last} must not come before epoch A = {first}")

    if rest * weight > 1:
        raise UserError(f"text.schedule is {spec!r}: R = {rest:g} times text.weight {weight:g} is above 1")

    def jump(epoch: int) -> float:
        done = min(max(epoch - first, 0) / (last - first), 1) if last > first else float(epoch > first)
        return weight * (1 + done * (rest - 1))

    return jump
