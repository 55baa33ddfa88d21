"""Tasks by name: a data set with splits, metric and version; the table's, and the user's own ones.

tasks(["builtin", "flowers102", "mine"], roots={"mine": "/data/mushrooms"}, data_root="/data")
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from eval.tasks.layouts import ImageNet, Subset, image_number, real_labels, wordnet_ids
from eval.tasks.origins import Files, Hub, Missing, Opened, Origin, Place, Shapes, Split, mark_share
from eval.tasks.shards import Shards, names_shards
from eval.tasks.table import SUITES, TABLE, Metric
from eval.tasks.vtab import CHOOSE, FIT, PREFIX, ClipBenchmark, Thousand, check_thousand
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.io.storage import is_uri
from tt_ray.terminal.errors import UserError, nearest, some

Rows = npt.NDArray[np.int64]
_LAYOUT = "pass a folder with train/ and test/, or name them in a task file"
_VALIDATION_SHARE, _LARGE, _LARGE_SHARE = 0.2, 50_000, 0.1


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set that models are compared on. Can be pickled; nothing is read before a split is opened."""

    name: str
    version: int
    classes: int
    """Number of classes."""
    metric: Metric
    """The metric that its authors report: share of right answers, or the mean of that share over classes."""
    citation: str
    sizes: Mapping[Split, int]
    """Images of the official splits; without val, validation images come from train; without train, it only tests."""
    origins: tuple[Origin, ...]
    """Ways to open it: the first that finds its files is taken."""
    place: Place
    """Where its files are."""
    data: str = ""
    """The user's own tasks: changes when their images, what is read of them, or their labels do."""
    subset: Subset | None = None
    """Evaluation-only sets: which of ImageNet's classes they have."""
    left_out: tuple[str, ...] = ()
    """The user's own tasks: sentences on files that are not read."""
    refits: bool = False
    """The last training takes the validation images too, whatever a recipe does with official ones."""

    @property
    def has_val(self) -> bool:
        """Whether there is an official validation split."""
        return "val" in self.sizes

    @property
    def evaluation_only(self) -> bool:
        """Tests classifiers of ImageNet's 1000 classes; there is nothing to train on."""
        return "train" not in self.sizes

    @property
    def images_key(self) -> str:
        """The same for tasks that differ in labels alone, and so share their features."""
        return "shapes" if isinstance(self.origins[0], Shapes) else self.name

    @property
    def images(self) -> int:
        """Images of all splits."""
        return sum(self.sizes.values())

    @property
    def mask(self) -> npt.NDArray[np.int64] | None:
        """Evaluation-only sets: class k of the task is class mask[k] of ImageNet's 1000, (classes,); else None."""
        if self.subset is None:
            return None
        number = {name: place for place, name in enumerate(wordnet_ids())}
        return np.array([number[name] for name in wordnet_ids(self.subset)], np.int64)

    def accepted(self, source: Source) -> npt.NDArray[np.bool_] | None:
        """Which answers are right for each test image, (N, classes), where several can be (ReaL); else None."""
        if not any(isinstance(origin, ImageNet) and origin.real for origin in self.origins):
            return None
        right = np.zeros((len(source), self.classes), bool)
        for row, name in enumerate(source.ids.to_pylist()):
            right[row, list(real_labels()[image_number(name)])] = True
        return right

    def open(self, split: Split) -> Source:
        """An official split. Raises UserError as `opened` does."""
        return self.opened(split).source

    def opened(self, split: Split) -> Opened:
        """An official split, and what stands for its images.

        Raises UserError when it is not there (saying how to get it), when its numbers of images or classes are not
        the definition's, and when a class has no training image.
        """
        if split not in self.sizes:
            raise UserError(f"{self.name} has no split {split}; it has {', '.join(self.sizes)}")
        problems: list[str] = []
        for origin in self.origins:
            try:
                opened = origin.open(split, self.place)
            except Missing as error:
                if self.place.given or not isinstance(origin, Files):  # few keep such folders where sets lie together
                    problems.append(str(error))
            else:
                self._check(opened.source, split)
                return opened
        helps = [text for origin in self.origins if (text := origin.help(self.place))]
        layout = (
            "" if self.evaluation_only else ", which has train/ and test/ with one folder for each class, or Parquet"
        )
        raise UserError(
            f"{self.name} ({split}) is not there: {'; '.join(dict.fromkeys(problems))}. To fix this: "
            f"{'; or '.join([*helps, f'pass --task-root {self.name}=DIR{layout}'])}"
        )

    def _check(self, source: Source, split: Split) -> None:
        where = f"{self.name} ({split}, version {self.version} of the task)"
        root = _where(self.origins[0], self.place)
        hint = f"use the original files, or define a task of your own with --task-root OTHER_NAME={root}"
        if len(source) != self.sizes[split]:
            raise UserError(f"{where} must have {self.sizes[split]:,} images, but {len(source):,} are there: {hint}")
        found = max(len(source.classes), int(source.labels.max(initial=-1)) + 1)
        if found != self.classes:
            raise UserError(f"{where} must have {self.classes} classes, but {found} are there: {hint}")
        counts = np.bincount(source.labels, minlength=self.classes)
        if split == "train" and not counts.all():
            lacking = [source.classes[number] for number in np.flatnonzero(counts == 0)]
            raise UserError(f"{where}: {len(lacking)} classes have no training image: {some(lacking)}; add some")


