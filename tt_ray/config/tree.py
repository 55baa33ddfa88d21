"""The configuration tree: one namespace of dotted paths for the command line, YAML files and search spaces.

Nothing changes after parsing: what follows from a field is a property, and `override` returns a new tree.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tt_ray.config.checks import (
    check_batch,
    check_fields,
    check_ranges,
    check_schedules,
    check_teachers,
    check_text,
    first_problem,
    workers_range,
)
from tt_ray.config.sections import (
    STRICT,
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TeacherConfig,
    TextConfig,
    TrainConfig,
)
from tt_ray.io.storage import is_uri, local_root
from tt_ray.losses import find_loss
from tt_ray.terminal.errors import UserError, nearest, one_line, reason


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    named: ClassVar[frozenset[str]] = frozenset()
    """Of an instance: paths that a user has set, rather than a recipe; see `override`. They play no part in ==."""

    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Raises UserError, naming the path, for values that no run could use."""
        check_ranges({item.name: getattr(self, item.name) for item in fields(self)})
        check_fields(self.data, self.model, self.optim, self.train, self.run)
        check_schedules(self.text, self.optim, self.train.epochs)
        if self.teaches:
            check_teachers(self.text, self.teacher, self.head, self.data)
        if self.reads_text:
            check_text(self.text)
        check_batch(self.train, self.data, self.workers[1])
        if self.by_worker and self.workers[0] != self.workers[1]:
            raise UserError(
                f"run.num_workers is {self.run.num_workers}, but text.scope worker and text.negatives local make "
                "results depend on the number: choose one"
            )

    @property
    def workers(self) -> tuple[int, int]:
        """The fewest and the most workers; raises UserError when run.num_workers is neither N nor MIN:MAX."""
        return workers_range(self.run.num_workers)

    @property
    def by_worker(self) -> bool:
        """Whether what is computed depends on the number of workers, who learn from their own parts of a batch."""
        text, mixes = self.text, bool(self.data.mixup or self.data.cutmix)
        return (text.scope == "worker" and mixes) or (self.teaches and (text.local_negatives or text.scope == "worker"))

    @property
    def run_dir(self) -> Path:
        """The run folder on this machine, absolute: workers start in another folder."""
        return local_root(self.run.storage) / self.run.name

    @property
    def storage_place(self) -> str:
        """The place of runs as other processes find it: the absolute folder, or the URI."""
        return self.run.storage if is_uri(self.run.storage) else str(local_root(self.run.storage))

    @property
    def run_place(self) -> str:
        """The place of the run as users find it: its folder, or its URI."""
        if not is_uri(self.run.storage):
            return str(self.run_dir)
        base, mark, query = self.run.storage.partition("?")
        return f"{base.rstrip('/')}/{self.run.name}{mark}{query}"

    @property
    def teaches(self) -> bool:
        """Whether the loss has a text or teacher part."""
        return self.text.weight > 0

    @property
    def reads_text(self) -> bool:
        """Whether captions or their embeddings are needed."""
        return self.teaches and (not self.teacher.model or "teacher" in find_loss(self.text.loss).needs)

    @property
    def has_text_head(self) -> bool:
        """Whether there is a projection: logits are distilled without one."""
        return self.teaches and not (self.teacher.model and self.teacher.target == "logits")

    def get(self, path: str) -> Any:
        """The value at a dotted path."""
        return reduce(getattr, path.split("."), self)

    def override(self, path: str | Mapping[str, Any] | None = None, value: Any = None, **values: Any) -> Self:
        """A copy with other values: `override("optim.lr", 0.1)`, or several, `override({"optim.lr": 0.1, ...})`.

        What a recipe says of its own data or model goes with them: another `data.source` than the built-in shapes has
        no `data.label_noise`, and another `model.name` no `model.kwargs`, unless they have been set too, in whichever
        order.

        Args:
            path: Dotted path of a field, such as "optim.lr", or a mapping of paths to values.
            value: The new value at one path.
            **values: Further paths and values, as in `override(**{"optim.lr": 0.1})`.

        Raises:
            UserError: There is no such path, or a value does not fit it or the rest.
        """
        changes = {**(path if isinstance(path, Mapping) else {} if path is None else {path: value}), **values}
        for each in changes:
            if each not in self.paths():
                raise UserError(f"no field {each}; {nearest(str(each), self.paths())}")
        named = self.named | changes.keys()
        tree = self.to_dict()
        for each, new in {**self._left_behind(changes, named), **changes}.items():
            *groups, name = each.split(".")
            reduce(dict.__getitem__, groups, tree)[name] = new
        return self.from_dict(tree).naming(named)

    def _left_behind(self, changes: Mapping[str, Any], named: frozenset[str]) -> dict[str, Any]:
        """Values of fields that were meant for data or a model which the changes replace."""
        source, model = self.data.source, self.model.name
        left: dict[str, Any] = {}
        if source == "shapes" and changes.get("data.source", source) != source:
            left["data.label_noise"] = 0.0
        if changes.get("model.name", model) != model:
            left["model.kwargs"] = {}
        return {path: value for path, value in left.items() if path not in named}

    def naming(self, paths: Iterable[str]) -> Self:
        """A copy of which a user has set the fields at these paths too; see `override`."""
        copied = copy(self)
        object.__setattr__(copied, "named", self.named | frozenset(paths))
        return copied

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and scalars."""
        return _adapter(type(self)).dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, tree: dict[str, Any], where: str = "") -> Self:
        """Reads plain dictionaries.

        Args:
            tree: As `to_dict` returns it; missing fields take their defaults.
            where: Beginning of errors, such as the file's name.

        Raises:
            UserError: A key is unknown or a value is bad, by its path.
        """
        try:
            return _adapter(cls).validate_python(tree)
        except ValidationError as error:
            raise UserError(first_problem(cls.paths(), error, where)) from None

    def to_yaml(self, path: Path) -> None:
        """Writes the whole tree."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Reads a YAML file; missing fields take their defaults. Its label noise is meant, whatever the data.

        Raises:
            UserError: The file cannot be read, or has unknown keys or bad values.
        """
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not YAML: {one_line(error)}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from None
        if not isinstance(tree, dict):
            groups = ", ".join(item.name for item in fields(cls))
            raise UserError(f"{path} must hold a mapping with keys such as {groups}")
        return cls.from_dict(tree, where=f"{path}: ").naming(["data.label_noise"])

    @classmethod
    def paths(cls) -> list[str]:
        """All dotted paths, in the order of the tree."""
        return list(_walk(cls()))


@cache
def _adapter(cls: type[Config]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _walk(node: Any, prefix: str = "") -> list[str]:
    paths: list[str] = []
    for item in fields(node):
        value = getattr(node, item.name)
        paths += _walk(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return paths
