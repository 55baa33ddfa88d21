"""Frozen text encoders: sentence-transformers, BERT, CLIP text, other encoders and decoder language models."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tt_ray.terminal.errors import UserError, first_line
from tt_ray.text.dense_module import load_dense
from tt_ray.text.encoder_files import PROJECTION, find_encoder, revision_of

# Pooling by model_type, for folders without sentence-transformers' own modules.json. Others get `last` where tokens
# see only those before them (then the last one alone has seen the whole caption), else `mean`.
# cls: state of the first token. eos: the model's own pooled <eos> state, after the final norm. last: state of the
# last real token. mean: average over real tokens.
_POOLING = {"bert": "cls", "clip": "eos", "clip_text_model": "eos", **dict.fromkeys(("mt5", "t5", "umt5"), "mean")}
_MODEL_CLASSES = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "mt5": "MT5EncoderModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
# Decoders whose folder brings code to let every token see all others. transformers can do that by itself.
_BIDIRECTIONAL = {"llama_bidirec": "llama"}
_BIDIRECTIONAL_POOLING = {"avg": "mean", "cls": "cls", "last": "last"}
_SENTENCE_POOLING = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weightedmean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
_SENTENCE_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
# Families whose position ids start behind the padding id, so that many positions are not usable.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
# Tokens in a forward pass on CPUs: MiniLM is a tenth slower with half or twice as many, which leave cores idle or the
# cache.
_CPU_TOKENS = 1024
# Captions tokenised and sorted by length together: enough that a batch's captions are nearly equally long.
_WINDOW = 8192


class TextEncoder:
    """A frozen encoder of captions; made by `load_text_encoder`."""

    def __init__(self, name: str, revision: str, model: Any, tokenizer: Any, settings: "_Settings", device: str):
        self.name = name
        """As the user named it."""
        self.revision = revision
        """Commit hash on the hub, or 16 hex digits of a SHA-256 of weights, configuration and tokenizer."""
        self.max_tokens = _token_limit(settings.max_tokens, model.config, tokenizer)
        """Tokens of a caption, special ones included, behind which it is cut off."""
        self.pooling = "+".join((settings.pooling, *(kind for kind, _ in settings.behind)))
        """How token states become one vector."""
        self.truncated = 0
        """Captions that were cut off so far."""
        self._model, self._tokenizer, self._settings, self._device = model, tokenizer, settings, device
        self._behind = [
            load_dense(path, _json(path / "config.json", required=True), device) if kind == "dense" else None
            for kind, path in settings.behind
        ]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad: int = pad or 0
        self.dim: int = self._forward([[self._pad]]).shape[1]
        """Length D of an embedding."""

    def encode(self, captions: Sequence[str], batch_size: int = 0) -> npt.NDArray[np.float32]:
        """Embeddings of captions, float32, shape (len(captions), D), in their order.

        Captions longer than `max_tokens` are cut off and counted in `truncated`. A `batch_size` of 0 takes 256 captions
        on GPUs, and as many as make up 1,024 tokens on CPUs.
        """
        if not batch_size and str(self._device) != "cpu":
            batch_size = 256
        out = np.empty((len(captions), self.dim), np.float32)
        for start in range(0, len(captions), _WINDOW):
            tokens = self._tokenize(captions[start : start + _WINDOW])
            # Longest first: equal lengths need no padding, and a lack of memory shows in the first batch.
            order = np.argsort([-len(ids) for ids in tokens], kind="stable")
            for chosen in _batches(order, [len(tokens[row]) for row in order], batch_size):
                out[start + chosen] = self._forward([tokens[row] for row in chosen])
        return out

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
        else:  # slow tokenizers do not tell what they cut off: a full length is taken for a cut
            self.truncated += sum(len(ids) >= self.max_tokens for ids in batch["input_ids"])
        return [list(ids) or [self._pad] for ids in batch["input_ids"]]

    def _forward(self, tokens: list[list[int]]) -> npt.NDArray[np.float32]:
        """Embeddings of token ids, shape (len(tokens), D)."""
        import torch

        lengths = torch.tensor([len(ids) for ids in tokens], device=self._device)
        longest = max(map(len, tokens))
        equal = longest == min(map(len, tokens))
        # Padding is on the right for decoders as well: under a causal mask the last real token never sees it, and
        # learned positions keep counting from 0, which left padding would break.
        ids = torch.tensor([row + [self._pad] * (longest - len(row)) for row in tokens], device=self._device)
        mask = torch.arange(longest, device=self._device)[None, :] < lengths[:, None]
        with torch.inference_mode():
            # Models are faster without a mask, which equal lengths do not need.
            outputs = self._model(input_ids=ids, attention_mask=None if equal else mask.long())
            vectors = _pool(self._settings.pooling, outputs, mask, lengths)
            for dense in self._behind:
                vectors = torch.nn.functional.normalize(vectors, dim=1) if dense is None else dense(vectors)
        return vectors.cpu().numpy()


def _batches(order: npt.NDArray[np.int64], lengths: list[int], batch_size: int) -> list[npt.NDArray[np.int64]]:
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

    `name` is a Hugging Face id or a folder; behind a CLIP model's, `+projection` asks for its projected embedding.
    Raises UserError when it cannot be found, read, or used as a text encoder without guessing.
    """
    folder = find_encoder(name)
    settings = _read_settings(folder)
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
        try:  # it encodes a caption to tell its length
            return TextEncoder(name, revision_of(folder), model, tokenizer, settings, device)
        except UserError:
            raise
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise _no_text_encoder(folder, error) from None