def images_fingerprint(opened: Opened) -> str:
    """Changes when the images of a split or their order do; labels play no part."""
    digest = hashlib.sha256(opened.identity.encode())
    digest.update("\n".join(opened.source.ids.to_pylist()).encode())
    return digest.hexdigest()


def tasks(
    names: Sequence[str],
    roots: Mapping[str, str | Path] | None = None,
    data_root: str | Path = "data",
    own: Mapping[str, Task] | None = None,
    local_cache: str = "",
) -> dict[str, Task]:
    """Tasks of these names, suites expanded, each once, in order; `vtab1k:NAME` has 1,000 training images of NAME.

    `roots` are folders of single tasks, or folders, patterns or URIs of their shards; a name that is in no table
    defines a task of the user's, whose folder is read. All other files are searched for below `data_root`. `own` are
    tasks of a task file (`load_tasks`). Shards behind URIs are pulled to `local_cache`.
    Raises UserError on unknown names (with the nearest ones) and on folders for tasks that are not asked for.
    """
    roots, own = roots or {}, own or {}
    wanted = dict.fromkeys(name for given in names for name in _expand(given))
    whole = dict.fromkeys(name.removeprefix(PREFIX) for name in wanted)
    unused = [name for name in roots if name not in whole]
    if unused:
        hint = nearest(unused[0], whole)
        raise UserError(f"--task-root {unused[0]}={roots[unused[0]]} is for a task that --tasks lacks; {hint}")
    found: dict[str, Task] = {}
    for name in whole:
        if name in own:
            found[name] = own[name]
        elif name in TABLE:
            found[name] = _from_table(name, roots.get(name), Path(data_root).expanduser(), local_cache)
        elif name in roots:
            found[name] = folder_task(name, roots[name], local_cache)
        else:
            known = [*TABLE, *SUITES, "vtab1k", *own]
            raise UserError(f"no task {name!r}; {nearest(name, known)}; define your own with --task-root {name}=DIR")
    return {name: found[name] if name in found else thousand(found[name.removeprefix(PREFIX)]) for name in wanted}


def _expand(given: str) -> list[str]:
    """Names of the tasks that a name stands for: its own, a suite's, either with `vtab1k:`; vtab1k itself is VTAB's."""
    prefix = PREFIX if given.startswith(PREFIX) or given == "vtab1k" else ""
    name = "vtab" if given == "vtab1k" else given.removeprefix(PREFIX)
    return [f"{prefix}{each}" for each in SUITES.get(name, (name,))]


