"""WebDataset shards: tar files in which consecutive members `<key>.<field>` are a sample."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import one_line
from ...files.disk import open_regular_file
from ...files.image_reader import IMAGE_FILE_LIMIT
from ..inputs import IMAGE_SUFFIXES
from ..stages import InputImage
from .lists import MASK_COLUMN

MEMBER_NAME = re.compile(
    r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL
)  # key and field: the name up to its first dot, the rest
TAR_ERRORS = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RecursionError,
    zlib.error,
    lzma.LZMAError,
)  # what tarfile raises on hostile files
FREE_BYTES, UNPACKED_PER_BYTE = 2**26, 32  # that a compressed shard may unpack into: so many, and so many for each byte
FREE_MEMBERS, BYTES_PER_MEMBER = 4096, 32  # a compressed header takes more
MAX_EXTENDED_HEADER = 2**16  # bytes, of a long name or of PAX
SAMPLE_IMAGE_FIELDS = {suffix[1:] for suffix in IMAGE_SUFFIXES}


@dataclass(frozen=True, eq=False)
class TarSource:
    """A source of the samples of a shard, plain or compressed.

    The image of a sample is its first field with a suffix of images, such as png or jpg; with `needs_mask` its mask is
    the first such field after `mask.`, such as mask.png.
    """

    path: str
    needs_mask: bool = False

    def iter_images(self, start: int) -> Generator[InputImage, None, None]:
        """Yield the images from position `start` on; where the file is broken, an image with that error is the last."""
        i = -1
        try:
            with open_shard(self.path) as (tar, limit):
                for i, (key, members) in enumerate(groupby(iter_sample_members(tar, limit), lambda part: part[0])):
                    if i >= start:
                        yield InputImage(i, key, f"{self.path}/{key}", *_read_sample(tar, members, self.needs_mask))
        except TAR_ERRORS as error:
            words = one_line(error)  # tarfile lists all compressions that it tried
            reason = ValueError(f"{self.path!r} is broken after {i + 1} samples: {words}")
            if i + 1 >= start:
                yield InputImage(i + 1, "", self.path, reason)


@contextmanager
def open_shard(path: str | os.PathLike[str]) -> Iterator[tuple[tarfile.TarFile, int]]:
    """Open a tar, plain or compressed by gzip, bzip2 or xz; return it and the most members that its bytes pay for.

    Raises what `open_regular_file` raises, and one of `TAR_ERRORS`.
    """
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(6)
        file.seek(0)
        stream: Any = None
        if head.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=file)
        elif head.startswith(b"BZh"):
            stream = bz2.BZ2File(file)
        elif head.startswith(b"\xfd7zXZ\0"):
            stream = lzma.LZMAFile(file)  # noqa: SIM115  nothing to close but the file
        limited_file: Any = file if stream is None else _BoundedStream(stream, FREE_BYTES + UNPACKED_PER_BYTE * size)
        with tarfile.TarFile(fileobj=limited_file, tarinfo=_Member) as tar:
            yield tar, FREE_MEMBERS + size // BYTES_PER_MEMBER


class _BoundedStream:
    """A decompressed stream that is read forwards, up to `limit` bytes."""

    def __init__(self, stream: BinaryIO, limit: int):
        self._stream, self._limit = stream, limit
        self._position = 0  # in the stream
        self._last = b""  # a block before it, which tarfile looks at again
        self._ahead = 0  # bytes of it that are read again

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position - self._ahead

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes. Raises ReadError over the limit."""
        again = self._last[len(self._last) - self._ahead :][:size]
        self._ahead -= len(again)
        content = self._stream.read(size - len(again))
        self._position += len(content)
        if self._position > self._limit:
            raise tarfile.ReadError(f"it unpacks into over {self._limit} bytes, too many for a file of its size")
        self._last = (self._last + content)[-tarfile.BLOCKSIZE :]
        return again + content

    def seek(self, offset: int) -> int:
        """Go forward, or back by up to a block. Raises ReadError further back."""
        if self._position - len(self._last) <= offset <= self._position:
            self._ahead = self._position - offset
        while offset > self.tell() and self.read(min(offset - self.tell(), 2**20)):
            pass
        if offset < self.tell():
            raise tarfile.ReadError("its members are not in order")
        return self.tell()


class _Member(tarfile.TarInfo):
    """A member whose headers are bounded. Sparse files, which say more bytes than they have, are refused."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise tarfile.ReadError(f"a member of {self.size} bytes")
        if self.type in _HEADER_TYPES and self.size > MAX_EXTENDED_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes, over the limit of {MAX_EXTENDED_HEADER}")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._refuse_sparse()
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

    def _refuse_sparse(self, *_: Any) -> None:
        raise tarfile.ReadError("a sparse file, which has fewer bytes than it says")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def iter_sample_members(tar: tarfile.TarFile, limit: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, field and header of each member that is a file and has both.

    Raises ReadError where there are over `limit` members, or the tar has no end; and others of `TAR_ERRORS`.
    """
    for count, info in enumerate(iter_members(tar), start=1):
        if count > limit:
            raise tarfile.ReadError(f"it has over {limit} members, too many for a file of its size")
        match = MEMBER_NAME.fullmatch(info.name)
        if match and info.isfile():
            yield match[1], match[2], info
    tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # type: ignore[union-attr]
        raise tarfile.ReadError("it has no end, and is cut short or damaged")  # tarfile takes it for the end


def iter_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar, which does not store them."""
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        yield info


def _read_sample(
    tar: tarfile.TarFile, members: Iterator[tuple[str, str, tarfile.TarInfo]], needs_mask: bool
) -> tuple[Any, Any]:
    """Return the image of a sample and, if it is needed and present, its mask."""
    fields, values = [], dict[str, Any]()
    for _, field, info in members:
        begin, _, suffix = field.lower().rpartition(".")
        if suffix not in SAMPLE_IMAGE_FIELDS or begin not in ("", MASK_COLUMN) or begin in values:
            fields.append(field)
        elif needs_mask or not begin:
            values[begin] = _read_member(tar, info)
        if "" in values and (MASK_COLUMN in values or not needs_mask):
            break
    return values.get("", ValueError(f"no image among the fields {', '.join(fields)}")), values.get(MASK_COLUMN)


def _read_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
    if info.size > IMAGE_FILE_LIMIT:
        return ValueError(f"an image of {info.size / 2**30:.1f} GiB, over the limit of 1 GiB")
    file = tar.extractfile(info)
    return b"" if file is None else file.read()


def encode_member(name: str, content: bytes) -> bytes:
    """Return a file as a member of a tar: the same bytes for the same name and content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return b"".join((info.tobuf(tarfile.PAX_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)))


def encode_end(size: int) -> bytes:
    """Return the end of a tar with `size` bytes of members, as `tarfile` writes it."""
    return bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)


@dataclass(frozen=True)
class TarOutput:
    """The format of a shard with the final path `path`."""

    path: Path

    def member_name(self, image: InputImage, ending: str) -> str:
        """Return `<key>.<ending>`."""
        return f"{image.key}.{ending}"

    def output_files(self, part: Path) -> list[tuple[Path, Path]]:
        """Return the paths of the shard."""
        return [(part, self.path)]

    def finalize(self, part: Path) -> None:
        """Append the end of the tar."""
        with open(part, "ab") as file:
            file.write(encode_end(file.tell()))
