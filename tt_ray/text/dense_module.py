"""The Dense module of sentence-transformers: a linear layer and an activation on the pooled embedding."""

from pathlib import Path
from typing import Any

from tt_ray.terminal.errors import UserError, nearest

_INPUT = "sentence_embedding"


def load_dense(folder: Path, config: dict[str, Any], device: str) -> Any:
    """A frozen float32 torch module, (B, in_features) to (B, out_features), from a module's folder and its config.json.

    Weights are safetensors alone, and the activation is one of torch.nn's own, found by its name: no code is run.
    Raises UserError when either is something else.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    given = (config.get("module_input_name", _INPUT), config.get("module_output_name") or _INPUT)
    if given != (_INPUT, _INPUT) or config.get("use_residual"):
        raise UserError(f"{folder} is a Dense module of tokens or with a residual; known are those of whole embeddings")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} has no model.safetensors (other weights are not read: they can hold code)")
    try:
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        tensors = {name.removeprefix("linear."): tensor for name, tensor in load_file(weights).items()}
        linear.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights} does not fit its config.json: {' '.join(str(error).split())}") from None
    activation = _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), folder)
    return torch.nn.Sequential(linear, activation).eval().requires_grad_(False).to(device)


def _activation(path: str, folder: Path) -> Any:
    import torch

    known = {"Identity", *torch.nn.modules.activation.__all__}
    package, _, name = path.rpartition(".")
    if package.split(".")[0] != "torch" or name not in known:
        raise UserError(f"{folder} has the activation {path}, which is none of torch.nn: {nearest(name, known)}")
    try:
        return getattr(torch.nn, name)()
    except TypeError:
        raise UserError(f"{folder} has the activation {path}, whose settings it does not tell") from None
