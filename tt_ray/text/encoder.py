"""Frozen text encoders: sentence-transformers, BERT, CLIP text, other encoders and decoder language models."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tt_ray.terminal.errors import UserError, first_line
from tt_ray.text.encoder_files import PROJECTION, find_encoder, revision_of
from tt_ray.text.families import FAMILIES, Family
from tt_ray.text.pooling import Settings, load_dense, pool, read_json, read_settings

T = TypeVar("T")
R = TypeVar("R")
_SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
_BIDIRECTIONAL_POOLING = {"avg": "mean", "cls": "cls", "last": "last"}

# Tokens in a forward pass on CPUs: MiniLM is a tenth slower with half or twice as many, which leave cores idle or the
# cache.
_CPU_TOKENS = 1024
# Captions of a forward pass on GPUs.
_GPU_BATCH = 256
# Embeddings that stay on the device before they are copied: each copy makes the host wait for a GPU.
_FLUSH_BYTES = 64 << 20
WINDOW = 8192
"""Captions that are tokenised and sorted by length together: enough that a batch's are nearly equally long."""


class TextEncoder:
    """A frozen encoder of captions, as `load_text_encoder` returns it."""

    def __init__(self, name: str, revision: str, model: Any, tokenizer: Any, settings: Settings, device: str):
        self.name = name
        """Name of the encoder, as the user wrote it."""
        self.revision = revision
        """Commit hash on the hub, or 16 hex digits of a SHA-256 of weights, configuration and tokenizer."""
        self.max_tokens = _token_limit(settings.max_tokens, model.config, tokenizer)
        """Most tokens of a caption, special ones included; longer ones are cut off."""
        self.pooling = "+".join((settings.pooling, *(kind for kind, _ in settings.behind)))
        """How token states become one vector."""
        self.truncated = 0
        """Number of captions that were cut off so far."""
        self._model, self._tokenizer, self._settings, self._device = model, tokenizer, settings, device
        self._behind = [
            load_dense(path, read_json(path / "config.json", required=True), device) if kind == "dense" else None
            for kind, path in settings.behind
        ]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad: int = pad or 0
        self._on_gpu = str(device) != "cpu"
        self.dim: int = self._forward([[self._pad]]).shape[1]
        """Length D of an embedding."""

    def encode(self, captions: Sequence[str], batch_size: int = 0) -> npt.NDArray[np.float32]:
        """Encodes captions; those longer than `max_tokens` are cut off and counted in `truncated`.

        Args:
            captions: The captions.
            batch_size: Captions in one forward pass; 0 takes 256 on GPUs, and 1,024 tokens of captions on CPUs.

        Returns:
            Embeddings in the captions' order, float32, shape (len(captions), D).
        """
        out = np.empty((len(captions), self.dim), np.float32)
        held: list[tuple[npt.NDArray[np.int64], Any]] = []
        for rows, tokens in self._batches(captions, batch_size):
            held.append((rows, self._forward(tokens)))
            if sum(vectors.nbytes for _, vectors in held) >= _FLUSH_BYTES:
                held = _flush(held, out)
        _flush(held, out)
        return out

    def _batches(
        self, captions: Sequence[str], batch_size: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], list[list[int]]]]:
        """Rows of each batch and their token ids; a thread tokenises the next captions while the model runs."""
        order, window = np.arange(len(captions)), WINDOW
        if self._on_gpu:
            # Sorted by characters, captions can be tokenised batch by batch: a GPU waits for the first one only.
            window = batch_size = batch_size or _GPU_BATCH
            order = np.argsort([-len(caption) for caption in captions], kind="stable")
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        texts = ([captions[row] for row in map(int, rows)] for rows in windows)
        for rows, tokens in zip(windows, _one_ahead(self._tokenize, texts, len(windows)), strict=True):
            # Longest first: equal lengths need no padding, and a lack of memory shows in the first batch.
            longest = np.argsort([-len(ids) for ids in tokens], kind="stable")
            for chosen in _cut(longest, [len(tokens[row]) for row in longest], batch_size):
                yield rows[chosen], [tokens[row] for row in chosen]

    def _tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids with special tokens, cut off at `max_tokens`."""
        texts = [self._settings.prompt + caption for caption in captions]
        if self._settings.lower_case:
            texts = [text.lower() for text in texts]
        batch = self._tokenizer(
            texts,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        if self._tokenizer.is_fast:
            self.truncated += sum(1 for encoding in batch.encodings if encoding.overflowing)
        else:  # slow tokenizers do not report what they cut off: a full length counts as a cut
            self.truncated += sum(len(ids) >= self.max_tokens for ids in batch["input_ids"])
        return [list(ids) or [self._pad] for ids in batch["input_ids"]]

    def _forward(self, tokens: list[list[int]]) -> Any:
        """Embeddings of token ids, (len(tokens), D), on the device; does not wait for a GPU."""
        import torch

        lengths = self._moved(torch.tensor([len(ids) for ids in tokens]))
        longest = max(map(len, tokens))
        equal = longest == min(map(len, tokens))
        # Padding is on the right for decoders as well: under a causal mask the last real token never sees it, and
        # learned positions keep counting from 0, which left padding would break.
        ids = self._moved(torch.tensor([row + [self._pad] * (longest - len(row)) for row in tokens]))
        mask = torch.arange(longest, device=self._device)[None, :] < lengths[:, None]
        with torch.inference_mode():
            # Models are faster without a mask, which equal lengths do not need.
            outputs = self._model(input_ids=ids, attention_mask=None if equal else mask.long())
            vectors = pool(self._settings.pooling, outputs, mask, lengths)
            for dense in self._behind:
                vectors = torch.nn.functional.normalize(vectors, dim=1) if dense is None else dense(vectors)
        return vectors

    def _moved(self, tensor: Any) -> Any:
        """The tensor on the device; the host does not wait until it is there."""
        pinned = tensor.pin_memory() if str(self._device).startswith("cuda") else tensor
        return pinned.to(self._device, non_blocking=True)


def _flush(held: list[tuple[npt.NDArray[np.int64], Any]], out: npt.NDArray[np.float32]) -> list[Any]:
    """Copies embeddings from the device to their rows of `out`; returns an empty list."""
    import torch

    if held:
        rows, vectors = zip(*held, strict=True)
        out[np.concatenate(rows)] = torch.cat(vectors).cpu().numpy()
    return []


def _one_ahead(work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """Results of `work` on each of `count` items, in order; the next one is made in a thread meanwhile."""
    if count < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(1) as thread:
        waiting: list[Future[R]] = []
        for item in items:
            waiting.append(thread.submit(work, item))
            if len(waiting) > 1:
                yield waiting.pop(0).result()
        yield waiting.pop().result()


def _cut(order: npt.NDArray[np.int64], lengths: list[int], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Cuts `order`, captions by falling length, into batches of `batch_size`, or of 1,024 tokens where that is 0."""
    if batch_size:
        return np.split(order, range(batch_size, len(order), batch_size))
    starts = [0]
    for position in range(len(lengths)):
        if (position + 1 - starts[-1]) * lengths[starts[-1]] > _CPU_TOKENS and position > starts[-1]:
            starts.append(position)
    return np.split(order, starts[1:])


