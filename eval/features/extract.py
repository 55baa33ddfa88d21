"""Features of a timm classifier for every image of a split: decoded ahead, in parts that fit into memory.

Preprocessing is the model's own (timm's data configuration), features are float32, nothing is augmented.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from timm.data import create_transform
from torch import Tensor, nn

from eval.contract import Corruption, EvalConfig
from eval.features.backbone import Backbone, forward_pass
from eval.features.corruptions import corrupt_all
from tt_ray.config import DataConfig
from tt_ray.data.augment import channels_first, normalize
from tt_ray.data.image_batches import eval_images
from tt_ray.data.loader_processes import prepared
from tt_ray.data.sources.base import Source
from tt_ray.models.pretrained import Preprocessing, pooled

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_FLUSH_BYTES = 64 << 20
"""Features that stay on the device before they are written: each copy makes the host wait for a GPU."""
_ROWS_PER_DECODE = 8
_AHEAD = 2
"""Batches that are decoded ahead of the forward pass."""


def extract(backbone: Backbone, source: Source, config: EvalConfig) -> Floats:
    """Features of every image, (N, d), in order, without the cache.

    Raises:
        UserError: An image cannot be read.
    """
    out = np.empty((len(source), backbone.dim), np.float32)
    extract_together([backbone], source, config, [out])
    return out


class Decoder:
    """Rows of a split to one uint8 batch (n, 3, size, size), in threads; can be pickled for loader processes."""

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        batches: Sequence[Ints],
        threads: int,
        corruption: Corruption | None = None,
    ) -> None:
        source.pull()
        self.source, self.batches, self.threads, self.corruption = source, batches, threads, corruption
        self.size = preprocessing.size
        # What a run's validation does: whole images, resized to a square; JPEGs are decoded at a smaller scale.
        given = (preprocessing.crop_mode, preprocessing.crop_pct, preprocessing.interpolation)
        self.transform: Any = None if given == ("squash", 1.0, "bicubic") else transform(preprocessing)
        # A centre crop as the loop's validation cuts it: JPEGs the fast way (see data.decoder).
        fast = (preprocessing.crop_mode, preprocessing.interpolation) == ("center", "bicubic")
        self.decoder: Literal["auto", "pillow"] = "auto" if fast else "pillow"
        self.crop_pct = preprocessing.crop_pct

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor:
        rows, corruption = self.batches[index], self.corruption
        images = self._images(rows)
        if corruption is None:
            return images
        ids = self.source.ids.take(pa.array(rows)).to_pylist()
        out = torch.empty_like(images)

        def fill(start: int) -> None:
            part = slice(start, start + _ROWS_PER_DECODE)
            out[part] = corrupt_all(images[part], ids[part], corruption)

        self._in_threads(fill, len(rows))
        return out

    def _images(self, rows: Ints) -> Tensor:
        """Images of rows, as they are."""
        if self.transform is None:
            return channels_first(self.source.pixels(rows, self.size))
        out = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)

        def fill(start: int) -> None:
            chosen = rows[start : start + _ROWS_PER_DECODE]
            config = DataConfig(image_size=self.size, crop_pct=self.crop_pct, decoder=self.decoder)
            out[start : start + len(chosen)] = eval_images(self.source, chosen, config, self.transform)

        self._in_threads(fill, len(rows))
        return out

    def _in_threads(self, fill: Callable[[int], None], count: int) -> None:
        """Calls `fill` with the first row of every few."""
        starts = range(0, count, _ROWS_PER_DECODE)
        if self.threads < 2:
            for start in starts:
                fill(start)
            return
        pool = ThreadPoolExecutor(self.threads)
        try:
            for _ in pool.map(fill, starts):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def transform(preprocessing: Preprocessing) -> Any:
    """timm's evaluation transform up to uint8 (3, size, size); `normalize` then does its last steps, bit for bit."""
    return create_transform(
        preprocessing.size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        mean=preprocessing.mean,
        std=preprocessing.std,
        normalize=False,
    )


def extract_together(
    backbones: Sequence[Backbone],
    source: Source,
    config: EvalConfig,
    outs: Sequence[Floats],
    corruption: Corruption | None = None,
) -> None:
    """Fills each of `outs`, (N, d), with the features of one of the models for every image, in order.

    The models prepare images alike, so that these are decoded once. They are decoded ahead of the forward passes; the
    host waits for a GPU only when many features are on it.

    Raises:
        UserError: An image cannot be read.
    """
    device, first = torch.device(config.device), backbones[0]
    assert all(each.preprocessing == first.preprocessing for each in backbones)
    at_first = [next(each.model.parameters()).device for each in backbones]
    batches = np.array_split(np.arange(len(source)), range(config.batch_size, len(source), config.batch_size))
    decoder = Decoder(source, first.preprocessing, batches, config.threads, corruption)
    pairs = zip(backbones, outs, strict=True)
    extractions = [_Extraction(each.model.to(device).eval(), out, config.batch_size) for each, out in pairs]
    try:
        for images in _ahead(decoder, config.num_loaders, device):
            images = images.to(device, non_blocking=True)
            for extraction in extractions:
                with forward_pass(config):
                    extraction.add(images, first.preprocessing)
        for extraction in extractions:
            extraction.flush()
    finally:
        for backbone, place in zip(backbones, at_first, strict=True):
            backbone.model.to(place)


@dataclass
class _Extraction:
    """Features of one model on their way to `out`."""

    model: nn.Module
    out: Floats
    limit: int
    """Images of a forward pass."""
    held: list[Tensor] = field(default_factory=list[Tensor])
    """Features that are still on the device."""
    start: int = 0
    """Row of `out` that they belong to."""

    def add(self, images: Tensor, preprocessing: Preprocessing) -> None:
        """Takes a uint8 batch in, in parts of at most `limit` images, which is halved when memory runs out."""
        done = 0
        while done < len(images):
            part = images[done : done + self.limit]
            try:
                batch = normalize(part, preprocessing.mean, preprocessing.std)
                self.held.append(pooled(self.model, batch).float())
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or self.limit == 1:
                    raise
                self.limit = max(1, min(self.limit, len(part)) // 2)
            else:
                done += len(part)
                continue
            if images.device.type == "cuda":  # outside of the handler, whose traceback holds on to tensors
                torch.cuda.empty_cache()
        if sum(part.nbytes for part in self.held) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        for part in self.held:
            self.out[self.start : self.start + len(part)] = part.cpu().numpy()
            self.start += len(part)
        self.held = []


def _ahead(decoder: Decoder, num_loaders: int, device: torch.device) -> Iterator[Tensor]:
    """Batches in order, decoded by loader processes, or by threads while the caller works on the one before."""
    pin = device.type == "cuda"
    if num_loaders:
        yield from prepared(decoder, range(len(decoder)), num_loaders, pin)
        return

    def load(index: int) -> Tensor:
        images = decoder[index]
        return images.pin_memory() if pin else images

    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[Tensor]] = []
        try:
            for index in range(len(decoder) + _AHEAD):
                if index < len(decoder):
                    waiting.append(pool.submit(load, index))
                if index >= _AHEAD:
                    yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
