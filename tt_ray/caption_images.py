"""Images -> caption table, over Ray Data: `python -m tt_ray.caption_images --data.root ROOT --out TABLE`."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import tyro
from PIL import Image

from tt_ray.cluster.actor_pool import Pool, PoolOptions, Worker, do_missing
from tt_ray.config import DataConfig
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.data.sources.decoding import UnreadableImage
from tt_ray.data.sources.registry import open_source, open_unlabelled
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.resumable import Shards, digest_of, disk_problems, open_shards, remove_halves
from tt_ray.stateless_random import place_in_class, seed_of
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError, one_line, some
from tt_ray.terminal.progress import Display
from tt_ray.text.caption_table import CaptionTable, made_of, write_captions
from tt_ray.text.captioner import CaptionerOptions, find_captioner, load_captioner
from tt_ray.text.class_describer import LABEL, DescriberOptions, find_describer, load_describer
from tt_ray.text.class_names import name_classes
from tt_ray.text.encoder_files import revision_of

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
# Images that are lost together when killed.
_SHARD = 64
_CAPTION = "{caption}"
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
    """Captions without a model: the class name replaces {label}, as in "a photo of a {label}". With --model also what
    its captions become, which replace {caption}: "{label}: {caption}" puts labels before them."""
    class_names: Path | None = None
    """Names of classes for --template and --llm.model where folders are called otherwise, as ImageNet's: a JSON object
    {class: name}, a CSV of class,name, or LOC_synset_mapping.txt."""
    batch_size: int = 32
    """Images (or texts about classes) in one pass of the model; lower it when an actor runs out of memory."""
    captioner: Annotated[CaptionerOptions, tyro.conf.arg(name="")] = field(default_factory=CaptionerOptions)
    llm: DescriberOptions = field(default_factory=DescriberOptions)
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


class ClassCaptioner:
    """Writes a shard's texts about classes; returns a JSON list of [text, problem], one of them empty."""

    def __init__(self, options: DescriberOptions, batch_size: int, names: Sequence[str], pool: Pool) -> None:
        self._describer, self._names, self._batch_size = load_describer(options, device=pool.device), names, batch_size
        self.about: dict[str, Any] = asdict(options) | {"revision": self._describer.revision}
        self.about["precision"] = "bfloat16" if pool.gpu else "float32"

    def __call__(self, items: list[int]) -> bytes:
        """`items` count through the texts of all classes, class by class."""
        options, answers = self._describer.options, list[tuple[str, str]]()
        for start in range(0, len(items), self._batch_size):
            batch = items[start : start + self._batch_size]
            texts = self._describer.write(
                [self._names[item // options.texts] for item in batch], seed_of(options.seed, batch[0])
            )
            answers += [(text, "" if text else "the language model wrote nothing") for text in texts]
        return json.dumps(answers).encode()


def _try(read: Read, row: int) -> Image.Image | str:
    """The image, or why it cannot be read."""
    try:
        return read(row)
    except UnreadableImage as error:
        return error.problem
    except UserError as error:
        return str(error)


@dataclass(frozen=True)
class _Job:
    """Work for actors, and what becomes of its answers."""

    work: dict[str, Any]
    """What shards are cut from, in JSON's types."""
    options: dict[str, Any]
    """What else the table depends on, likewise."""
    revision: str
    """That of the model's files."""
    items: int
    make: Callable[[Pool], Worker]
    what: str
    """What is counted, for the display."""
    write: Callable[[Shards], str]
    """Writes the table of finished shards; returns a sentence."""
    also: dict[str, str] = field(default_factory=dict[str, str])
    """What the table depends on that shards do not."""


def caption(given: Arguments, display: Display) -> str:
    """Makes the table and returns a sentence for the user; raises UserError when an argument cannot be used."""
    out, options = given.out.expanduser().absolute(), given.captioner
    _check(given)
    config = DataConfig(**asdict(given.data))
    if given.template and not options.model:
        if out.exists():
            raise UserError(f"{out} exists already: delete it or choose another --out")
        table = class_captions(config, given.template, given.class_names, display.notes)
        with disk_problems(out):
            write_captions(table, out)
        return f"caption table {out}: {len(table)} images"
    if given.llm.model:
        return _do(_about_classes(given, config, out, display), given, out, display)
    captioner = find_captioner(options.model)  # a wrong name costs no start of Ray
    ids, read, left_out, *_ = open_unlabelled(config, "train")
    fill, also = _filling(given, config, ids) if given.template else (None, {})
    display.notes(left_out)
    work = {"images": digest_of(ids), "images per shard": _SHARD, "decoding": DECODING}
    job = _Job(
        work,
        asdict(options),
        revision_of(captioner),
        len(ids),
        partial(ImageCaptioner, options, given.batch_size, read),
        "images captioned",
        partial(_write, out=out, ids=ids, fill=fill, also=also),
        also,
    )
    return _do(job, given, out, display)


def _check(given: Arguments) -> None:
    """Raises UserError on arguments that contradict each other, or that no model can use."""
    model, template, llm = given.captioner.model, given.template, given.llm.model
    if llm and (model or template):
        raise UserError("choose either --llm.model, which writes captions from class names, or --model and --template")
    if not llm and (not (model or template) or (template and (_CAPTION in template) != bool(model))):
        raise UserError(
            "choose either a captioner with --model, or --template for captions made of class names, or both with "
            f"{_CAPTION} in the template"
        )
    for options, prefix in ((given.captioner, "--"), (given.llm, "--llm.")):
        changed = [name for name, value in asdict(options).items() if value != getattr(type(options), name)]
        if changed and not options.model:
            raise UserError(
                f"{prefix}{changed[0]} is about {prefix}model, which is not given: leave it out, or name one"
            )
    if given.class_names and not llm and LABEL not in template:
        raise UserError(f"--class_names names classes for --llm.model, or for {LABEL} in --template: leave it out")
    if template and LABEL not in template and not model:
        raise UserError(f'--template {template!r} has no {LABEL}: write, for instance, "a photo of a {LABEL}"')
    known = (LABEL, _CAPTION) if model else (LABEL,)
    if unknown := [word for word in re.findall(r"\{.*?\}", template) if word not in known]:
        raise UserError(
            f"--template {template!r} has {unknown[0]}, which nothing replaces: use {' and '.join(known)} alone"
        )
    if Path(given.out).suffix.lower() in _OTHER_FORMATS:
        raise UserError(f"--out {given.out} would be Parquet under another name: choose one that ends in .parquet")
    if model:
        given.captioner.check()
    if llm:
        given.llm.check()
    if given.batch_size < 1:
        raise UserError(f"--batch_size is {given.batch_size}, but must be at least 1")


def _do(job: _Job, given: Arguments, out: Path, display: Display) -> str:
    """Does what is missing of a job, and has its table written; returns a sentence."""
    items = [range(start, min(start + _SHARD, job.items)) for start in range(0, job.items, _SHARD)]
    folder = out.with_name(f"{out.name}.unfinished")
    if out.exists():
        about = made_of(out) or {}
        asked = about | job.work | job.options | {"revision": job.revision} | job.also
        if about != asked or about.get("template", "") != given.template:
            raise UserError(f"{out} exists already, made of something else: delete it or choose another --out")
        shutil.rmtree(folder, ignore_errors=True)  # killed between the last two steps
        return f"caption table {out} is complete: there is nothing to do"
    with open_shards(folder, job.work, len(items)) as shards:
        if shards.about:
            shards.check(shards.about | job.options)
            display.say(f"continuing {shards.folder}: {shards.done} of {shards.count} shards are done")
        do_missing(shards, items, job.make, given.pool, display, job.what)
        sentence = job.write(shards)
        shards.remove()
    return sentence


def _about_classes(given: Arguments, config: DataConfig, out: Path, display: Display) -> _Job:
    """Texts about classes by a language model, for the images of these classes or for themselves."""
    options = given.llm
    revision = revision_of(find_describer(options.model))
    source = open_source(config, "train", need_captions=False)
    names = name_classes(source.classes, given.class_names)
    display.notes(source.left_out)
    if options.rows == "class":
        ids = pa.array([f"{name}/{number}" for name in source.classes for number in range(options.texts)], pa.string())
        rows, images = None, ""
    else:
        ids, images = source.ids, digest_of(source.ids)
        turn = place_in_class(source.labels, np.arange(len(source))) % options.texts
        rows = source.labels * options.texts + turn
    work = {"class names": digest_of(pa.array(names, pa.string())), "texts per shard": _SHARD, "images": images}
    return _Job(
        work,
        asdict(options),
        revision,
        len(names) * options.texts,
        partial(ClassCaptioner, options, given.batch_size, names),
        "texts written",
        partial(_write, out=out, ids=ids, rows=rows),
    )


def _filling(
    given: Arguments, config: DataConfig, ids: pa.StringArray
) -> tuple[Callable[[pa.StringArray, Sequence[str]], list[str]], dict[str, str]]:
    """What makes a template's captions of images' ids and a captioner's captions, and what they depend on.

    Raises UserError where an image has no label, and the template asks for one.
    """
    names: dict[str, str] = {}
    if LABEL in given.template:
        source = open_source(config, "train", need_captions=False)
        named = pa.array(name_classes(source.classes, given.class_names), pa.string()).take(pa.array(source.labels))
        names = dict(zip(source.ids.to_pylist(), named.to_pylist(), strict=True))
        if lacking := [image for image in ids.to_pylist() if image not in names]:
            raise UserError(f"{len(lacking)} of {len(ids)} images have no label for --template: {some(lacking, 3)}")

    def fill(ids: pa.StringArray, captions: Sequence[str]) -> list[str]:
        parts = re.split(r"(\{label\}|\{caption\})", given.template)  # at once: a caption may speak of {label}
        known = (
            {LABEL: names.get(image, ""), _CAPTION: text} for image, text in zip(ids.to_pylist(), captions, strict=True)
        )
        return ["".join(each.get(part, part) for part in parts) for each in known]

    return fill, {"template": given.template, "labels": digest_of(pa.array(names.values(), pa.string()))}


def class_captions(
    config: DataConfig, template: str, names: Path | None = None, say: Callable[[Sequence[str]], None] | None = None
) -> CaptionTable:
    """Captions that name each training image's class, as `name_classes` does with the table `names`.

    `say` is called with sentences on what was found with the images but is not used. Raises UserError as `name_classes`
    does, and when the images have no labels.
    """
    source = open_source(config, "train", need_captions=False)
    captions = [template.replace(LABEL, name) for name in name_classes(source.classes, names)]
    if say is not None:
        say(source.left_out)
    table = pa.array(captions, pa.string()).take(pa.array(source.labels))
    return CaptionTable(source.ids, table, pa.array([f"template: {template}"] * len(source), pa.string()))


def _write(
    shards: Shards,
    out: Path,
    ids: pa.StringArray,
    rows: npt.NDArray[np.int64] | None = None,
    fill: Callable[[pa.StringArray, Sequence[str]], list[str]] | None = None,
    also: Mapping[str, Any] | None = None,
) -> str:
    """Writes the table of finished shards, and a list of images without caption; returns a sentence on both.

    Args:
        shards: All answers.
        out: The table.
        ids: The table's ids.
        rows: Which answer is each id's; None where there is one for each.
        fill: What becomes of captions, by id.
        also: What the table depends on besides the answers.
    """
    answers = [tuple(answer) for shard in range(shards.count) for answer in json.loads(shards.read(shard))]
    captions, problems = (pa.array(column, pa.string()) for column in zip(*answers, strict=True))
    if rows is not None:
        captions, problems = captions.take(pa.array(rows)), problems.take(pa.array(rows))
    good = pc.equal(problems, "")
    lost, why = ids.filter(pc.invert(good)), problems.filter(pc.invert(good))
    if len(lost) == len(ids):
        shards.remove()  # the same command tries again
        raise UserError(f"none of {len(ids)} images got a caption; {lost[0]}: {why[0]}")
    assert shards.about is not None, "there is at least one shard"
    ids, captions = ids.filter(good), captions.filter(good)
    if fill is not None:
        captions = pa.array(fill(ids, captions.to_pylist()), pa.string())
    written_by = f"{shards.about['model']}@{shards.about['revision']}"
    listed = out.with_name(f"{out.name}.skipped.tsv")
    with disk_problems(out):
        listed.unlink(missing_ok=True)
        if len(lost):
            pairs = zip(lost.to_pylist(), why.to_pylist(), strict=True)
            listed.write_text("".join(f"{image}\t{problem}\n" for image, problem in pairs), encoding="utf-8")
        remove_halves(out)
        table = CaptionTable(ids, captions, pa.array([written_by] * len(ids), pa.string()))
        write_captions(table, out, made_of=shards.work | shards.about | dict(also or {}))
    skipped = f"; {len(lost)} without a caption are listed in {listed}, the first: {why[0]}" if len(lost) else ""
    return f"caption table {out}: {len(ids)} images{skipped}"


def main(arguments: list[str]) -> None:
    """Runs the command; raises UserError when its arguments, or what they name, cannot be used."""
    given = read_arguments(Arguments, arguments, program("tt_ray.caption_images"))
    what = f"caption table {given.out}"
    with Display() as display, one_writer(beside(given.out), what, say=display.say):
        sentence = caption(given, display)
    print(sentence)


if __name__ == "__main__":
    run_command(main)