def _no_text_encoder(folder: Path, error: Exception) -> UserError:
    family = _json(folder / "config.json").get("model_type", "no type")
    return UserError(f"{folder}, of type {family}, cannot be used as a text encoder ({first_line(error)})")


class _Settings:
    """What modules.json and its companions say; empty values where a folder is no sentence-transformers model."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pooling = ""
        self.behind: list[tuple[str, Path]] = []
        """What follows pooling, in order: "dense" or "normalize", each with its folder."""
        self.max_tokens = 0
        self.lower_case = False
        self.prompt = ""


def _read_settings(folder: Path) -> _Settings:
    settings = _Settings(folder)
    if not (folder / "modules.json").is_file():
        return settings
    for module in _json(folder / "modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Transformer":
            settings.folder = folder / module["path"]
            limits = _json(settings.folder / "sentence_bert_config.json")
            settings.max_tokens = limits.get("max_seq_length") or 0
            settings.lower_case = limits.get("do_lower_case", False)
        elif kind == "Pooling":
            settings.pooling = _sentence_pooling(_json(folder / module["path"] / "config.json", required=True), folder)
        elif kind == "Normalize":
            settings.behind.append(("normalize", folder / module["path"]))
        elif kind == "Dense":
            settings.behind.append(("dense", folder / module["path"]))
        else:
            raise UserError(f"text encoder {folder} has a module {kind}; known: Transformer, Pooling, Dense, Normalize")
    prompts = _json(folder / "config_sentence_transformers.json")
    settings.prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    return settings


def _sentence_pooling(config: dict[str, Any], folder: Path) -> str:
    """Our name for sentence-transformers' pooling, from its older flags or its newer pooling_mode."""
    modes = config.get("pooling_mode") or [name for flag, name in _SENTENCE_POOLING_FLAGS.items() if config.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(modes) > 1 or modes[0] not in _SENTENCE_POOLING or not config.get("include_prompt", True):
        raise UserError(f"text encoder {folder} pools by {' and '.join(modes)}; known: {', '.join(_SENTENCE_POOLING)}")
    return _SENTENCE_POOLING[modes[0]]


def _load(folder: Path, device: str, projection: bool) -> tuple[Any, Any, str]:
    """Model, tokenizer and the family's pooling."""
    import torch
    import transformers

    from tt_ray.text.packed_linear import PACKED_FAMILIES, pack_linears

    if not any(folder.glob("*.safetensors")):
        raise UserError(f"text encoder {folder} has no *.safetensors weights (others are not read: they can hold code)")
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    config, pooling = _read_config(folder, safe)
    family = config.model_type
    pooling = pooling or _POOLING.get(family, "")
    model_class = _MODEL_CLASSES.get(family, "AutoModel")
    if projection and pooling != "eos":
        raise UserError(f"text encoder {folder} is of type {family}, which has no projection: leave out {PROJECTION}")
    if projection:
        model_class, pooling = "CLIPTextModelWithProjection", "eos+projection"
    if family == "clip":  # CLIPTextModel takes a whole CLIP folder, but only the text side's config
        config.text_config.projection_dim = config.projection_dim
        config = config.text_config
    model, info = getattr(transformers, model_class).from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        # Half precision is for GPUs: on CPUs it is slow and loses digits.
        dtype=torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16,
        **safe,
    )
    # A pooler is not used here, and folders of masked language models lack it.
    missing = sorted(key for key in {*info["missing_keys"], *info["mismatched_keys"]} if "pooler" not in str(key))
    if missing:
        raise UserError(f"text encoder {folder} lacks {len(missing)} weights of {family}, such as {missing[0]}")
    model = model.eval().requires_grad_(False).to(device)
    causal = not pooling.startswith("eos") and _is_causal(model)
    if causal and getattr(config, "is_causal", True) is False:
        raise UserError(f"text encoder {folder} wants is_causal false, which transformers' {family} does not do")
    if torch.device(device).type == "cpu" and family in PACKED_FAMILIES:
        pack_linears(model, _CPU_TOKENS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
    check_vocabulary(f"text encoder {folder}", tokenizer, model)
    return model, tokenizer, pooling or ("last" if causal else "mean")


def _read_config(folder: Path, safe: dict[str, Any]) -> tuple[Any, str]:
    """transformers' configuration, and the pooling where it says so; raises UserError where it would mislead."""
    import transformers

    values = _json(folder / "config.json")
    family, pooling = values.get("model_type"), values.get("pooling", "avg")
    if family in _BIDIRECTIONAL and pooling in _BIDIRECTIONAL_POOLING:
        known = {key: value for key, value in values.items() if key not in ("model_type", "auto_map", "is_causal")}
        config = transformers.AutoConfig.for_model(_BIDIRECTIONAL[family], is_causal=False, **known)
        return config, _BIDIRECTIONAL_POOLING[pooling]
    if code := (values.get("auto_map") or {}).get("AutoModel"):
        # Most often such code lets tokens see those behind them: transformers' own model would be silently wrong.
        raise UserError(
            f"text encoder {folder} brings code of its own, which is not run ({code}): give another, or, if "
            f"transformers' own {family} is the same, a copy without auto_map in its config.json"
        )
    config = transformers.AutoConfig.from_pretrained(folder, **safe)
    if config.is_encoder_decoder and config.model_type not in _MODEL_CLASSES:
        raise UserError(f"text encoder {folder} is of type {family}, an encoder-decoder; give an encoder or a decoder")
    return config, ""


def _is_causal(model: Any) -> bool:
    """Whether a token's state is the same whatever follows it: asked of the model itself, as names do not tell."""
    import torch

    size = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[1, 3, 5, 7, 2, 4], [1, 3, 5, 7, 6, 8]], device=model.device) * size // 10
    with torch.inference_mode():
        one, other = model(input_ids=ids).last_hidden_state[:, :4].float()
    return bool(((one - other).norm(dim=1) < 1e-4 * one.norm(dim=1)).all())