def load_text_encoder(name: str, device: str = "cpu") -> TextEncoder:
    """Loads a frozen encoder: safetensors weights only, no code from outside; float32 on CPUs, bfloat16 on GPUs.

    Args:
        name: A Hugging Face id or a folder; `+projection` after that of a CLIP model takes its projected embedding.
        device: Device to compute on.

    Raises:
        UserError: It cannot be found, read, or used as a text encoder without guessing.
    """
    folder = find_encoder(name)
    settings = read_settings(folder)
    # Set, it keeps the tokenizers library quiet when a process that used its threads forks loader processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with quiet_transformers():
        try:
            model, tokenizer, pooling = _load(settings.folder, device, name.endswith(PROJECTION))
        except (OSError, ValueError, ImportError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot load text encoder {name} from {folder}: {first_line(error)}") from None
        except (AttributeError, TypeError) as error:
            raise _no_text_encoder(folder, error) from None
        settings.pooling = settings.pooling or pooling
        try:  # it encodes a caption to find D
            return TextEncoder(name, revision_of(folder), model, tokenizer, settings, device)
        except UserError:
            raise
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise _no_text_encoder(folder, error) from None


def _no_text_encoder(folder: Path, error: Exception) -> UserError:
    family = read_json(folder / "config.json").get("model_type", "no type")
    return UserError(f"{folder}, of type {family}, cannot be used as a text encoder ({first_line(error)})")


def _load(folder: Path, device: str, projection: bool) -> tuple[Any, Any, str]:
    """Model, tokenizer, and the pooling that is used where modules.json does not say."""
    import torch
    import transformers

    from tt_ray.text.packed_linear import pack_linears

    if not any(folder.glob("*.safetensors")):
        raise UserError(f"text encoder {folder} has no *.safetensors weights (others are not read: they can hold code)")
    config, pooling = _read_config(folder)
    family = FAMILIES.get(config.model_type, Family())
    model_class, pooling = family.model_class, pooling or family.pooling
    if projection and not family.projection_class:
        kind = config.model_type
        raise UserError(f"text encoder {folder} is of type {kind}, which has no projection: leave out {PROJECTION}")
    if projection:
        model_class, pooling = family.projection_class, "eos+projection"
    if family.image_and_text:
        config.text_config.projection_dim = config.projection_dim
        config = config.text_config
    model = _read_model(folder, getattr(transformers, model_class), config, device)
    causal = not pooling.startswith("eos") and _is_causal(model)
    if causal and getattr(config, "is_causal", True) is False:
        kind = config.model_type
        raise UserError(f"text encoder {folder} wants is_causal false, which transformers' {kind} does not do")
    if family.packed and torch.device(device).type == "cpu":
        pack_linears(model, _CPU_TOKENS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_SAFE)
    check_vocabulary(f"text encoder {folder}", tokenizer, model)
    return model, tokenizer, pooling or ("last" if causal else "mean")


def _read_model(folder: Path, model_class: Any, config: Any, device: str) -> Any:
    """The frozen model; raises UserError when the folder lacks weights of it."""
    import torch

    model, info = model_class.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        # Half precision is for GPUs: on CPUs it is slow and loses digits.
        dtype=torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16,
        **_SAFE,
    )
    # A pooler is not used here, and folders of masked language models lack it.
    missing = sorted(key for key in {*info["missing_keys"], *info["mismatched_keys"]} if "pooler" not in str(key))
    if missing:
        kind = config.model_type
        raise UserError(f"text encoder {folder} lacks {len(missing)} weights of {kind}, such as {missing[0]}")
    return model.eval().requires_grad_(False).to(device)


