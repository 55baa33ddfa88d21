"""Which files data.root names where the source is webdataset: a folder, a pattern or a URI of tars, and their index."""

import fnmatch
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import BinaryIO, cast

import pyarrow as pa

from tt_ray.config import DataConfig
from tt_ray.data.sources.tar_index import INDEX, ShardFile, write_index
from tt_ray.io.files import new_file
from tt_ray.io.local_copy import LocalCopy, Piece, cache_folder
from tt_ray.io.remote import Remote, RemoteReader, unreadable
from tt_ray.io.storage import is_uri
from tt_ray.terminal.errors import UserError, reason, some

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_QUERY = re.compile(r"\?(?=[\w.]+=)")
_MARKS = re.compile(r"[*?\[{]")
_MOST_NAMES = 1_000_000


@dataclass(frozen=True)
class ShardFiles:
    """Shards, and where they and their index lie. Can be pickled."""

    place: str
    """Their folder, as errors show it."""
    sizes: dict[str, int]
    """Bytes of each shard by its path in the folder, sorted."""
    whole: bool
    """These are all shards of the folder: the index must name no others."""
    index: str
    """File or URI of the index, which may be missing."""
    out: str
    """The argument of tt_ray.pack that writes the index there."""
    cache: Path
    """Folder of copies on this machine; used where something lies behind a URI."""
    folder: Path | None = None
    remote: Remote | None = None
    """Where the shards lie: one of the two."""

    def stream(self, name: str) -> BinaryIO:
        """A shard, to be read once from its beginning."""
        if self.remote is not None:
            return cast(BinaryIO, RemoteReader(self.remote, name))
        return self.path(name).open("rb")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns an OSError of reading into a UserError."""
        try:
            yield
        except OSError as error:
            if self.remote is not None:
                raise unreadable("data.root", self.place, error) from None
            raise UserError(f"cannot read {error.filename or self.place}: {reason(error)}") from None

    def path(self, name: str) -> Path:
        """A shard of a folder of this machine."""
        assert self.folder is not None
        return self.folder / name

    def file(self, name: str, shard: ShardFile) -> Path:
        """Where a shard is read. Copies have their checksum in their names: a run keeps those that it began with."""
        if self.remote is None:
            return self.path(name)
        return self.cache / f"{name.removesuffix('.tar')}.{shard.sha256[:12]}.tar"

    def local_copy(self, shards: Mapping[str, ShardFile]) -> LocalCopy | None:
        """What pulls these shards to this machine; None where they lie in a folder."""
        if self.remote is None:
            return None
        pieces = {
            self.file(name, shard).relative_to(self.cache).as_posix(): Piece(name, shard.bytes, shard.sha256)
            for name, shard in shards.items()
        }
        return LocalCopy(self.remote, self.cache, pieces)

    def fetch_index(self) -> Path | None:
        """The index on this machine, copied anew when the one behind a URI has changed; None where there is none."""
        if not is_uri(self.index):
            return Path(self.index) if Path(self.index).exists() else None
        folder, name = _last(self.index)
        remote = Remote.open(folder, "data.index")
        try:
            if (info := remote.info(name)) is None:
                return None
            state = blake2b(f"{folder} {info.size} {info.mtime_ns}".encode(), digest_size=6).hexdigest()
            path = self.cache / f"index-{state}.parquet"
            if path.exists():
                return path
            content = remote.read(name)
        except OSError as error:
            raise unreadable("the index", f"{remote.uri}/{name}", error) from None
        try:
            with new_file(path, durable=False) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason(error)}; choose another --data.local_cache") from None
        return path

    def write_index(self, table: pa.Table) -> None:
        """Writes the index where it belongs. Raises UserError when it cannot be written."""
        try:
            if not is_uri(self.index):
                write_index(table, Path(self.index))
                return
            folder, name = _last(self.index)
            with TemporaryDirectory() as here:
                write_index(table, path := Path(here) / INDEX)
                Remote.open(folder, "data.index").upload(name, path.read_bytes())
        except OSError as error:
            raise UserError(
                f"cannot write {self.index}: {reason(error)}; make its folder writable, or write it elsewhere with "
                "`python -m tt_ray.pack --index-only --out DIR` and pass --data.index DIR"
            ) from None


def find_shards(config: DataConfig) -> ShardFiles:
    """The shards that data.root names: all .tar files below a folder or URI, or those of a pattern.

    A pattern may hold `*`, `?`, `[01]`, `{a,b}` and `{000000..001023}`; files that braces list must all be there.

    Raises:
        UserError: data.root names no folder or pattern of tars, or cannot be read.
    """
    if not config.root:
        raise UserError("data.root is empty: name the folder of the shards with --data.root")
    there, pattern = split_pattern(config.root)
    names = [] if pattern is None else expand_braces(pattern)
    cache = cache_folder(config.local_cache, there.partition("?")[0] if is_uri(there) else there)
    index, out = _index_place(config.index, there)
    if is_uri(there):
        remote, folder = Remote.open(there, "data.root"), None
        try:
            listed = {name: info.size for name, info in remote.files().items() if name.endswith(".tar")}
        except OSError as error:
            raise unreadable("data.root", remote.uri, error) from None
        place = remote.uri
    else:
        remote, folder = None, Path(there)
        place, listed = str(folder), _listed(folder, names)
    found = listed if pattern is None else _chosen(names, listed, config.root)
    if not found:
        raise UserError(
            f"data.root {config.root} is no folder of .tar files, nor a pattern that finds any: check --data.root"
        )
    return ShardFiles(place, dict(sorted(found.items())), pattern is None, index, out, cache, folder, remote)


def _listed(folder: Path, names: list[str]) -> dict[str, int]:
    """Sizes of a folder's shards; with `names`, of these patterns alone."""
    paths = {
        path
        for name in names or ["**/*.tar"]
        for path in (folder.glob(name) if re.search(r"[*?\[]", name) else [folder / name])
    }
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}


