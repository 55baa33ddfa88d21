"""Sections on frozen models: captions, features of images, and the linear probe on them."""

import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench, ratio
from benchmarks.gpu.loop import jpegs
from benchmarks.gpu.sections import Row
from benchmarks.linear_probe import Size, draw
from eval.contract import EvalConfig
from eval.features.backbone import open_backbone
from eval.features.extract import extract
from eval.metrics import top1
from eval.protocols.linear import TOLERANCE, Options, select, spaced
from eval.tasks.origins import mark_share
from tt_ray.logistic.design import moments
from tt_ray.models.pretrained import Preprocessing
from tt_ray.text.encoder import load_text_encoder

_BATCH = 256


def captions(bench: Bench) -> Iterator[Row]:
    """BERT-large's sizes, random weights, in bf16 on a GPU; the loop is that of transformers' own pages, by [CLS]."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import transformers

    folder = bench.folder / "bert"
    transformers.utils.logging.disable_progress_bar()
    words = _write_bert(bench, folder)
    encoder = load_text_encoder(str(folder), device=bench.device.type)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    transformers.utils.logging.disable_progress_bar()  # the encoder has put it back
    model: Any = transformers.AutoModel.from_pretrained(folder, dtype=dtype).to(bench.device).eval()
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 60, 4 * 2048 if bench.cuda else 16)
    texts = [" ".join(f"w{word}" for word in generator.integers(0, words, length)) for length in lengths]

    def plain() -> np.ndarray:
        vectors: list[np.ndarray] = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                batch = tokenizer(texts[start : start + _BATCH], padding=True, return_tensors="pt").to(bench.device)
                vectors.append(model(**batch).last_hidden_state[:, 0].float().cpu().numpy())
        return np.concatenate(vectors)

    expected, found = plain(), encoder.encode(texts)
    cosines = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    yield Row("smallest cosine of both sides' vectors", float(cosines.min()), at_least=0.99)
    seconds = bench.take_turns(
        {"ours": bench.timed(lambda: encoder.encode(texts)), "plain": bench.timed(plain)}, steps=1, rounds=3
    )
    yield ratio("captions per second over a plain loop's", seconds["plain"], seconds["ours"], at_least=1.0)
    yield Row("captions", len(texts) / float(np.median(seconds["ours"])), "captions/s")


def _write_bert(bench: Bench, folder: Path) -> int:
    """Writes weights and a tokenizer of whole words; returns how many words it knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = 8000 if bench.cuda else 50
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(words))]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(folder)
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    if not bench.cuda:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    with torch.device(bench.device):  # to draw 300 million numbers takes seconds on a CPU
        model = BertModel(BertConfig(vocab_size=len(vocabulary), **shape))  # type: ignore[arg-type]
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    return words


def features(bench: Bench) -> Iterator[Row]:
    """From images in memory and from packed JPEGs, over bare forward passes of the same model on one batch."""
    backbone = open_backbone("vit", "random:test_vit" if bench.tiny else "random:vit_small_patch16_224")
    size = backbone.preprocessing.size if bench.tiny else bench.image_size
    square = Preprocessing(size, 1.0, "squash", "bicubic", backbone.preprocessing.mean, backbone.preprocessing.std)
    config = EvalConfig(None, bench.folder, device=bench.device.type, batch_size=bench.batch)
    held = np.random.default_rng(0).integers(0, 256, (bench.distinct, size, size, 3), np.uint8)
    images = np.arange(16 * bench.batch if bench.cuda else bench.batch)
    few = jpegs(bench)["packed"]
    packed = few.select(images % len(few))
    memory = replace(packed, pixels=lambda rows, side: held[rows % len(held)])
    in_memory, of_jpegs = replace(backbone, preprocessing=square), replace(config, num_loaders=bench.loaders)
    batch = torch.randn(bench.batch, 3, size, size, device=bench.device)
    model = backbone.model.to(bench.device)  # extraction leaves it where it was
    batches = len(images) / bench.batch
    from_memory = bench.timed(lambda: extract(in_memory, memory, config))
    from_jpegs = bench.timed(lambda: extract(backbone, packed, of_jpegs))
    with torch.inference_mode():
        seconds = bench.take_turns(
            {
                "bare": bench.timed(lambda: backbone.pooled(batch)),
                "memory": lambda _: from_memory(1) / batches,
                "jpegs": lambda _: from_jpegs(1) / batches,
            },
            rounds=2,
        )
    yield ratio("from memory, over bare forward passes", seconds["bare"], seconds["memory"], at_least=0.9)
    name = f"from packed JPEGs, {bench.loaders} loaders that start in each extraction"
    yield Row(name, bench.batch / float(np.median(seconds["jpegs"])), "images/s")
    for precision in (torch.float32, torch.bfloat16):
        with torch.inference_mode(), torch.autocast(bench.device.type, precision, enabled=precision != torch.float32):
            bare = bench.take_turns({"": bench.timed(lambda: backbone.pooled(batch))}, rounds=2)[""]
        yield Row(f"bare forward passes, {str(precision)[6:]}", bench.batch / float(np.median(bare)), "images/s")
    model.cpu()


def linear_probe(bench: Bench) -> Iterator[Row]:
    """Seconds from features in memory to the model of the best of five C, on the GPU and by scikit-learn's lbfgs."""
    size = Size(5_000, 2_000, 384, 50, 5, 0.2, 0) if bench.cuda else Size(200, 100, 8, 4, 2, 0.5, 0)
    x, y = draw(size)
    tests, test_y = x[size.images :], y[size.images :]
    x, y = x[: size.images], y[: size.images]
    held_out = mark_share(y, 0.2, 0)
    fit, val = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    strengths = spaced(-4, 0, size.values)
    options = Options(strengths, past_peak=float("inf"))

    def ours() -> tuple[float, float]:
        start = time.perf_counter()
        found = select(x, y, fit, val, top1, classes=size.classes, options=options, device=bench.device.type)
        taken = time.perf_counter() - start
        return taken, top1(test_y, found.predict(tests).argmax(1))

    (first, _), (seconds, accuracy) = ours(), ours()  # the first one loads the GPU's libraries
    start = time.perf_counter()
    theirs = _scikit_learn(x, y, fit, val, strengths, tests, test_y)
    reference = time.perf_counter() - start
    yield Row("ours", seconds, "s", note=f"{first:.2f} s the first time")
    yield Row("scikit-learn on all CPUs", reference, "s")
    yield Row("scikit-learn's seconds over ours", reference / seconds, at_least=5.0)
    yield Row("test accuracy of both differs by", abs(accuracy - theirs), "points", at_most=0.5)


def _scikit_learn(x: Any, y: Any, fit: Any, val: Any, strengths: tuple[float, ...], tests: Any, test_y: Any) -> float:
    from sklearn.linear_model import LogisticRegression

    scaling = moments(x, fit)
    x, tests = ((part.astype(np.float64) - scaling.mean) / scaling.scale for part in (x, tests))

    def fitted(strength: float, rows: Any) -> Any:
        return LogisticRegression(C=strength, tol=TOLERANCE, max_iter=1000).fit(x[rows], y[rows])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that end at 1000 iterations
        scores = [float(fitted(strength, fit).score(x[val], y[val])) for strength in strengths]
        best = fitted(strengths[int(np.argmax(scores))], np.arange(len(y)))
    return 100 * float(best.score(tests, test_y))
