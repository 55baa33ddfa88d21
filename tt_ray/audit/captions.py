"""What is known of captions before anything is learned from them: how many, how long, in which scripts, cut off."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from tt_ray.audit.out_of_fold import Ints
from tt_ray.embeddings.inspection import nearest
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.logistic.design import read_blocks
from tt_ray.stateless_random import place_in_class, uniform
from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder_files import MINILM, find_encoder
from tt_ray.text.pooling import read_settings

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
SAMPLE = 50_000
"""Captions that are tokenised, at most."""
NEIGHBOURS = 5_000
"""Captions whose nearest others are looked for, among themselves, at most."""
EXAMPLES = 5
_OWN_WORDS = 5
_SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai"),
    *("Han", "Hiragana", "Katakana", "Hangul"),
)
_SAMPLE_KEY, _NEAR_KEY = 0xA0D4, 0xA0D5


@dataclass(frozen=True)
class CaptionFigures:
    """Captions of N images."""

    images: int
    missing: int
    """Images without one."""
    distinct: int
    """Captions that differ."""
    shared: int
    """Images whose caption another image has too."""
    common: tuple[tuple[str, int], ...]
    """The most frequent captions of several images, and of how many."""
    words: tuple[int, ...]
    """Words of a caption: least, quartiles, most."""
    scripts: dict[str, float]
    """Share of captions with a letter of a Unicode script. A script is no language: Latin letters are those of many."""
    named: float | None
    """Share of captions in which the name of the given class stands; None where classes have no names with letters."""
    told: float
    """Share of captions with one of at most five words that only captions of their class have; of a sample."""


@dataclass(frozen=True)
class Cut:
    """Captions that the encoder cuts off."""

    share: float
    of: int
    """Captions that were looked at."""
    limit: int
    """The encoder's tokens."""


@dataclass(frozen=True)
class Neighbours:
    """Captions as embeddings see them, of a sample."""

    of: int
    near: tuple[tuple[int, int, float], ...]
    """Pairs of images with different captions and labels whose embeddings are nearest, and their cosine."""
    odd: tuple[tuple[int, float], ...]
    """Images whose embedding is farthest from its nearest other, and the cosine."""


def describe_captions(captions: pa.StringArray, labels: Ints, classes: tuple[str, ...]) -> CaptionFigures:
    """Counts captions (N,), null where there is none."""
    present = captions.drop_null()
    counts = pc.value_counts(present)
    texts, numbers = counts.field("values"), counts.field("counts").to_numpy()
    often = np.argsort(-numbers, kind="stable")[:EXAMPLES]
    words = pc.count_substring_regex(present, r"\S+").to_numpy()
    quartiles = np.quantile(words, [0, 0.25, 0.5, 0.75, 1]) if len(words) else np.zeros(5)
    shares = {name: _share(present, rf"\p{{{name}}}") for name in _SCRIPTS}
    return CaptionFigures(
        len(captions),
        captions.null_count,
        len(texts),
        int(numbers[numbers > 1].sum()),
        tuple((texts[int(row)].as_py(), int(numbers[row])) for row in often if numbers[row] > 1),
        tuple(int(value) for value in quartiles),
        {name: share for name, share in shares.items() if share},
        _share_named(captions, labels, classes),
        _share_told(captions, labels, len(classes)),
    )


def _share(captions: pa.StringArray, pattern: str) -> float:
    return pc.match_substring_regex(captions, pattern).true_count / max(1, len(captions))


def _share_named(captions: pa.StringArray, labels: Ints, classes: tuple[str, ...]) -> float | None:
    """How many captions name their class; plurals of classes count by their singular."""
    named = of = 0
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]  # less images without a label
    ends = np.cumsum(np.bincount(labels[order], minlength=len(classes)))
    for number, name in enumerate(classes):
        words = re.sub(r"[_\W]+", " ", name).strip()
        if not re.search(r"[^\W\d_]", words):
            continue
        words = words[:-1] if len(words) > 3 and words.endswith("s") else words
        own = order[ends[number - 1] if number else 0 : ends[number]]
        text = captions.take(pa.array(own)).drop_null()
        named += pc.match_substring_regex(text, rf"(?i)\b{re.escape(words)}").true_count
        of += len(text)
    return named / of if of else None


