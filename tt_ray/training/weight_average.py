"""How much an exponential moving average of weights still holds of the initial ones."""

_NOTEWORTHY = 0.01
"""Share of the initial weights from which on a note says so."""


def initial_share(decay: float, steps: int) -> float:
    """Share of the initial weights in the average after `steps` updates: the loop's has no warm-up of its decay."""
    return decay**steps if decay else 0.0


def average_note(decay: float, steps: int) -> str:
    """A sentence where the run is too short for train.ema, so that the exported average is largely untrained; or ""."""
    share = initial_share(decay, steps)
    if share <= _NOTEWORTHY:
        return ""
    # Rounded down, so that what is advised keeps its word.
    enough = int(_NOTEWORTHY ** (1 / steps) * 1000) / 1000
    return (
        f"train.ema {decay:g} over {steps} steps: {100 * share:.3g} % of the averaged weights, which are validated and "
        f"exported, are the initial ones; set --train.ema {enough:g} or lower, or train for longer"
    )
