"""Which captions belong to other images: agreement of neighbours in images and in captions.

LEMoN (Zhang et al., 2024, arXiv 2407.18941) without a model of both: an image and its caption agree where the captions
of similar images are like its own, and the images of similar captions are like its own. With the k nearest others of
image i, j, and their captions t, and cosine distances d,

    s_n(i) = mean over the nearest images j of d(t_i, t_j) exp(-d(x_i, x_j))

and s_m(i) the same with images and captions exchanged; the score is the sum of both, each divided by its standard
deviation. The paper's third term, the distance of image and caption in CLIP's space, and the weights that it fits on
pairs that are known to be wrong, are left out.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from tt_ray.config import Config
from tt_ray.data.sources.base import Source
from tt_ray.models.teacher import load_teacher
from tt_ray.terminal.errors import UserError

MOST = 20_000
"""Images that are compared, at most: time grows with their square."""
NEAREST = 10
_QUERIES = 1024
_BATCH = 64

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Show = Callable[[str, int, int], None]


def image_features(config: Config, model: str, images: Source, show: Show) -> Floats:
    """Embeddings (n, d) of images by a timm model, or by a run or an export folder.

    Raises:
        UserError: There is no such model, or an image cannot be read.
    """
    plain = {"teacher.model": model, "teacher.target": "embedding", "text.loss": "clip", "text.weight": 0.5}
    plain |= {"text.normalize_mean": False, "text.normalize_std": "none", "text.captions": "", "text.embeddings": ""}
    config = config.override(plain)
    device = torch.device("cuda" if config.run.use_gpu and torch.cuda.is_available() else "cpu")
    try:
        teacher, dim = load_teacher(config, images, device)
    except UserError as error:
        raise UserError(str(error).replace(f"teacher.model {model}", f"--images {model}")) from None
    found = np.empty((len(images), dim), np.float32)
    mean, std = (torch.tensor(each, device=device).reshape(1, 3, 1, 1) for each in (config.data.mean, config.data.std))
    for start in range(0, len(images), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(images)))
        pixels = torch.from_numpy(images.pixels(rows, teacher.size)).to(device).permute(0, 3, 1, 2)
        found[rows] = teacher((pixels.float() / 255 - mean) / std).cpu().numpy()
        show("looking at images", int(rows[-1]) + 1, len(images))
    return found


def suspicion(images: Floats, captions: Floats, show: Show) -> Floats:
    """How badly each image (n, d) and its caption (n, D) agree, (n,): larger is worse; on no scale of its own."""
    images, captions = _units(images), _units(captions)
    count = min(NEAREST, len(images) - 1)
    parts = np.empty((2, len(images)), np.float32)
    for start in range(0, len(images), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(images)))
        alike, told = images[rows] @ images.T, captions[rows] @ captions.T
        for part, (near, other) in zip(parts, ((alike, told), (told, alike)), strict=True):
            near[np.arange(len(rows)), rows] = -np.inf  # not its own neighbour
            chosen = np.argpartition(near, -count, axis=1)[:, -count:]
            distance, theirs = 1 - np.take_along_axis(near, chosen, 1), 1 - np.take_along_axis(other, chosen, 1)
            part[rows] = (theirs * np.exp(-distance)).mean(1)
            near[np.arange(len(rows)), rows] = 1
        show("comparing images and captions", int(rows[-1]) + 1, len(images))
    return (parts / np.maximum(parts.std(1, keepdims=True), 1e-12)).sum(0)


def _units(rows: Floats) -> Floats:
    """Rows less their mean, of length 1."""
    rows = rows - rows.mean(0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
