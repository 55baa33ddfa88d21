"""A task in WebDataset shards: a folder, a pattern or a URI of tars, with the index that training reads too."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from eval.tasks.origins import VALIDATION_NAMES, Missing, Opened, Place, Split
from tt_ray.config import DataConfig
from tt_ray.data.sources.labels import common_classes
from tt_ray.data.sources.registry import open_source
from tt_ray.data.sources.shard_files import find_shards, split_pattern
from tt_ray.data.sources.tar_index import shards_of
from tt_ray.data.sources.webdataset import find_index, in_split
from tt_ray.io.storage import is_uri
from tt_ray.terminal.errors import UserError


def names_shards(root: str | Path) -> bool:
    """Whether what the user gave for a task are shards, rather than a folder of images or tables."""
    if is_uri(str(root)):
        return True
    folder, pattern = split_pattern(str(root))
    if pattern is not None:
        return pattern.endswith(".tar")
    return any(next(Path(folder).glob(tars), None) is not None for tars in ("*.tar", "*/*.tar"))


@dataclasses.dataclass(frozen=True)
class Shards:
    """Shards whose names or folders say train, test and perhaps val (or validation, valid, dev)."""

    root: str
    splits: Mapping[Split, str] = dataclasses.field(default_factory=dict[Split, str])
    """Names of splits that are called otherwise."""
    label: str = "label"
    """Field of `.json` with the label; `.cls` has it otherwise."""
    cache: str = ""
    """Folder of copies of shards that lie behind a URI; empty takes the user's cache."""

    def open(self, split: Split, place: Place) -> Opened:
        """The split; its shards are pulled when its first image is read."""
        names = self.names()
        if split not in names:
            raise UserError(f"{self.root} has no split {split}")
        config = dataclasses.replace(self._config(), train_split=names["train"], val_split=names[split])
        source = open_source(config, "val", False)
        if split != "train":
            called = "validation" if split == "val" else split
            source = common_classes(open_source(config, "train", False), source, self.root, True, called)
        shards = find_shards(config)
        known = shards_of(find_index(shards, config))
        state = sorted((name, *known[name]) for name in shards.sizes if in_split(name, names[split]))
        return Opened(source, f"shards {self.label} {hashlib.sha256(repr(state).encode()).hexdigest()}")

    def help(self, place: Place) -> str:
        return ""

    def names(self) -> dict[Split, str]:
        """Names of the splits that exist. Raises Missing when train or test does not."""
        shards = find_shards(self._config()).sizes
        found: dict[Split, str] = {}
        for split in ("train", "val", "test"):
            asked = self.splits.get(split, split)
            options = VALIDATION_NAMES if asked in VALIDATION_NAMES else (asked,)
            there = [name for name in options if any(in_split(shard, name) for shard in shards)]
            if there:
                found[split] = there[0]
            elif split != "val" or split in self.splits:
                raise Missing(f"{self.root} has no shards of split {asked!r} for {split}: it must be in their names")
        return found

    def _config(self) -> DataConfig:
        return DataConfig(source="webdataset", root=self.root, label_column=self.label, local_cache=self.cache)
