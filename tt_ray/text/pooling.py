"""From token states to one embedding: pooling, and the modules that sentence-transformers put after it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tt_ray.terminal.errors import UserError, nearest, one_line

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
_DENSE_INPUT = "sentence_embedding"


def pool(pooling: str, outputs: Any, mask: Any, lengths: Any) -> Any:
    """One float32 vector for each row, (B, D).

    Args:
        pooling: A name in `POOLINGS`.
        outputs: The output of a transformers model, with states (B, T, D).
        mask: True at real tokens, (B, T); padding is on the right.
        lengths: Number of real tokens, (B,).
    """
    return POOLINGS[pooling](outputs, mask, lengths)


def _last(outputs: Any, mask: Any, lengths: Any) -> Any:
    import torch

    return _states(outputs)[torch.arange(len(lengths), device=lengths.device), lengths - 1]


def _mean(outputs: Any, mask: Any, lengths: Any) -> Any:
    return (_states(outputs) * mask[:, :, None]).sum(1) / lengths[:, None]


def _mean_sqrt_len(outputs: Any, mask: Any, lengths: Any) -> Any:
    return (_states(outputs) * mask[:, :, None]).sum(1) / lengths[:, None].sqrt()


def _weighted_mean(outputs: Any, mask: Any, lengths: Any) -> Any:
    """SGPT's (2022): a token counts as often as its position, from 1."""
    import torch

    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (_states(outputs) * weights[:, :, None]).sum(1) / weights.sum(1)[:, None]


def _states(outputs: Any) -> Any:
    return outputs.last_hidden_state.float()


POOLINGS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "cls": lambda outputs, mask, lengths: _states(outputs)[:, 0],
    "eos": lambda outputs, mask, lengths: outputs.pooler_output.float(),
    "eos+projection": lambda outputs, mask, lengths: outputs.text_embeds.float(),
    "last": _last,
    "max": lambda outputs, mask, lengths: _states(outputs).masked_fill(~mask[:, :, None], float("-inf")).amax(1),
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
}
"""cls: state of the first token. eos: the model's own pooled state, after its final norm. last: state of the last real
token. Means are over real tokens."""


@dataclass
class Settings:
    """Settings of modules.json and its companions; empty values where a folder is no sentence-transformers model."""

    folder: Path
    """Folder of the transformer itself."""
    pooling: str = ""
    behind: list[tuple[str, Path]] = field(default_factory=list)
    """Modules after pooling, in order: "dense" or "normalize", each with its folder."""
    max_tokens: int = 0
    lower_case: bool = False
    prompt: str = ""


def read_settings(folder: Path) -> Settings:
    """The settings of an encoder's folder; raises UserError on modules and poolings that are not known."""
    settings = Settings(folder)
    if not (folder / "modules.json").is_file():
        return settings
    for module in read_json(folder / "modules.json"):
        kind, inside = module["type"].rsplit(".", 1)[-1], folder / module["path"]
        if kind == "Transformer":
            settings.folder = inside
            limits = read_json(inside / "sentence_bert_config.json")
            settings.max_tokens = limits.get("max_seq_length") or 0
            settings.lower_case = limits.get("do_lower_case", False)
        elif kind == "Pooling":
            settings.pooling = _sentence_pooling(read_json(inside / "config.json", required=True), folder)
        elif kind in ("Normalize", "Dense"):
            settings.behind.append((kind.lower(), inside))
        else:
            raise UserError(f"text encoder {folder} has a module {kind}; known: Transformer, Pooling, Dense, Normalize")
    prompts = read_json(folder / "config_sentence_transformers.json")
    settings.prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    return settings


def _sentence_pooling(config: dict[str, Any], folder: Path) -> str:
    """The name in `POOLINGS` of sentence-transformers' pooling, from its older flags or its newer pooling_mode."""
    modes = config.get("pooling_mode") or [name for flag, name in _SENTENCE_POOLING_FLAGS.items() if config.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(modes) > 1 or modes[0] not in _SENTENCE_POOLING or not config.get("include_prompt", True):
        raise UserError(f"text encoder {folder} pools by {' and '.join(modes)}; known: {', '.join(_SENTENCE_POOLING)}")
    return _SENTENCE_POOLING[modes[0]]


def load_dense(folder: Path, config: dict[str, Any], device: str) -> Any:
    """Loads a Dense module: a linear layer and an activation on the pooled embedding.

    Weights are safetensors alone, and the activation is one of torch.nn's own, found by its name: no code is run.

    Args:
        folder: The module's folder.
        config: Its config.json.
        device: Device to compute on.

    Returns:
        A frozen float32 torch module, (B, in_features) to (B, out_features).

    Raises:
        UserError: Weights or activation are something else.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    names = (config.get("module_input_name", _DENSE_INPUT), config.get("module_output_name") or _DENSE_INPUT)
    if names != (_DENSE_INPUT, _DENSE_INPUT) or config.get("use_residual"):
        raise UserError(f"{folder} is a Dense module of tokens or with a residual; known are those of whole embeddings")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} has no model.safetensors (other weights are not read: they can hold code)")
    try:
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        tensors = {name.removeprefix("linear."): tensor for name, tensor in load_file(weights).items()}
        linear.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights} does not fit its config.json: {one_line(error)}") from None
    activation = _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), folder)
    return torch.nn.Sequential(linear, activation).eval().requires_grad_(False).to(device)


def _activation(path: str, folder: Path) -> Any:
    import torch

    known = {"Identity", *torch.nn.modules.activation.__all__}
    package, _, name = path.rpartition(".")
    if package.split(".")[0] != "torch" or name not in known:
        raise UserError(f"{folder} has the activation {path}, which is not one of torch.nn's: {nearest(name, known)}")
    try:
        return getattr(torch.nn, name)()
    except TypeError:
        raise UserError(f"{folder} has the activation {path}, but does not say with which settings") from None


def read_json(path: Path, required: bool = False) -> Any:
    """The file's content, or {} when there is none and none is required; raises UserError when it is not JSON."""
    if not required and not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or not JSON: fetch the text encoder again") from None