def thousand(task: Task) -> Task:
    """VTAB-1k of a task; raises UserError when it has too few images, or too many classes."""
    check_thousand(task.name, task.classes, task.sizes)
    sizes: Mapping[Split, int] = {"train": FIT, "val": CHOOSE, "test": task.sizes["test"]}
    return dataclasses.replace(
        task, name=f"{PREFIX}{task.name}", metric="top1", sizes=sizes, origins=(Thousand(task),), refits=True
    )


def _from_table(name: str, root: str | Path | None, data_root: Path, local_cache: str) -> Task:
    line = TABLE[name]
    merged = any(isinstance(origin, ClipBenchmark) and origin.classes for origin in line.origins)
    if root is not None and names_shards(root) and not merged:
        # ImageNet is tested on its validation split, under whatever name.
        renamed: dict[Split, str] = {"test": "val"} if name == "imagenet" else {}
        origin, place = Shards(str(root), renamed, cache=local_cache), Place(Path(str(root)), True)
        return Task(name, line.version, line.classes, line.metric, line.citation, line.sizes, (origin,), place)
    place = Place(data_root, False) if root is None else Place(Path(root).expanduser(), True)
    if root is not None and not place.root.is_dir():
        raise UserError(f"--task-root {name}={root}: there is no such folder")
    origins = line.origins
    if line.subset is None and name != "imagenet":
        # Copies of the hub's files, or images that the user has sorted into train/ and test/.
        hubs = [origin for origin in origins if isinstance(origin, Hub)]
        copies = [Files(hub.splits, hub.image, hub.label, (name,)) for hub in hubs]
        origins = (*origins, *copies, Files(folders=(name,)))
    about = (line.metric, line.citation, line.sizes)
    return Task(name, line.version, line.classes, *about, origins, place, subset=line.subset)


def _where(origin: Origin, place: Place) -> str:
    """What the user gave for a task: a URI is no path."""
    return origin.root if isinstance(origin, Shards) else str(place.root)


def folder_task(name: str, root: str | Path, local_cache: str = "") -> Task:
    """A user's own task: a folder of train/, test/ and perhaps val/, or Parquet files or shards of these names."""
    if names_shards(root):
        return _own(name, Shards(str(root), cache=local_cache), Place(Path(str(root)), True), Entry())
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"--task-root {name}={root}: there is no such folder")
    return _own(name, Files(), Place(root, True), Entry())


