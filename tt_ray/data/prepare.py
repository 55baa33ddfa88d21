"""From a configuration to data that is ready to train on: splits, corrections and noise of labels, store, join."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tt_ray.config import Config
from tt_ray.data.corrected_labels import correct_labels
from tt_ray.data.label_noise import replace_labels, stratified
from tt_ray.data.sources.base import NOBODY, Source
from tt_ray.data.sources.registry import drop_unreadable, find_source, open_splits
from tt_ray.data.text_targets import ClassTexts, TextTargets, build_class_texts, build_targets
from tt_ray.embeddings.build import Show
from tt_ray.embeddings.ensure import Embed, ensure_store, fetch_store, store_here
from tt_ray.embeddings.store import EmbeddingStore, open_store
from tt_ray.io.local_copy import pull_together
from tt_ray.terminal.errors import UserError, some

_CHECK_ROWS = 1024


@dataclass(frozen=True)
class Data:
    """Both splits, and the text targets of the training split, row by row."""

    train: Source
    val: Source
    targets: TextTargets | None
    notes: tuple[str, ...]
    """Sentences for the summary: what was left out, replaced or missing."""
    class_texts: ClassTexts | None = None
    """Targets of texts about the classes, where text.class_embeddings names some."""


def open_data(config: Config, store_path: Path | None, show: Show | None = None) -> Data:
    """Opens the splits and joins them with the store; raises UserError on anything that is wrong with them.

    What lies in object storage is on this machine when it returns; `show` is called meanwhile.
    """
    train, val, notes = open_images(config)
    pull_together([train.copy, val.copy], show)
    if store_path is not None:
        store_path = fetch_store(config, store_path, show)
    return join(config, train, val, None if store_path is None else open_store(store_path), notes)


def open_images(config: Config, show: Show | None = None) -> tuple[Source, Source, list[str]]:
    """Both splits, training sub-sampled, its labels corrected, without unreadable images; notes on what is left out.

    Raises UserError where they cannot be opened, or have one class alone.
    """
    data = config.data
    own_captions = config.reads_text and not (config.text.captions or config.text.embeddings)
    train, val = open_splits(data, need_captions=own_captions)
    if len(train.classes) < 2:
        raise UserError(
            f"{data.source} {data.root or data.name} has one class alone, {', '.join(train.classes)}: there is nothing "
            "to tell apart; each class is a folder, or a value of --data.label_column"
        )
    notes: list[str] = []
    every = train.ids
    if data.subset < 1:
        count, whole = round(data.subset * len(train)), train
        train = train.select(stratified(train.labels, train.ids, count, config.train.seed, "subset"))
        notes.append(f"{count} of {len(whole)} training images were kept (data.subset)")
        notes += _lost("data.subset", train.classes, whole.labels, train.labels)
    if data.unlabelled:
        train = replace(train, hidden=_hidden(config, train))
    if data.labels:  # after both, which choose the same images whatever their labels are corrected to
        train, said = correct_labels(data, train, val, every)
        notes += said
    if data.on_bad_image == "skip" and not find_source(data.source).knows_unreadable:
        train, val = (drop_unreadable(split, _counter(show, len(split))) for split in (train, val))
    return train, val, notes + left_out(config, train, val)


def _hidden(config: Config, train: Source) -> npt.NDArray[np.bool_]:
    """Images whose label data.unlabelled takes away, (N,)."""
    count, seed = len(train) - round(config.data.unlabelled * len(train)), config.train.seed
    hidden = np.ones(len(train), bool)
    hidden[stratified(train.labels, train.ids, count, seed, "unlabelled")] = False
    return hidden


def _lost(why: str, classes: Sequence[str], before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]) -> list[str]:
    """A sentence on classes that labels named before and do not any more, if there are some."""
    if not len(lost := np.setdiff1d(before, after)):
        return []
    names = some([classes[int(number)] for number in lost])
    return [f"{len(lost)} classes are not learned, as none of their labels is left ({why}): {names}"]


def left_out(config: Config, train: Source, val: Source) -> list[str]:
    """Sentences on images and files of both splits that are not read."""
    data, notes = config.data, list[str]()
    for split, name in ((train, data.train_split), (val, data.val_split)):
        if split.skipped and not find_source(data.source).knows_unreadable:  # which says so in left_out
            notes.append(f"{len(split.skipped)} unreadable images left out of {name}: {some(split.skipped)}")
        if split is train or not data.val_share:  # which is of the same folder
            notes += split.left_out
    return list(dict.fromkeys(notes))


def check_images(config: Config, train: Source, val: Source, show: Show | None = None) -> None:
    """Reads the images of splits that training will hold in memory; raises UserError naming the first unreadable one.

    Larger splits would take minutes: their unreadable images stop the run when it reaches them.
    """
    data = config.data
    if data.source == "shapes" or data.on_bad_image == "skip" or find_source(data.source).knows_unreadable:
        return
    for split in (train, val):
        if len(split) * data.image_size**2 * 3 > data.cache_gb * 2**30:
            continue
        for start in range(0, len(split), _CHECK_ROWS):
            # The smallest size: JPEGs are then decoded at an eighth of their own, which still reads all of the file.
            split.pixels(np.arange(start, min(start + _CHECK_ROWS, len(split))), 1)
            if show is not None:
                show("images checked", min(start + _CHECK_ROWS, len(split)), len(split))


def _counter(show: Show | None, of: int) -> Callable[[int], None] | None:
    if show is None:
        return None
    return lambda done: None if done % _CHECK_ROWS and done < of else show("images checked", done, of)


def join(config: Config, train: Source, val: Source, store: EmbeddingStore | None, notes: list[str]) -> Data:
    """Joins images and embeddings by id, and replaces labels: captions still describe the image.

    Labels are replaced before the join: what it leaves out changes none of the others.
    """
    targets, labels = None, train.labels
    train = spoil_labels(config, train, notes)
    if store is not None:
        targets, missing = build_targets(store, train, labels, config)
        if missing.images:
            shown = ", ".join(missing.image_ids)
            notes.append(f"{missing.images} training images without an embedding were left out: {shown}")
            train = train.select(missing.rows)
            if (train.labels == NOBODY).all():
                raise UserError(
                    f"none of the {len(train)} training images with an embedding has a label (data.unlabelled "
                    f"{config.data.unlabelled:g}): lower it, or embed the captions of more images"
                )
        if missing.embeddings:
            shown = ", ".join(missing.embedding_ids)
            notes.append(f"{missing.embeddings} embeddings have no training image: {shown}")
    class_texts = None
    if targets is not None and config.text.class_embeddings:
        place = store_here(config.text.class_embeddings, config.data.local_cache)
        class_texts = build_class_texts(open_store(place), train.classes, targets.dim, config)
    return Data(train, val, targets, tuple(notes), class_texts)


def spoil_labels(config: Config, train: Source, notes: list[str]) -> Source:
    """Takes labels away, and replaces others. Where nothing but labels teaches, images without one are left out."""
    data, seed, count = config.data, config.train.seed, len(train)
    known = np.arange(count)
    if train.hidden is not None:
        known = np.flatnonzero(~train.hidden)
        if not len(known):
            raise UserError(f"data.unlabelled {data.unlabelled} leaves none of {count} images a label: lower it")
        left_out = "" if config.teaches else ", and were left out, as nothing but labels teaches"
        notes.append(f"{count - len(known)} of {count} training images have no label{left_out} (data.unlabelled)")
        notes += _lost("data.unlabelled", train.classes, train.labels, train.labels[known])
    labels = np.full(count, NOBODY)
    labels[known] = train.labels[known]
    if data.label_noise:
        ids = train.ids.take(pa.array(known)).to_pylist()
        labels[known] = replace_labels(
            labels[known], ids, len(train.classes), data.label_noise, seed, data.label_noise_kind
        )
        changed = int((labels[known] != train.labels[known]).sum())
        how = "at random" if data.label_noise_kind == "symmetric" else "by the next class"
        notes.append(f"{changed} of {len(known)} training labels were replaced {how}")
    train = replace(train, labels=labels)
    return train if config.teaches or train.hidden is None else train.select(known)


def find_store(
    config: Config,
    train: Source,
    show: Show | None = None,
    before: Callable[[], None] | None = None,
    say: Callable[[str], None] | None = None,
    embed: Embed | None = None,
) -> Path | None:
    """The run's embedding store, as `ensure_store` makes it of the training images' ids and captions."""
    return ensure_store(config, train.ids, train.captions, show, before, say, embed)
