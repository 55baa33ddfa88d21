"""The jobs of an evaluation: models x tasks x protocols x seeds."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from eval.contract import Precision
from eval.protocols.corrupted import SUFFIX, Corrupted
from eval.protocols.registry import protocol, protocol_hash
from tt_ray.terminal.errors import UserError, nearest

if TYPE_CHECKING:  # it imports much
    from eval.tasks.registry import Task


@dataclass(frozen=True)
class Job:
    """One model on one task under one protocol, with one seed."""

    model: str
    """The user's name for the model."""
    spec: str
    """Where the model comes from."""
    weights: str
    """Hash of its weights and preprocessing."""
    task: str
    task_version: int
    protocol: str
    options: Any
    """The protocol's `Options`."""
    seed: int
    images: int
    """Images of the task, for the order of work."""
    data: str = ""
    """The user's own tasks: changes when their data does."""
    images_key: str = ""
    """The same for tasks that share their images, and so features."""
    precision: Precision = "fp32"
    """Of forward passes; part of the protocol's hash."""

    @property
    def key(self) -> str:
        """Name of the result's files: the same for the same work on a model of the same name, wherever that is."""
        parts = [self.weights, self.task, self.task_version, self.protocol, self.protocol_hash, self.seed, self.data]
        digest = hashlib.sha256(json.dumps([self.model, *parts]).encode()).hexdigest()[:12]
        name = "-".join((self.model[:60], self.task[:60], self.protocol, str(self.seed)))
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name).lstrip('.')}-{digest}"

    @property
    def protocol_hash(self) -> str:
        return protocol_hash(self.protocol, self.options, self.precision)

    @property
    def cost(self) -> float:
        """Expected work, in no particular unit."""
        return protocol(self.protocol).TRAITS.cost * max(self.images, 1)

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.model} {self.task} {self.protocol} seed {self.seed}"


def read_options(names: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    """Each protocol's `Options`, with `PROTOCOL.FIELD=VALUE` over the defaults.

    Raises UserError on unknown protocols and fields, and on values of another type.
    """
    changes: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        if isinstance(protocol(name), Corrupted):
            raise UserError(f"--protocols {name}: write {name.removesuffix(SUFFIX)}, and kinds after --corruptions")
    for setting in settings:
        path, equals, text = setting.partition("=")
        name, dot, field = path.rpartition(".")  # a user's own module has dots in its name
        if not (equals and dot):
            raise UserError(f"--set {setting}: write PROTOCOL.FIELD=VALUE, such as finetune.steps=100")
        if name not in changes:
            raise UserError(f"--set {setting}: {name!r} is not one of the protocols that run: {', '.join(names)}")
        known = [each.name for each in dataclasses.fields(protocol(name).Options)]
        if field not in known:
            raise UserError(f"--set {setting}: {name} has no field {field!r}; {nearest(field, known)}")
        changes[name][field] = _value(text)
    return {name: _build(name, fields) for name, fields in changes.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def _build(name: str, fields: Mapping[str, Any]) -> Any:
    try:
        return TypeAdapter(protocol(name).Options).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise UserError(f"--set {where}: {first['msg']}, not {first['input']!r}") from None


def plan_jobs(
    models: Mapping[str, tuple[str, str]],
    tasks: Mapping[str, "Task"],
    options: Mapping[str, Any],
    seeds: Sequence[int],
    precision: Precision = "fp32",
) -> list[Job]:
    """All jobs, the longest first.

    Protocols that train are left out for tasks that only test, and all seeds but the lowest where nothing is drawn.

    Args:
        models: Spec and hash of weights of each model, by name.
        tasks: Tasks by name.
        options: Each protocol's `Options`, by name.
        seeds: Seeds of whatever a protocol draws.
        precision: Of forward passes.
    """
    jobs = [
        Job(model, spec, weights, task.name, task.version, name, options[name], seed, task.images, *shared, precision)
        for model, (spec, weights) in models.items()
        for task in tasks.values()
        for shared in [(task.data, task.images_key)]
        for name in options
        for seed in (seeds if _draws(name, task) else [min(seeds)])
        if not (task.evaluation_only and protocol(name).TRAITS.trains)
    ]
    return sorted(jobs, key=lambda job: -job.cost)


def _draws(name: str, task: "Task") -> bool:
    draws = protocol(name).TRAITS.draws
    return draws == "always" or (draws == "validation" and not task.has_val)