def _share_told(captions: pa.StringArray, labels: Ints, classes: int) -> float:
    """How many captions have one of the words that their class alone has: its `_OWN_WORDS` most frequent ones.

    Classes need not be named by words for this, nor captions repeat their names. A word counts from a twentieth of the
    captions of its class on, and with one of a hundred captions elsewhere.
    """
    known = np.flatnonzero(captions.is_valid().to_numpy(False) & (labels >= 0))
    rows = np.sort(known[uniform(known, 1, _SAMPLE_KEY)[:, 0].argsort(kind="stable")[:SAMPLE]])
    if not len(rows):
        return 0.0
    words = pc.split_pattern_regex(pc.utf8_lower(captions.take(pa.array(rows))), r"[\pZ\pP\s]+")
    own = labels[rows]
    place = pc.list_parent_indices(words).to_numpy()
    word = pc.dictionary_encode(pc.list_flatten(words)).indices.to_numpy()
    place, word = np.unique(np.stack([place, word]), axis=1)  # a word counts once in a caption
    pair, of_pair, counts = np.unique(word * classes + own[place], return_inverse=True, return_counts=True)
    total, size = np.bincount(word), np.bincount(own, minlength=classes)
    own_word, of_class = pair // classes, pair % classes
    pure = (counts >= 0.99 * total[own_word]) & (counts >= 0.05 * size[of_class])
    chosen = place_in_class(of_class, np.where(pure, -counts, 1)) < _OWN_WORDS
    return len(np.unique(place[(pure & chosen)[of_pair]])) / len(rows)


def count_cut(encoder: dict[str, Any], captions: pa.StringArray) -> Cut | None:
    """How many captions are longer than their encoder reads; None where its tokenizer is not on this machine.

    An imported store says 0 tokens, for a length that is not known.
    """
    limit, name = encoder.get("max_tokens"), str(encoder.get("id") or "")
    present = captions.drop_null()
    if not isinstance(limit, int) or limit < 1 or not name or not len(present):
        return None
    if len(present) > SAMPLE:
        chosen = uniform(np.arange(len(present)), 1, _SAMPLE_KEY)[:, 0].argsort(kind="stable")[:SAMPLE]
        present = present.take(pa.array(np.sort(chosen)))
    from transformers import AutoTokenizer

    from tt_ray.text.encoder import quiet_transformers

    prompt, place = "", name.partition("+")[0]
    try:
        folder = find_encoder(name) if name in (MINILM, MINILM.rsplit("/", 1)[1]) else Path(place).expanduser()
        if folder.is_dir():
            settings = read_settings(folder)
            place, prompt = str(settings.folder), settings.prompt
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
            texts = [prompt + text for text in present.to_pylist()]
            rows = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)[
                "input_ids"
            ]
    except (UserError, OSError, ValueError, KeyError, ImportError):
        return None
    return Cut(sum(len(row) > limit for row in rows) / len(rows), len(rows), limit)


def find_neighbours(store: EmbeddingStore, rows: Ints, labels: Ints) -> Neighbours:
    """Looks at images by rows of the store (N,), at most `NEIGHBOURS` of them."""
    chosen = np.sort(uniform(np.arange(len(rows)), 1, _NEAR_KEY)[:, 0].argsort(kind="stable")[:NEIGHBOURS])
    table: npt.NDArray[Any] = store.embeddings  # of either precision
    stored = np.concatenate([block for _, block in read_blocks(table, rows[chosen])])
    groups = np.unique(stored.view(f"V{stored.shape[1] * stored.itemsize}")[:, 0], return_inverse=True)[1]
    units = stored - store.mean
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    if len(np.unique(groups)) < 2:
        return Neighbours(len(chosen), (), ())
    parts = [
        nearest(units, groups, part, 1) for part in np.array_split(np.arange(len(chosen)), len(chosen) // 1000 + 1)
    ]
    other, cosine = (np.concatenate(each)[:, 0] for each in zip(*parts, strict=True))
    own = labels[chosen]
    near = np.argsort(-cosine, kind="stable")
    near = near[own[near] != own[other[near]]]
    near = near[_first_of_each(np.sort([groups[near], groups[other[near]]], 0))]
    odd = np.argsort(cosine, kind="stable")
    odd = odd[_first_of_each(groups[None, odd])]
    return Neighbours(
        len(chosen),
        tuple((int(chosen[row]), int(chosen[other[row]]), float(cosine[row])) for row in near),
        tuple((int(chosen[row]), float(cosine[row])) for row in odd),
    )


def _first_of_each(keys: npt.NDArray[np.int64]) -> Ints:
    """The first `EXAMPLES` columns of (k, n) that differ, so that copies of a caption are one example."""
    return np.sort(np.unique(keys, axis=1, return_index=True)[1])[:EXAMPLES]
