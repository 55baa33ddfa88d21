"""What an audit was asked for, and what it has found."""

from dataclasses import dataclass

import pyarrow as pa

from tt_ray.audit.captions import CaptionFigures, Cut, Neighbours
from tt_ray.audit.inputs import Inputs
from tt_ray.audit.learning import Learned
from tt_ray.audit.verdict import Knowledge, Verdict


@dataclass(frozen=True)
class Options:
    """How to audit."""

    images: str = ""
    thumbnails: int = 0
    corrected: float = 0.9
    overwrite: bool = False
    command: str = "tt_ray.audit(...)"


@dataclass(frozen=True)
class Found:
    """Everything that is measured."""

    inputs: Inputs
    captions: CaptionFigures | None
    cut: Cut | None
    neighbours: Neighbours
    learned: Learned
    knowledge: Knowledge
    verdict: Verdict
    pairs: pa.Table | None
    compared: int
    """Images whose agreement with their caption was measured."""