@dataclasses.dataclass(frozen=True)
class Entry:
    """One task of a task file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    root: str = ""
    """Folder with split folders, Parquet files or shards, relative to the task file; or a URI of shards."""
    hub: str = ""
    """Or: id of a data set on the Hugging Face hub."""
    config: str = ""
    """hub: configuration, if it has several."""
    train: str = "train"
    """Name of the training split."""
    val: str = ""
    """Name of the validation split; empty: val, validation, valid or dev if there is one."""
    test: str = "test"
    """Name of the test split."""
    image: str = "image"
    """Column of the image, in tables."""
    label: str = "label"
    """Column of the label, in tables and metadata.jsonl."""
    metric: Metric = "top1"
    version: Annotated[int, Field(ge=1)] = 1
    classes: int = 0
    """Number of classes; 0 takes what is there."""
    citation: str = "the user's own"


def load_tasks(path: str | Path) -> dict[str, Task]:
    """Tasks of a YAML file: a mapping from names to entries, such as `mushrooms: {root: data, metric: top1}`.

    Raises UserError on unknown keys (with the nearest ones), bad values and data that is not there.
    """
    path = Path(path).expanduser()
    try:
        tree: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise UserError(f"{path} must map names of tasks to their entries, such as mushrooms: {{root: data}}")
    found: dict[str, Task] = {}
    for name, fields in tree.items():
        if name in TABLE or name in SUITES or name == "vtab1k" or name.startswith(PREFIX):
            raise UserError(f"{path}: {name} is a task of the table: choose another name")
        entry = _read_entry(path, name, fields)
        if bool(entry.root) == bool(entry.hub):
            raise UserError(f"{path}: {name} must have either root (a folder) or hub (a data set's id)")
        splits: dict[Split, str] = {"train": entry.train, "test": entry.test}
        if entry.val:
            splits["val"] = entry.val
        root = entry.root if is_uri(entry.root) else str((path.parent / Path(entry.root).expanduser()).absolute())
        if entry.hub:
            origin: Files | Hub | Shards = Hub(entry.hub, splits, entry.image, entry.label, entry.config)
            place = Place(path.parent, False)
        elif names_shards(root):
            origin, place = Shards(root, splits, entry.label), Place(Path(root), True)
        else:
            origin, place = Files(splits, entry.image, entry.label), Place(Path(root), True)
        found[name] = _own(name, origin, place, entry)
    return found


def _read_entry(path: Path, name: str, fields: Any) -> Entry:
    try:
        return TypeAdapter(Entry).validate_python(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = [item.name for item in dataclasses.fields(Entry)]
            raise UserError(f"{path}: {name} has no key {key!r}; {nearest(key, known)}") from None
        message = problem["msg"][0].lower() + problem["msg"][1:]
        raise UserError(f"{path}: {name}{'.' * bool(key)}{key} is {problem['input']!r}: {message}") from None


def _own(name: str, origin: Files | Hub | Shards, place: Place, entry: Entry) -> Task:
    """Looks into the data for the sizes, so that later changes of it are noticed."""
    try:
        splits: Mapping[Split, str] = origin.splits
        if not isinstance(origin, Hub):
            splits = origin.names(place) if isinstance(origin, Files) else origin.names()
        opened: dict[Split, Opened] = {split: origin.open(split, place) for split in splits}
    except Missing as error:
        raise UserError(f"task {name}: {error}; {origin.help(place) or _LAYOUT}") from None
    sources: dict[Split, Source] = {split: each.source for split, each in opened.items()}
    sizes: dict[Split, int] = {split: len(source) for split, source in sources.items()}
    empty = [split for split, size in sizes.items() if not size]
    if empty:
        raise UserError(f"task {name}: {_where(origin, place)} has no images in {' and '.join(empty)}")
    classes = entry.classes or len(sources["train"].classes)
    if classes < 2:
        raise UserError(f"task {name}: {_where(origin, place)} has one class alone: there is nothing to tell apart")
    digest = hashlib.sha256(f"decoding {DECODING} ".encode())
    for each in opened.values():
        digest.update(images_fingerprint(each).encode() + each.source.labels.tobytes())
    about = (entry.metric, entry.citation, sizes)
    left_out = tuple(dict.fromkeys(f"{name}: {what}" for source in sources.values() for what in source.left_out))
    task = Task(name, entry.version, classes, *about, (origin,), place, digest.hexdigest(), left_out=left_out)
    for split, source in sources.items():
        task._check(source, split)
    return task


def split_rows(task: Task, labels: Rows, n_train: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to fit on and rows to select on, of the images that selection may see, (N,) labels together.

    The first `n_train` rows are the official training split, the rest the official validation split. Without one,
    a fifth of train (a tenth above 50,000 images), nearly the same share of each class, drawn by `seed`, is taken;
    a class with one image stays in train.
    """
    rows = np.arange(len(labels))
    if task.has_val:
        return rows[:n_train], rows[n_train:]
    share = _LARGE_SHARE if len(labels) > _LARGE else _VALIDATION_SHARE
    chosen = mark_share(labels, share, seed)
    if not chosen.any():
        raise UserError(f"{task.name} has too few training images to take validation images from: add a val split")
    return rows[~chosen], rows[chosen]
