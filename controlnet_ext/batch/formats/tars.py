"""WebDataset shards: tar files in which consecutive members `<key>.<field>` are a sample."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ...errors import one_line
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
    zlib.error,
)  # what tarfile raises
# on hostile files
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
            with tarfile.open(self.path) as tar:
                for i, (key, members) in enumerate(groupby(_iter_sample_members(tar), lambda member: member[0])):
                    if i >= start:
                        yield InputImage(i, key, f"{self.path}/{key}", *_read_sample(tar, members, self.needs_mask))
        except TAR_ERRORS as error:
            words = one_line(error)  # tarfile lists all compressions that it tried
            reason = ValueError(f"{self.path!r} is broken after {i + 1} samples: {words}")
            if i + 1 >= start:
                yield InputImage(i + 1, "", self.path, reason)


def _iter_sample_members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    for info in iter_members(tar):
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
    fields, found = [], dict[str, Any]()
    for _, field, info in members:
        begin, _, suffix = field.lower().rpartition(".")
        if suffix not in SAMPLE_IMAGE_FIELDS or begin not in ("", MASK_COLUMN) or begin in found:
            fields.append(field)
        elif needs_mask or not begin:
            found[begin] = _read_member(tar, info)
        if "" in found and (MASK_COLUMN in found or not needs_mask):
            break
    return found.get("", ValueError(f"no image among the fields {', '.join(fields)}")), found.get(MASK_COLUMN)


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
