"""Images -> caption table, over Ray Data: `python -m tt_ray.caption_images --data.root ROOT --out TABLE`."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import tyro
from PIL import Image

from tt_ray.cluster.actor_pool import Pool, PoolOptions, do_missing
from tt_ray.config import DataConfig
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.data.sources.decoding import UnreadableImage
from tt_ray.data.sources.registry import open_source, open_unlabelled
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.resumable import Shards, digest_of, disk_problems, open_shards, remove_halves
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError, one_line
from tt_ray.terminal.progress import Display
from tt_ray.text.caption_table import CaptionTable, made_of, write_captions
from tt_ray.text.captioner import CaptionerOptions, find_captioner, load_captioner
from tt_ray.text.class_names import name_classes
from tt_ray.text.encoder_files import revision_of

# Images that are lost together when killed.
_SHARD = 64
_LABEL = "{label}"
_OTHER_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".txt")

Read = Callable[[int], Image.Image]


@dataclass(frozen=True)
class Images:
    """Where the images are; the fields are those of the same names in a training's configuration."""

    source: str = "imagefolder"
    """imagefolder (split folders), datasets (Parquet, Arrow or hub data sets), torchvision, webdataset (tar shards), or
    MODULE:NAME."""
    root: str = ""
    """Folder, file, hub id or URI of the images, or a pattern of shards."""
    name: str = ""
    """torchvision: the data set's class name, such as CIFAR10; datasets: the configuration, if it has several."""
    train_split: str = "train"
    """The split whose images get captions; a dot takes a folder without splits."""
    image_column: str = "image"
    """datasets: column of the image."""
    label_column: str = "label"
    """Column (or metadata.jsonl key) of the label; only --template needs labels."""
    id_column: str = ""
    """datasets: column of the image id; empty takes the row number."""
    index: str = ""
    """webdataset: file, folder or URI of the index; empty takes index.parquet next to the shards."""
    local_cache: str = ""
    """Folder of copies of what lies in object storage; empty takes tt-ray/data in the user's cache (~/.cache)."""


@dataclass(frozen=True)
class Arguments:
    """Images -> caption table for --text.captions. Killed, the same command continues where it stopped."""

    out: Path
    """New caption table, Parquet. <out>.unfinished next to it keeps what is done until all is."""
    data: Images = field(default_factory=Images)
    template: str = ""
    """Captions without a model: the class name replaces {label}, as in "a photo of a {label}"."""
    class_names: Path | None = None
    """Names of classes for --template where folders are called otherwise, as ImageNet's: a JSON object {class: name}, a
    CSV of class,name, or LOC_synset_mapping.txt."""
    batch_size: int = 32
    """Images in one pass of the captioner; lower it when an actor runs out of memory."""
    captioner: Annotated[CaptionerOptions, tyro.conf.arg(name="")] = field(default_factory=CaptionerOptions)
    pool: Annotated[PoolOptions, tyro.conf.arg(name="")] = field(default_factory=PoolOptions)


class ImageCaptioner:
    """Captions a shard's images; returns a JSON list of [caption, problem], one of them empty."""

    def __init__(self, options: CaptionerOptions, batch_size: int, read: Read, pool: Pool) -> None:
        self._captioner = load_captioner(options, device=pool.device)
        self._read, self._batch_size, self._threads = read, batch_size, pool.threads
        self.about: dict[str, Any] = asdict(options) | {"revision": self._captioner.revision}
        self.about["precision"] = "bfloat16" if pool.gpu else "float32"

    def __call__(self, items: list[int]) -> bytes:
        """`items` are rows of the images."""
        batches = [items[start : start + self._batch_size] for start in range(0, len(items), self._batch_size)]
        answers: list[tuple[str, str]] = []
        with ThreadPoolExecutor(self._threads) as threads:

            def start(rows: Sequence[int]) -> list[Future[Image.Image | str]]:
                return [threads.submit(_try, self._read, row) for row in rows]

            ahead = start(batches[0])
            for rows, following in zip(batches, [*batches[1:], []], strict=True):
                read = [future.result() for future in ahead]
                ahead = start(following)  # read while the captioner is busy
                images = [image for image in read if not isinstance(image, str)]
                captions = iter(self._captions(images, seed_of(self._captioner.options.seed, rows[0])))
                answers += [("", image) if isinstance(image, str) else next(captions) for image in read]
        return json.dumps(answers).encode()

    def _captions(self, images: list[Image.Image], seed: int) -> list[tuple[str, str]]:
        """Caption and problem of each image; one that the captioner cannot take costs the others nothing."""
        if not images:
            return []
        try:
            captions = self._captioner.caption(images, seed)
        except ValueError as error:
            if len(images) > 1:
                return [self._captions([image], seed)[0] for image in images]
            return [("", f"the captioner cannot take it: {one_line(error)}")]
        return [(caption, "" if caption else "the captioner wrote nothing") for caption in captions]


def _try(read: Read, row: int) -> Image.Image | str:
    """The image, or why it cannot be read."""
    try:
        return read(row)
    except UnreadableImage as error:
        return error.problem
    except UserError as error:
        return str(error)