def _chosen(names: list[str], listed: Mapping[str, int], root: str) -> dict[str, int]:
    """The shards that patterns name. Raises UserError where one that is named in full is not there."""
    found: dict[str, int] = {}
    lost = []
    for name in names:
        if re.search(r"[*?\[]", name):
            depth = len(PurePosixPath(name).parts)
            fits = [each for each in fnmatch.filter(listed, name) if len(PurePosixPath(each).parts) == depth]
            found |= {each: listed[each] for each in fits}
        elif name in listed:
            found[name] = listed[name]
        else:
            lost.append(name)
    if lost and (found or len(names) > 1):
        raise UserError(f"data.root {root} names {len(lost)} shards that are not there: {some(lost)}")
    return found


def split_pattern(root: str) -> tuple[str, str | None]:
    """The folder (or its URI) that data.root names, and the pattern of shards in it; None where it takes all.

    >>> split_pattern("s3://bucket/wds/train-{00..12}.tar?region=us-east-1")
    ('s3://bucket/wds?region=us-east-1', 'train-{00..12}.tar')
    """
    if not is_uri(root):
        path = Path(root).expanduser().absolute()
        if path.is_dir():
            return str(path), None
        fixed = 1
        while fixed < len(path.parts) - 1 and (Path(*path.parts[: fixed + 1]).is_dir()):
            fixed += 1
        return str(Path(*path.parts[:fixed])), "/".join(path.parts[fixed:])
    where, query = _options(root)
    scheme, path = where.split("://", 1)
    parts = path.rstrip("/").split("/")
    marked = next((place for place, part in enumerate(parts) if _MARKS.search(part)), None)
    if marked is None and parts[-1].endswith(".tar"):
        marked = len(parts) - 1
    if marked is None:
        return f"{scheme}://{'/'.join(parts)}{query}", None
    return f"{scheme}://{'/'.join(parts[:marked])}{query}", "/".join(parts[marked:])


def expand_braces(pattern: str) -> list[str]:
    """The names that `{a,b}` and `{000..127}` stand for, as shells and the webdataset library read them.

    Raises:
        UserError: They are too many, or a range is empty.
    """
    names = [pattern]
    while found := _BRACES.search(names[0]):
        if found[1] is None:
            words = found[3].split(",")
        else:
            first, last = int(found[1]), int(found[2])
            if not first <= last < first + _MOST_NAMES:
                raise UserError(f"data.root: {found[0]} stands for no range of shards, or for too many: check it")
            words = [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
        if len(words) * len(names) > _MOST_NAMES:
            raise UserError(f"data.root: {pattern} stands for more than {_MOST_NAMES:,} shards: check it")
        names = [name.replace(found[0], word, 1) for name in names for word in words]
    return names


def _options(uri: str) -> tuple[str, str]:
    """A URI and its options: a question mark may also be a mark of a pattern."""
    found = _QUERY.search(uri)
    return (uri, "") if found is None else (uri[: found.start()], uri[found.start() :])


def _last(uri: str) -> tuple[str, str]:
    """The URI of the folder of a file, and the file's name."""
    where, query = _options(uri)
    folder, _, name = where.rpartition("/")
    return folder + query, name


def _index_place(given: str, folder: str) -> tuple[str, str]:
    """File or URI of the index, and the argument that writes it there: data.index, or next to the shards."""
    where, query = _options(given or folder) if is_uri(given or folder) else (given or folder, "")
    file = where if where.endswith(".parquet") else f"{where.rstrip('/')}/{INDEX}"
    if is_uri(where):
        return file + query, f" --out '{given}'" if given else ""
    path = Path(file).expanduser().absolute()
    return str(path), f" --out '{given}'" if given else ""
