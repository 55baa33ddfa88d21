"""The images below a folder, and the other files there: the one list of files and table of suffixes."""

import heapq
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tt_ray.terminal.errors import UserError, reason, shown

_NO_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"})
"""Formats that Pillow knows by name, or writes, but does not decode; EPS it leaves to Ghostscript, which runs what the
file says."""
_NOT_OURS = frozenset(
    {"@eadir", "__macosx", "lost+found", "#recycle", "@recycle", "$recycle.bin", "system volume information"}
)
"""Folders that storage devices and archive programs leave between images: thumbnails, forks and deleted files."""
_SHOWN = 6


@dataclass(frozen=True)
class Listing:
    """Files below a folder, as posix paths relative to it."""

    images: list[str]
    """Files of which Pillow reads the format, by their suffix; sorted."""
    others: list[str]
    """All other files that are not hidden, in no order."""
    unread: tuple[str, ...]
    """Folders directly in it without an image in them, empty ones included; sorted."""
    aside: tuple[str, ...]
    """Sentences on what was ignored: hidden files, folders of thumbnails, links."""

    def left_out(self, read: Iterable[str] = ()) -> tuple[str, ...]:
        """Sentences on all files that are not read but metadata, which have their own; `read` are others that are."""
        read = set(read)
        rest = [
            name
            for name in self.others
            if name not in read and not os.path.basename(name).lower().startswith("metadata.")
        ]
        files = (f"{len(rest)} files of no known image format ({by_suffix(rest)})",) if rest else ()
        return files + self.aside

    def check_folders(self, root: Path) -> None:
        """Raises UserError naming the folders directly in `root` without an image: a class would vanish."""
        if not self.unread or not self.images:
            return
        name = self.unread[0]
        there = [file for file in self.others if file.startswith(f"{name}/")]
        more = f" (and in {len(self.unread) - 1} more folders)" if len(self.unread) > 1 else ""
        raise UserError(
            f"no image can be read in class folder {root / name}{more}, which holds {by_suffix(there) or 'no files'}: "
            "convert them to a format that Pillow reads (.heic: pip install pillow-heif), or move the folder away"
        )


def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the formats that Pillow decodes, those of its plug-ins included."""
    from tt_ray.data.sources import decoding  # noqa: F401 (loads the plug-ins)

    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name not in _NO_PIXELS)


def is_set_aside(name: str) -> bool:
    """Whether a file or folder of this name is no part of the images: hidden, or made by a device or an archive."""
    return name.startswith(".") or name.lower() in _NOT_OURS


def by_suffix(files: Iterable[str]) -> str:
    """Counts of files by suffix, the most frequent first: `12 .heic, 1 .txt`."""
    found = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name in files)
    counts = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    more = f", {sum(count for _, count in counts[_SHOWN:])} others" if len(counts) > _SHOWN else ""
    return ", ".join(f"{count} {shown(suffix)}" for suffix, count in counts[:_SHOWN]) + more


def list_images(root: Path) -> Listing:
    """Lists the files below a folder.

    Each folder is listed once, whatever links lead to it: under its own name where it lies below `root`, so that its
    images have the ids that they would have without links, and otherwise under the first link in sorted order.

    Raises:
        UserError: When a folder cannot be listed, or a name is not UTF-8 (image ids are text).
    """
    suffixes = image_suffixes()
    images: list[str] = []
    others: list[str] = []
    full, empty = set[str](), set[str]()
    aside: Counter[str] = Counter()
    # A link to a folder that `root` lies in leads to everything again.
    seen = {_identity(folder) for folder in root.resolve().parents}
    folders, links = [""], list[str]()
    while folders or links:  # links last: a folder that is there keeps its own name
        prefix = folders.pop() if folders else heapq.heappop(links)
        identity = _identity(root / prefix)
        if identity in seen:
            aside["links to folders that are listed already"] += 1
            continue
        seen.add(identity)
        found = len(images)
        entries = _entries(root / prefix)
        if prefix and not entries:
            aside["empty folders"] += 1
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                aside["hidden files and folders"] += 1
            elif _is_folder(entry):
                if is_set_aside(name):
                    aside[f"folders {name}"] += 1
                elif entry.is_symlink():
                    heapq.heappush(links, f"{prefix}{name}/")
                else:
                    folders.append(f"{prefix}{name}/")
            elif not entry.is_symlink() and not entry.is_file():
                aside["pipes, sockets or devices"] += 1
            elif name[name.rfind(".") :].lower() in suffixes:
                images.append(prefix + name)
            else:
                others.append(prefix + name)
        if prefix:
            top = prefix.split("/", 1)[0]
            (full if len(images) > found else empty).add(top)
    _check_names(root, images + others)
    sentences = tuple(f"{count} {what}" for what, count in sorted(aside.items()))
    return Listing(sorted(images), others, tuple(sorted(empty - full)), sentences)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise UserError(f"cannot list {shown(folder)}: {reason(error)}") from None
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"cannot list {shown(folder)}: {reason(error)}; make it readable, or move it away") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; as an image, reading it says so
        return False


def _check_names(root: Path, names: list[str]) -> None:
    try:
        "\n".join([str(root), *names]).encode()
    except UnicodeEncodeError:
        paths = (str(root), *(str(root / name) for name in names))
        bad = next(path for path in paths if any("\ud800" <= sign <= "\udfff" for sign in path))
        raise UserError(
            f"the name of {shown(bad, 1000)} is not UTF-8, so it cannot be an image id: rename it"
        ) from None
