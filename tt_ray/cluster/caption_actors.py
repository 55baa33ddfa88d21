"""Captions embedded by a pool of actors: for `python -m tt_ray.embed_captions`, and for trainings that use GPUs."""

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tt_ray.cluster.actor_pool import Pool, PoolOptions, do_missing
from tt_ray.embeddings.build import describe, write_distinct
from tt_ray.embeddings.ensure import Embed
from tt_ray.embeddings.store import MANIFEST
from tt_ray.io.one_writer import Taken
from tt_ray.io.resumable import Shards, digest_of, open_shards
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display
from tt_ray.text.encoder import WINDOW, load_text_encoder

# As many as one process encodes together: batches are the same, and so is rounding.
_SHARD = WINDOW
_LOOK_S = 1.0


class CaptionEncoder:
    """Encodes a shard's captions; returns an .npz of embeddings and of the number of captions cut off."""

    def __init__(self, name: str, batch_size: int, skip: bool, pool: Pool) -> None:
        self._encoder, self._batch_size, self._skip = load_text_encoder(name, device=pool.device), batch_size, skip
        self.about: dict[str, Any] = describe(self._encoder) | {"precision": "bfloat16" if pool.gpu else "float32"}

    def __call__(self, items: list[str]) -> bytes:
        """Raises UserError naming a caption whose embedding is not finite; keeps it where it is to be skipped."""
        before = self._encoder.truncated
        vectors = self._encoder.encode(items, self._batch_size)
        with np.errstate(over="ignore"):
            halves = vectors.astype(np.float16)
        wrong = np.flatnonzero(~np.isfinite(halves).all(1))
        if len(wrong) and not self._skip:
            raise UserError(
                f"text encoder {self._encoder.name} returns embeddings that are not finite as float16 for "
                f"{len(wrong)} of {len(items)} captions, such as {items[wrong[0]][:80]!r}: choose another --encoder, "
                "or leave them out with --on_bad_embedding skip, which keeps what is done"
            )
        content = io.BytesIO()
        np.savez(content, embeddings=halves, truncated=self._encoder.truncated - before)
        return content.getvalue()


def embed_on_gpus(encoder: str, display: Display, started: Callable[[], object] = lambda: None) -> Embed:
    """Returns what embeds a training's captions on all GPUs of Ray's cluster, rather than in the driver.

    Args:
        encoder: Name of the text encoder, which every node must be able to read.
        display: Shows the progress.
        started: Returns once Ray runs; raises what kept it from starting.
    """

    def embed(ids: pa.StringArray, captions: pa.StringArray, path: Path) -> None:
        started()
        embed_in_actors(ids, captions, encoder, path, PoolOptions(device="gpu"), display)

    return embed


def embed_in_actors(
    ids: pa.StringArray, captions: pa.StringArray, encoder: str, path: Path, options: PoolOptions, display: Display
) -> None:
    """Makes the store that `embeddings.build.embed_captions` makes. Killed, the next call does the rest.

    Of several commands that want the same store at once, one makes it while the others wait.

    Args:
        ids: Image ids.
        captions: Their captions.
        encoder: Name of the text encoder.
        path: Folder of the store; <path>.unfinished next to it keeps what is done until all is.
        options: The pool.
        display: Shows the progress.

    Raises:
        UserError: Actors cannot read the encoder or do not fit the cluster, an embedding is not finite, or the disk is
            full.
        RuntimeError: An actor failed.
    """
    distinct = captions.dictionary_encode()
    texts = distinct.dictionary.to_pylist()
    items = [texts[start : start + _SHARD] for start in range(0, len(texts), _SHARD)]
    work = {"captions": digest_of(distinct.dictionary), "captions per shard": _SHARD}
    folder, make = path.with_name(f"{path.name}.unfinished"), partial(CaptionEncoder, encoder, 0, True)
    waits = False
    while True:
        try:
            with open_shards(folder, work, len(items)) as shards:
                if not (path / MANIFEST).exists():  # another command may have made it meanwhile
                    if shards.done:
                        display.say(f"continuing {folder}: {shards.done} of {shards.count} shards are done")
                    do_missing(shards, items, make, options, display, "captions embedded")
                    _write(shards, path, ids, distinct, display)
                shards.remove()
                return
        except Taken as taken:
            if not waits:
                display.say(f"waiting for the captions' embeddings: {taken.fact}")
            waits = True
            time.sleep(_LOOK_S)


def _write(shards: Shards, path: Path, ids: pa.StringArray, distinct: pa.DictionaryArray, display: Display) -> None:
    """Writes the store from finished shards."""

    def blocks() -> Iterator[np.ndarray]:
        for shard in range(shards.count):
            with np.load(io.BytesIO(shards.read(shard)), allow_pickle=False) as content:
                yield content["embeddings"]

    assert shards.about is not None, "there is at least one shard"
    dim = next(blocks()).shape[1]
    try:
        write_distinct(path, ids, distinct, blocks(), dim, shards.about, display.show)
    except UserError:  # it names an image whose embedding is not finite
        shards.remove()
        raise
