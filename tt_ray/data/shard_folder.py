"""The folder that images are packed into: on disks that all nodes see, or behind a URI."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from tt_ray.data.sources.tar_index import INDEX, write_index
from tt_ray.io.local_copy import cache_folder
from tt_ray.io.one_writer import beside, inside
from tt_ray.io.remote import Remote
from tt_ray.io.resumable import disk_problems
from tt_ray.io.storage import is_uri, local_root


@dataclass(frozen=True)
class ShardFolder:
    """Where shards and their index are written. Can be pickled."""

    place: str
    """As errors and the last line show it."""
    unfinished: Path
    """Folder on the driver's machine that keeps what is done until all is."""
    claims: Path
    """Where commands that write it announce themselves."""
    remote: Remote | None = None

    @classmethod
    def open(cls, out: str, cache: str) -> "ShardFolder":
        """The folder of `--out`; raises UserError when it is a URI that cannot be used."""
        if not is_uri(out):
            path = Path(out).expanduser().absolute()
            return cls(str(path), path.with_name(f"{path.name}.unfinished"), beside(path))
        remote = Remote.open(out, "--out")
        return cls(remote.uri, cache_folder(cache, f"{remote.uri}.unfinished"), inside(local_root(out)), remote)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields a file to write, which then appears in the folder. Raises UserError when it cannot be written."""
        if self.remote is None:
            with disk_problems(path := Path(self.place) / name):
                yield path
            return
        with disk_problems(Path(self.place) / name), TemporaryDirectory() as folder:
            yield (path := Path(folder) / "file")
            self.remote.upload(name, path.read_bytes())

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it, by its path. Raises UserError when it cannot be read."""
        with disk_problems(Path(self.place)):
            if self.remote is not None:
                return {name: info.size for name, info in self.remote.files().items()}
            root = Path(self.place)
            return {
                path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*") if path.is_file()
            }

    def write_index(self, table: pa.Table) -> None:
        """Writes the index: last, as it says that all shards are there."""
        with self.writing(INDEX) as path:
            write_index(table, path)