def caption(given: Arguments, display: Display) -> str:
    """Makes the table and returns a sentence for the user; raises UserError when an argument cannot be used."""
    out, options = given.out.expanduser().absolute(), given.captioner
    if bool(options.model) == bool(given.template):
        raise UserError("choose either a captioner with --model, or --template for captions made of class names")
    if out.suffix.lower() in _OTHER_FORMATS:
        raise UserError(f"--out {given.out} would be Parquet under another name: choose one that ends in .parquet")
    config = DataConfig(**asdict(given.data))
    if given.template:
        if out.exists():
            raise UserError(f"{out} exists already: delete it or choose another --out")
        table = class_captions(config, given.template, given.class_names, display.notes)
        with disk_problems(out):
            write_captions(table, out)
        return f"caption table {out}: {len(table)} images"
    options.check()
    if given.batch_size < 1:
        raise UserError(f"--batch_size is {given.batch_size}, but must be at least 1")
    captioner = find_captioner(options.model)  # a wrong name costs no start of Ray
    ids, read, left_out, *_ = open_unlabelled(config, "train")
    display.notes(left_out)
    items = [range(start, min(start + _SHARD, len(ids))) for start in range(0, len(ids), _SHARD)]
    work = {"images": digest_of(ids), "images per shard": _SHARD, "decoding": DECODING}
    folder = out.with_name(f"{out.name}.unfinished")
    if out.exists():
        about = made_of(out) or {}
        if about != about | work | asdict(options) | {"revision": revision_of(captioner)}:
            raise UserError(f"{out} exists already, made of something else: delete it or choose another --out")
        shutil.rmtree(folder, ignore_errors=True)  # killed between the last two steps
        return f"caption table {out} is complete: there is nothing to do"
    with open_shards(folder, work, len(items)) as shards:
        if shards.about:
            shards.check(shards.about | asdict(options))
            display.say(f"continuing {shards.folder}: {shards.done} of {shards.count} shards are done")
        make = partial(ImageCaptioner, options, given.batch_size, read)
        do_missing(shards, items, make, given.pool, display, "images captioned")
        sentence = _write(shards, out, ids)
        shards.remove()
    return sentence


def class_captions(
    config: DataConfig, template: str, names: Path | None = None, say: Callable[[Sequence[str]], None] | None = None
) -> CaptionTable:
    """Captions that name each training image's class, as `name_classes` does with the table `names`.

    `say` is called with sentences on what was found with the images but is not used. Raises UserError as `name_classes`
    does, when the template has no place for the name, or one for anything else, or when the images have no labels.
    """
    if _LABEL not in template:
        raise UserError(f'--template {template!r} has no {_LABEL}: write, for instance, "a photo of a {_LABEL}"')
    if unknown := [word for word in re.findall(r"\{.*?\}", template) if word != _LABEL]:
        raise UserError(f"--template {template!r} has {unknown[0]}, which nothing replaces: use {_LABEL} alone")
    source = open_source(config, "train", need_captions=False)
    captions = [template.replace(_LABEL, name) for name in name_classes(source.classes, names)]
    if say is not None:
        say(source.left_out)
    table = pa.array(captions, pa.string()).take(pa.array(source.labels))
    return CaptionTable(source.ids, table, pa.array([f"template: {template}"] * len(source), pa.string()))


def _write(shards: Shards, out: Path, ids: pa.StringArray) -> str:
    """Writes the table of finished shards, and a list of images without caption; returns a sentence on both."""
    answers = [tuple(answer) for shard in range(shards.count) for answer in json.loads(shards.read(shard))]
    captions, problems = zip(*answers, strict=True)
    bad = [(image, problem) for image, problem in zip(ids.to_pylist(), problems, strict=True) if problem]
    if len(bad) == len(ids):
        shards.remove()  # the same command tries again
        raise UserError(f"none of {len(ids)} images got a caption; {bad[0][0]}: {bad[0][1]}")
    assert shards.about is not None, "there is at least one shard"
    good = pa.array([not problem for problem in problems])
    source = [f"{shards.about['model']}@{shards.about['revision']}"] * (len(ids) - len(bad))
    listed = out.with_name(f"{out.name}.skipped.tsv")
    with disk_problems(out):
        listed.unlink(missing_ok=True)
        if bad:
            listed.write_text("".join(f"{image}\t{problem}\n" for image, problem in bad), encoding="utf-8")
        remove_halves(out)
        table = CaptionTable(ids.filter(good), pa.array(captions).filter(good), pa.array(source))
        write_captions(table, out, made_of=shards.work | shards.about)
    skipped = f"; {len(bad)} without a caption are listed in {listed}, the first: {bad[0][1]}" if bad else ""
    return f"caption table {out}: {len(ids) - len(bad)} images{skipped}"


def main(arguments: list[str]) -> None:
    """Runs the command; raises UserError when its arguments, or what they name, cannot be used."""
    given = read_arguments(Arguments, arguments, program("tt_ray.caption_images"))
    what = f"caption table {given.out}"
    with Display() as display, one_writer(beside(given.out), what, say=display.say):
        sentence = caption(given, display)
    print(sentence)


if __name__ == "__main__":
    run_command(main)
