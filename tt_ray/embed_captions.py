"""Caption table -> embedding store, over Ray Data: `python -m tt_ray.embed_captions TABLE --out STORE`."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tyro

from tt_ray.cluster.actor_pool import PoolOptions, do_missing
from tt_ray.cluster.caption_actors import CaptionEncoder
from tt_ray.embeddings.build import write_distinct
from tt_ray.embeddings.store import open_store
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.resumable import Shards, digest_of, disk_problems, open_shards, remove_halves
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display
from tt_ray.text.caption_table import CaptionTable, read_captions
from tt_ray.text.encoder_files import MINILM, find_encoder, revision_of

# Captions that are encoded together, sorted by length among themselves, and lost together when killed. The make-up of
# batches follows from this number, so rounding does too.
_SHARD = 2048
_DIGEST = "captions_sha256"


@dataclass(frozen=True)
class Arguments:
    """Caption table -> embedding store for --text.embeddings. Killed, the same command continues where it stopped."""

    captions: tyro.conf.Positional[Path]
    """Caption table: Parquet, CSV, TSV or JSONL with image_id and caption, or a folder of official CSV shards."""
    out: Path
    """Folder of the new embedding store. <out>.unfinished next to it keeps what is done until all is."""
    encoder: str = MINILM
    """Text encoder: a Hugging Face id or a local folder."""
    strict: bool = False
    """Refuse the table if any row is malformed; otherwise such rows are left out and counted."""
    average: bool = False
    """Average the embeddings of an image's different captions; otherwise only the first one counts."""
    on_bad_embedding: Literal["stop", "skip"] = "stop"
    """Where the encoder returns NaN or infinity: stop, or leave such captions out and list them in <out>.skipped.tsv.
    Finished work is kept either way."""
    batch_size: int = 0
    """Captions in one forward pass; lower it when an actor runs out of memory. 0 takes 1,024 tokens on
    CPUs, 256 captions on GPUs."""
    pool: Annotated[PoolOptions, tyro.conf.arg(name="")] = field(default_factory=PoolOptions)


def embed(given: Arguments, display: Display) -> str:
    """Makes the store and returns a sentence for the user; raises UserError when an argument cannot be used."""
    out = given.out.expanduser().absolute()
    if given.batch_size < 0:
        raise UserError(f"--batch_size is {given.batch_size}, but must be at least 0")
    encoder = find_encoder(given.encoder)  # a wrong name costs no start of Ray
    table = read_captions(given.captions, strict=given.strict, several=given.average)
    if table.problems:
        display.say(f"{len(table.problems)} rows of {given.captions} are left out, the first: {table.problems[0]}")
    folder = out.with_name(f"{out.name}.unfinished")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        _must_be_this(out, given.encoder, encoder, table)
        shutil.rmtree(folder, ignore_errors=True)  # killed between the last two steps
        return f"embedding store {out} is complete: there is nothing to do"
    distinct = table.captions.dictionary_encode()
    texts = distinct.dictionary.to_pylist()
    items = [texts[start : start + _SHARD] for start in range(0, len(texts), _SHARD)]
    work = {"captions": digest_of(distinct.dictionary), "captions per shard": _SHARD}
    with open_shards(folder, work, len(items)) as shards:
        if shards.about:
            shards.check(shards.about | {"id": given.encoder, "revision": revision_of(encoder)})
            display.say(f"continuing {folder}: {shards.done} of {shards.count} shards are done")
        skip = given.on_bad_embedding == "skip"
        make = partial(CaptionEncoder, given.encoder, given.batch_size, skip)
        do_missing(shards, items, make, given.pool, display, "captions embedded")
        bad = _bad_captions(shards, display) if skip else np.zeros(len(texts), bool)
        skipped = _list_skipped(out, table, distinct, bad)
        images, truncated = _assemble(shards, out, table, distinct, bad, display)
        shards.remove()
    cut = f", {truncated} of them longer than the encoder takes and cut off" if truncated else ""
    return f"embedding store {out}: {images} images, {len(texts) - bad.sum()} distinct captions{cut}{skipped}"


def _bad_captions(shards: Shards, display: Display) -> npt.NDArray[np.bool_]:
    """Which distinct captions have an embedding that is not finite."""
    bad = []
    for shard in range(shards.count):
        with np.load(io.BytesIO(shards.read(shard)), allow_pickle=False) as content:
            bad.append(~np.isfinite(content["embeddings"]).all(1))
        display.show("shards checked", shard + 1, shards.count)
    return np.concatenate(bad)


def _list_skipped(out: Path, table: CaptionTable, distinct: pa.DictionaryArray, bad: npt.NDArray[np.bool_]) -> str:
    """Writes the list of rows whose caption is bad, and says so; raises UserError when all are."""
    listed = out.with_name(f"{out.name}.skipped.tsv")
    rows = np.flatnonzero(bad[distinct.indices.to_numpy()])
    if len(rows) == len(table):
        raise UserError(f"none of {len(table)} captions has a finite embedding: choose another --encoder")
    lines = (f"{table.ids[row]}\t{' '.join(str(table.captions[row]).split())}\n" for row in rows.tolist())
    with disk_problems(listed):
        listed.unlink(missing_ok=True)
        if len(rows):
            listed.write_text("".join(lines), encoding="utf-8")
    return f"; {len(rows)} captions without a finite embedding are listed in {listed}" if len(rows) else ""


def _assemble(
    shards: Shards,
    out: Path,
    table: CaptionTable,
    distinct: pa.DictionaryArray,
    bad: npt.NDArray[np.bool_],
    display: Display,
) -> tuple[int, int]:
    """Writes the store from finished shards; returns the numbers of images and of captions that were cut off."""
    truncated, first = 0, 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal truncated, first
        for shard in range(shards.count):
            with np.load(io.BytesIO(shards.read(shard)), allow_pickle=False) as content:
                truncated += int(content["truncated"])
                rows = content["embeddings"]
                yield rows[~bad[first : first + len(rows)]]
                first += len(rows)

    assert shards.about is not None, "there is at least one shard"
    with np.load(io.BytesIO(shards.read(0)), allow_pickle=False) as content:
        dim = content["embeddings"].shape[1]
    about = shards.about | {_DIGEST: digest_of(table.ids, table.captions)}
    ids = table.ids
    if bad.any():
        good = pa.array(~bad[distinct.indices.to_numpy()])
        ids, distinct = ids.filter(good), table.captions.filter(good).dictionary_encode()
    with disk_problems(out):
        remove_halves(out)
        store = write_distinct(out, ids, distinct, blocks(), dim, about, display.show)
    return len(store), truncated


def _must_be_this(out: Path, name: str, encoder: Path, table: CaptionTable) -> None:
    """Raises UserError unless the store holds this table's captions, by the encoder of that name in that folder."""
    about = open_store(out, verify=True).manifest["encoder"] if out.is_dir() else {}
    same = (about.get("id"), about.get(_DIGEST)) == (name, digest_of(table.ids, table.captions))
    if not same or about["revision"] != revision_of(encoder):
        raise UserError(f"{out} exists already, made of something else: delete it or choose another --out")


def main(arguments: list[str]) -> None:
    """Runs the command; raises UserError when its arguments, or what they name, cannot be used."""
    given = read_arguments(Arguments, arguments, program("tt_ray.embed_captions"))
    what = f"embedding store {given.out}"
    with Display() as display, one_writer(beside(given.out), what, say=display.say):
        sentence = embed(given, display)
    print(sentence)


if __name__ == "__main__":
    run_command(main)