def _pool(pooling: str, outputs: Any, mask: Any, lengths: Any) -> Any:
    """One float32 vector per row, shape (B, D), from states (B, T, D) and mask (B, T), true at real tokens."""
    import torch

    if pooling == "eos":
        return outputs.pooler_output.float()
    if pooling == "eos+projection":
        return outputs.text_embeds.float()
    states = outputs.last_hidden_state.float()
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    if pooling == "weightedmean":  # SGPT's (2022): a token counts as often as its position, from 1
        weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
        return (states * weights[:, :, None]).sum(1) / weights.sum(1)[:, None]
    if pooling == "mean_sqrt_len":
        return (states * mask[:, :, None]).sum(1) / lengths[:, None].sqrt()
    if pooling == "max":
        return states.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
    assert pooling == "mean", pooling
    return (states * mask[:, :, None]).sum(1) / lengths[:, None]


def check_vocabulary(what: str, tokenizer: Any, model: Any, placeholders: Sequence[int | None] = ()) -> None:
    """Raises UserError when the tokenizer writes ids that the model has no embedding for: it is another model's.

    `placeholders` are ids that the model replaces before it looks for their embeddings.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    ids = set(tokenizer.get_vocab().values()) - set(placeholders)
    if rows is not None and ids and max(ids) >= rows:
        raise UserError(
            f"{what} has a tokenizer of {len(tokenizer)} tokens, with ids up to {max(ids)}, but a model of {rows} "
            "embedding rows: give the folder the tokenizer that belongs to its model"
        )


def _token_limit(wanted: int, config: Any, tokenizer: Any) -> int:
    """Most tokens that the model takes: `wanted`, or what the tokenizer takes where that is 0."""
    config = config.get_text_config()
    limit = min(getattr(config, "max_position_embeddings", None) or 10**9, wanted or tokenizer.model_max_length)
    if config.model_type in _OFFSET_POSITIONS:
        limit = min(limit, config.max_position_embeddings - config.pad_token_id - 1)
    # Tokenizers without a limit say 1e30; a caption never comes near this one.
    return int(min(limit, 8192))


def _json(path: Path, required: bool = False) -> Any:
    """The file's content, or {} when there is none and none is required; raises UserError when it is not JSON."""
    if not required and not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or not JSON: fetch the text encoder again") from None


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
