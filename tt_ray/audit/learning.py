"""What can be learned of labels from captions, put together: probabilities, noise, suspects, directions."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from tt_ray.audit.captions import CaptionFigures
from tt_ray.audit.directions import Directions, directions
from tt_ray.audit.inputs import Inputs
from tt_ray.audit.noise import Noise, estimate_noise
from tt_ray.audit.out_of_fold import Embedded, Guesses, Show, copies, out_of_fold
from tt_ray.audit.suspects import Suspects, rank_suspects
from tt_ray.audit.verdict import Knowledge, better


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

    @property
    def knows(self) -> bool:
        """Whether captions predict labels better than the most frequent class does.

        Captions of other images, which do no better than that, are shown as a control: they are tried on one fold.
        """
        return _knows(self.accuracy, self.majority, len(self.data))


def learn(data: Embedded, show: Show) -> Learned:
    """Cross-validates, estimates the noise and ranks suspects; `show` is called meanwhile.

    Copies of a caption stay in one fold, other images of a group (data.group_column) do not: where a whole series had
    another label than its captions suggest, a model that has seen none of it would take all of its labels for wrong.
    """
    guesses = out_of_fold(data, copies(data), show)
    noise = estimate_noise(data.labels, guesses, data.classes)
    accuracy = float((guesses.classes[:, 0] == data.labels).mean())
    majority = float(np.bincount(data.labels).max() / len(data))
    # Where captions know nothing every label would look wrong.
    share = noise.share.value if _knows(accuracy, majority, len(data)) else 0.0
    suspects = rank_suspects(data.labels, guesses, share, noise.spread)
    likely = data.labels.copy()
    wrong = suspects.right >= 0.5
    likely[suspects.rows[wrong]] = suspects.suggestion[wrong]
    spread = directions(Embedded(data.table, data.rows, likely, data.classes))
    return Learned(data, guesses, noise, suspects, spread, accuracy, majority)


def _knows(accuracy: float, guessed: float, images: int) -> bool:
    """Whether an accuracy is above that of guessing, by `better` and three standard errors."""
    return accuracy - guessed >= max(better(guessed), 3 * sqrt(accuracy * (1 - accuracy) / images))


def knowledge_of(inputs: Inputs, learned: Learned, captions: CaptionFigures | None = None) -> Knowledge:
    """What a verdict rests on."""
    data, guesses, noise = learned.data, learned.guesses, learned.noise
    return Knowledge(
        knows=learned.knows,
        accuracy=learned.accuracy,
        majority=learned.majority,
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
