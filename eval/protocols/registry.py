"""Protocols by name, and what a module must define to be one: `TRAITS`, `Options` and `evaluate`.

A user's own protocol needs no entry here: its name is that of its module, as in `--protocols my.protocol`.
"""

import hashlib
import importlib
import importlib.util
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, cast

from eval.contract import EvalConfig, Precision, Result, Traits
from eval.protocols.corrupted import SUFFIX, Corrupted
from tt_ray.terminal.errors import UserError, nearest

if TYPE_CHECKING:  # they import torch and timm, which planning can do without
    from eval.features.backbone import Backbone
    from eval.tasks.registry import Task


class ProtocolModule(Protocol):
    """Contents of a protocol's file."""

    TRAITS: Traits
    """Facts that planning needs: version, cost, whether it works on features, what the seed draws."""
    Options: type[Any]
    """Frozen dataclass of the recipe: every number that can change a result, with its default."""

    def evaluate(self, backbone: "Backbone", task: "Task", config: EvalConfig) -> Result:
        """Result of the model on the task's test images; `config.options` are this protocol's `Options`."""
        ...


PROTOCOLS: dict[str, str] = {
    name: f"eval.protocols.{name}" for name in ("linear", "linear_sgd", "knn", "few_shot", "finetune", "classifier")
}
"""Modules of the protocols by name; imported when used."""


def protocol(name: str) -> ProtocolModule:
    """Imports a protocol.

    Args:
        name: One of `PROTOCOLS`, or a user's own module that Python can import; with `_corrupted` after it, the same
            tested on corrupted images, where it defines `fit` (`eval.protocols.corrupted`).

    Raises:
        UserError: There is no such protocol, or the module lacks something that a protocol must define.
    """
    if name.endswith(SUFFIX) and not _is_module(name):
        base = name.removesuffix(SUFFIX)
        return cast(ProtocolModule, Corrupted(base, protocol(base)))
    if name not in PROTOCOLS and not _is_module(name):
        raise UserError(f"no protocol {name!r}; {nearest(name, PROTOCOLS)}; or name a module of your own")
    module = importlib.import_module(PROTOCOLS.get(name, name))
    if lacking := [part for part in ("TRAITS", "Options", "evaluate") if not hasattr(module, part)]:
        raise UserError(f"module {name} is no protocol: it does not define {' and '.join(lacking)}")
    return cast(ProtocolModule, module)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent package is missing, or the name is none
        return False


def protocol_hash(name: str, options: Any, precision: Precision = "fp32") -> str:
    """Sixteen hexadecimal digits that stand for the protocol, its version, every number of its recipe, and precision.

    The recipe is the options' fields, or what their property `recipe_numbers` returns where they have one. float32 is
    not named, so that results keep the hash that they have had.
    """
    recipe = options.recipe_numbers if hasattr(options, "recipe_numbers") else asdict(options)
    parts = [name, protocol(name).TRAITS.version, recipe, *([] if precision == "fp32" else [precision])]
    identity = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
