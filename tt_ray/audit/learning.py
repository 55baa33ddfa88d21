"""What can be learned of labels from captions, put together: probabilities, noise, suspects, directions."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from tt_ray.audit.captions import CaptionFigures
from tt_ray.audit.directions import Directions, directions
from tt_ray.audit.inputs import Inputs
from tt_ray.audit.noise import Noise, estimate_noise
from tt_ray.audit.out_of_fold import Embedded, Guesses, Ints, Show, copies, out_of_fold
from tt_ray.audit.suspects import Suspects, rank_suspects
from tt_ray.audit.verdict import MOST, Knowledge, better

_AGREES, _SURPRISE = 0.05, 4
"""Kappa from which captions know very unequal classes, and its distance from chance in standard deviations."""


@dataclass(frozen=True)
class Learned:
    """Figures of embeddings and labels."""

    data: Embedded
    guesses: Guesses
    noise: Noise
    suspects: Suspects
    """With no probability of being wrong where captions know nothing."""
    directions: Directions
    accuracy: float
    """Share of labels that captions predict."""
    majority: float
    """Share of the most frequent class."""
    agreement: float
    """Cohen's kappa of labels and what captions predict."""
    knows: bool
    """Whether captions predict labels better than the most frequent class does.

    Captions of other images, which do no better than that, are shown as a control: they are tried on one fold.
    """


def learn(data: Embedded, show: Show) -> Learned:
    """Cross-validates, estimates the noise and ranks suspects; `show` is called meanwhile.

    Copies of a caption stay in one fold, other images of a group (data.group_column) do not: where a whole series had
    another label than its captions suggest, a model that has seen none of it would take all of its labels for wrong.
    """
    guesses = out_of_fold(data, copies(data), show)
    noise = estimate_noise(data.labels, guesses, data.classes)
    accuracy = float((guesses.classes[:, 0] == data.labels).mean())
    majority = float(np.bincount(data.labels).max() / len(data))
    agreement, surprise = agreement_of(data.labels, guesses.classes[:, 0], data.classes)
    knows = _beats_guessing(accuracy, majority, len(data)) or _finds_rare(majority, agreement, surprise)
    # Where captions know nothing every label would look wrong.
    share = noise.share.value if knows else 0.0
    suspects = rank_suspects(data.labels, guesses, share, noise.spread)
    likely = data.labels.copy()
    wrong = suspects.right >= 0.5
    likely[suspects.rows[wrong]] = suspects.suggestion[wrong]
    spread = directions(Embedded(data.table, data.rows, likely, data.classes))
    return Learned(data, guesses, noise, suspects, spread, accuracy, majority, agreement, knows)


def agreement_of(labels: Ints, predicted: npt.NDArray[np.integer], classes: int) -> tuple[float, float]:
    """How far two labels of N images agree beyond chance, as which the same labels in any other order count.

    Returns:
        Cohen's kappa (Educational and Psychological Measurement 20, 1960), 0 for chance and 1 for the same labels; and
        by how many of its standard deviations under chance the number that agree, less a half, exceeds its mean.
    """
    count = len(labels)
    given, found = (np.bincount(each, minlength=classes) / count for each in (labels, predicted))
    both = given * found
    chance = both.sum()
    variance = count**2 / max(1, count - 1) * (chance + chance**2 - (both * (given + found)).sum())
    agree = int((labels == predicted).sum())
    kappa = (agree / count - chance) / (1 - chance) if chance < 1 else 0.0
    return float(kappa), float((agree - count * chance - 0.5) / np.sqrt(variance)) if variance > 1e-9 else 0.0


def _finds_rare(majority: float, agreement: float, surprise: float) -> bool:
    """Whether predictions agree with very unequal classes, where naming one of them is right nearly always."""
    return majority >= MOST and agreement >= _AGREES and surprise >= _SURPRISE


def _beats_guessing(accuracy: float, guessed: float, images: int) -> bool:
    """Whether an accuracy is above that of guessing, by `better` and three standard errors."""
    least = max(better(guessed), 3 * sqrt(accuracy * (1 - accuracy) / images))
    return accuracy > guessed and accuracy - guessed >= least  # not where all labels are of one class


def knowledge_of(inputs: Inputs, learned: Learned, captions: CaptionFigures | None = None) -> Knowledge:
    """What a verdict rests on."""
    data, guesses, noise = learned.data, learned.guesses, learned.noise
    return Knowledge(
        knows=learned.knows,
        accuracy=learned.accuracy,
        majority=learned.majority,
        agreement=learned.agreement,
        shuffled=guesses.shuffled,
        repeated=float((guesses.classes[:, 0] == inputs.own).mean()),
        spoiled=inputs.spoiled,
        noise=noise.share,
        confident=noise.confident,
        left=learned.directions.left,
        within=learned.directions.within,
        images=len(data),
        classes=int((np.bincount(data.labels) > 0).sum()),
        distinct=captions.distinct if captions else len(np.unique(copies(data))),
        named=captions.named if captions else None,
        told=captions.told if captions else 0.0,
    )
