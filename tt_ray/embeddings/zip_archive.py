"""TextTeacher's all_encodings.zip: one embedding for each `<image file name>.emb.npy`. Nothing in it is trusted."""

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tt_ray.terminal.errors import UserError, one_line, reason

_SUFFIX = ".emb.npy"
# A member holds one embedding, which has no more bytes than this; a compressed member could claim any number.
_MEMBER_BYTES = 1 << 20


class Archive:
    """An open archive, as `open_archive` returns it."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self.members = self._list()
        """The embeddings, in the order of the archive."""
        self.names: pa.StringArray = pa.array([each.filename.removesuffix(_SUFFIX) for each in self.members])
        """The image file name of each member."""

    def read(self, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
        """One embedding, (D,); raises UserError when the member holds something else."""
        try:
            array = np.lib.format.read_array(io.BytesIO(self._file.read(member)), allow_pickle=False)
        except (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            cause = one_line(error)
            raise UserError(
                f"{self.path}: {member.filename} cannot be read ({cause}); fetch the archive again"
            ) from None
        if array.dtype.kind != "f" or not array.size or array.size != max(array.shape, default=0):
            found = f"{array.dtype} of shape {array.shape}"
            raise UserError(f"{self.path}: {member.filename} is {found}, which is no embedding")
        return array.reshape(-1)

    def read_all(self, members: Sequence[zipfile.ZipInfo], dim: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Embeddings of equal length, (len(members), dim); raises UserError when one is of another length."""
        table = np.empty((len(members), dim), dtype)
        for row, member in enumerate(members):
            vector = self.read(member)
            if len(vector) != dim:
                raise UserError(f"{self.path}: {member.filename} has {len(vector)} numbers, but others have {dim}")
            with np.errstate(over="ignore"):  # what is infinite then is refused with its id when the store is written
                table[row] = vector
        return table

    def _list(self) -> list[zipfile.ZipInfo]:
        members = [member for member in self._file.infolist() if member.filename.endswith(_SUFFIX)]
        for member in members:
            inside = PurePosixPath(member.filename)
            if inside.is_absolute() or ".." in inside.parts or "\\" in member.filename:
                raise UserError(f"{self.path}: {member.filename!r} points outside of the archive, so it is not read")
            if member.file_size > _MEMBER_BYTES:
                size = f"{member.file_size} bytes"
                raise UserError(f"{self.path}: {member.filename} has {size}, which is no embedding")
        if not members:
            raise UserError(f"{self.path} has no <image file name>{_SUFFIX}")
        return sorted(members, key=lambda member: member.header_offset)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens an archive for reading in place.

    Raises UserError when it cannot be read, is no zip file, has no embeddings, or has members that point outside of it.
    """
    try:
        file = zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"cannot read archive {path}: {reason(error)}") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is no intact zip file ({error}): fetch it again") from None
    with file:
        yield Archive(path, file)