def _read_config(folder: Path) -> tuple[Any, str]:
    """transformers' configuration, and the pooling if it names one; raises UserError where it would mislead."""
    import transformers

    values = read_json(folder / "config.json")
    name, pooling = values.get("model_type"), values.get("pooling", "avg")
    family = FAMILIES.get(name, Family())
    if family.bidirectional_of and pooling in _BIDIRECTIONAL_POOLING:
        known = {key: value for key, value in values.items() if key not in ("model_type", "auto_map", "is_causal")}
        config = transformers.AutoConfig.for_model(family.bidirectional_of, is_causal=False, **known)
        return config, _BIDIRECTIONAL_POOLING[pooling]
    if code := (values.get("auto_map") or {}).get("AutoModel"):
        # Most often such code lets tokens see later ones: transformers' own model would be silently wrong.
        raise UserError(
            f"text encoder {folder} brings code of its own, which is not run ({code}): choose another, or, if "
            f"transformers' own {name} is the same, a copy without auto_map in its config.json"
        )
    config = transformers.AutoConfig.from_pretrained(folder, **_SAFE)
    if config.is_encoder_decoder and FAMILIES.get(config.model_type, Family()).model_class == Family.model_class:
        raise UserError(
            f"text encoder {folder} is of type {config.model_type}, an encoder-decoder; choose an encoder or a decoder"
        )
    return config, ""


def _is_causal(model: Any) -> bool:
    """Whether a token's state is the same whatever follows it: tried with the model itself, as names do not say."""
    import torch

    size = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[1, 3, 5, 7, 2, 4], [1, 3, 5, 7, 6, 8]], device=model.device) * size // 10
    with torch.inference_mode():
        one, other = model(input_ids=ids).last_hidden_state[:, :4].float()
    return bool(((one - other).norm(dim=1) < 1e-4 * one.norm(dim=1)).all())


def check_vocabulary(what: str, tokenizer: Any, model: Any, placeholders: Sequence[int | None] = ()) -> None:
    """Raises UserError when the tokenizer writes ids that the model has no embedding for: it is another model's.

    `placeholders` are ids that the model replaces before it looks for their embeddings.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    ids = set(tokenizer.get_vocab().values()) - set(placeholders)
    if rows is not None and ids and max(ids) >= rows:
        raise UserError(
            f"{what} has a tokenizer of {len(tokenizer)} tokens, with ids up to {max(ids)}, but a model of {rows} "
            "embedding rows: put the tokenizer that belongs to its model into the folder"
        )


def _token_limit(wanted: int, config: Any, tokenizer: Any) -> int:
    """Most tokens that the model takes: `wanted`, or what the tokenizer takes where that is 0."""
    config = config.get_text_config()
    limit = min(getattr(config, "max_position_embeddings", None) or 10**9, wanted or tokenizer.model_max_length)
    if FAMILIES.get(config.model_type, Family()).offset_positions:
        limit = min(limit, config.max_position_embeddings - config.pad_token_id - 1)
    # Tokenizers without a limit say 1e30; a caption never comes near this one.
    return int(min(limit, 8192))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' log and progress bars while a model loads."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
