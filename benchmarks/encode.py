"""Claim: captions are encoded at least as fast as by SentenceTransformer.encode, 1.2 times as fast by two actors.

    python -m benchmarks.encode            # 20,000 captions with all-MiniLM-L6-v2, five rounds

In each round the same captions, of mixed lengths, go through SentenceTransformer.encode as it comes, through
TextEncoder.encode in the same process with the same threads, and through two of embed_captions' actors with a thread
each, which ray.util.ActorPool hands captions to. Models are loaded and actors are started before the clock runs, and
Ray Data, which does that in embed_captions, is not timed: a short table takes longer with actors than without. The
ratio is the median of the rounds' ratios: all sides of a round meet the same state of the machine.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks.step_cost import RESULTS, Side, compare, report
from tt_ray.cluster.actor_pool import Actor, Pool
from tt_ray.cluster.caption_actors import CaptionEncoder
from tt_ray.cluster.connect import join_ray
from tt_ray.cluster.messages import Messages
from tt_ray.config import ShapesConfig
from tt_ray.data.sources.shapes import shapes_source
from tt_ray.text.encoder import load_text_encoder
from tt_ray.text.encoder_files import MINILM, find_encoder

_SHARDS_PER_ACTOR = 2
# Actors give float16.
_TOLERANCE = 1e-3

Vectors = npt.NDArray[np.floating[Any]]
Encode = Callable[[list[str]], Vectors]


def mixed_captions(number: int) -> list[str]:
    """Distinct captions of one or two sentences: 4 to 63 tokens of MiniLM, half of them below 26."""
    sides = []
    for detail in ("brief", "full"):
        captions = shapes_source(ShapesConfig(train_size=number, caption=detail), "train", 32).captions
        assert captions is not None
        sides.append(captions.to_pylist())
    brief, full = sides
    kinds = np.random.default_rng(0).integers(0, 3, number)
    # The number, as a photograph's caption may have one, makes them distinct: nothing is encoded once for several.
    return [f"{(brief[row], full[row], f'{full[row]}. {full[row - 1]}')[kind]} {row}" for row, kind in enumerate(kinds)]


def sentence_transformer() -> Encode:
    """The reference, as its documentation uses it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_encoder(MINILM)), device="cpu")
    return lambda captions: np.asarray(model.encode(captions, show_progress_bar=False))


def actors(number: int) -> Encode:
    """A pool that takes captions in shards, each a call to the actor that is free."""
    # Ray's workers step back for all other processes; here all sides are to have the same priority.
    os.environ.setdefault("RAY_worker_niceness", "0")
    join_ray()
    import ray
    from ray.util import ActorPool

    make, messages = partial(CaptionEncoder, MINILM, 0, False), Messages()
    members = [
        ray.remote(num_cpus=1)(Actor).remote(make, Pool(number, 1, False), None, messages) for _ in range(number)
    ]
    pool = ActorPool(members)

    def encode(captions: list[str]) -> Vectors:
        size = -(-len(captions) // (number * _SHARDS_PER_ACTOR))
        shards = [captions[start : start + size] for start in range(0, len(captions), size)]
        tables = [
            pa.table({"shard": [number], "items": [json.dumps(shard).encode()]}) for number, shard in enumerate(shards)
        ]
        vectors: dict[int, Vectors] = {}
        answers: Any = pool.map_unordered(lambda actor, table: actor.__call__.remote(table), tables)
        for answer in answers:
            (row,) = answer.to_pylist()
            with np.load(io.BytesIO(row["content"]), allow_pickle=False) as content:
                vectors[row["shard"]] = content["embeddings"]
        return np.concatenate([vectors[number] for number in range(len(tables))])

    return encode


def measure(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rounds in which all sides encode the same captions, in an order that changes."""
    if given.threads:
        torch.set_num_threads(given.threads)
    encoder = load_text_encoder(MINILM)
    sides: dict[str, Encode] = {
        "SentenceTransformer.encode": sentence_transformer(),
        "one process": encoder.encode,
        f"{given.actors} actors": actors(given.actors),
    }
    captions = mixed_captions(given.captions)
    for encode in sides.values():
        encode(captions[:64])
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(given.rounds):
        part = captions[number :: given.rounds]
        vectors = {}
        for name in (list(sides), list(reversed(sides)))[number % 2]:
            start = time.perf_counter()
            vectors[name] = sides[name](part)
            speeds[name].append(len(part) / (time.perf_counter() - start))
        reference, *others = (vectors[name] for name in sides)
        assert all(np.abs(other - reference).max() < _TOLERANCE for other in others), "the sides do not agree"
    (first, values), *subjects = speeds.items()
    settings = {key: value for key, value in vars(given).items() if key != "out"}
    return {
        name: {**compare(Side(name, own), Side(first, values), "captions per s"), "settings": settings}
        for name, own in subjects
    }


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=20_000, help="captions in all")
    parser.add_argument("--rounds", type=int, default=5, help="parts that the captions are measured in")
    parser.add_argument("--actors", type=int, default=2, help="actors with a thread each")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the two others; 0 is torch's choice")
    parser.add_argument("--out", type=Path, default=RESULTS / "encode.json", help="the subject's name is added")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    for (name, result), aim in zip(measure(given).items(), (">= 1.0", ">= 1.2"), strict=True):
        report(result, aim, given.out.with_stem(f"{given.out.stem}_{name.replace(' ', '_')}"))


if __name__ == "__main__":
    main()
