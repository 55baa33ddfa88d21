"""What a comparison allows to say of each arm, in words, one sentence an arm and column."""

from collections.abc import Mapping, Sequence

from tt_ray.compare.table import Line
from tt_ray.statistics import CLAIM_SEEDS, LEVEL, Figure, holm

_COLUMNS = {"top1": "top-1 after the same epochs", "top1_same_time": "top-1 in the same time", "transfer": "transfer"}


def claims(lines: Sequence[Line], images: Mapping[str, tuple[float, float]]) -> list[str]:
    """Sentences on the arms but the baseline, column by column, and on how many seeds they rest.

    p values are corrected by Holm's procedure over the arms of a column. Columns are questions of their own.

    Args:
        lines: the table, the baseline first.
        images: intervals of the difference in transfer over test images and seeds, by arm, where they are known.
    """
    baseline, arms = lines[0].arm, lines[1:]
    said: list[str] = []
    for column, what in _COLUMNS.items():
        figures: dict[str, Figure] = {line.arm: getattr(line, column) for line in arms if getattr(line, column)}
        tested = {arm: figure.difference_p for arm, figure in figures.items() if figure.difference_p is not None}
        corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
        for arm, figure in figures.items():
            text = _sentence(arm, baseline, what, figure, corrected.get(arm), len(tested))
            if text and column == "transfer" and arm in images:
                low, high = images[arm]
                text += f" Over test images and seeds (bootstrap): {low:+.1f} to {high:+.1f}."
            said += [text] if text else []
    fewest = min((line.top1.pairs for line in arms), default=0)
    if fewest < CLAIM_SEEDS:
        has = "one seed has" if fewest == 1 else f"{fewest} seeds have"
        said.append(f"A claim needs at least {CLAIM_SEEDS} seeds; each arm's {has} been trained: pass more --seeds.")
    return said


def _sentence(arm: str, baseline: str, what: str, figure: Figure, p: float | None, arms: int) -> str:
    gain = figure.difference
    if gain is None:
        return ""
    if p is None or figure.difference_low is None or figure.difference_high is None:
        which = "with one seed" if figure.pairs < 2 else f"with each of {figure.pairs} seeds, which shows no noise"
        return f"{arm}, {what}: {gain:+.1f} points to {baseline} {which}; nothing can be said about other seeds."
    ends = f"95 % interval {figure.difference_low:+.1f} to {figure.difference_high:+.1f} over {figure.pairs} seeds"
    corrected = f"p = {p:.2g}, Holm's correction for {arms} arms" if arms > 1 else f"p = {p:.2g}"
    if p <= LEVEL:
        return f"{arm} {'gains' if gain > 0 else 'loses'} {abs(gain):.1f} points of {what} ({ends}; {corrected})."
    why = f"the {ends} includes 0"
    if not figure.difference_low <= 0 <= figure.difference_high:
        why = f"the {ends} excludes 0, but not when all arms are counted ({corrected})"
    return f"No difference between {arm} and {baseline} in {what} can be claimed: {gain:+.1f} points, and {why}."
