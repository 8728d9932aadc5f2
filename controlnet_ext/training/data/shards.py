"""WebDataset shards: tar files in which consecutive members of one stem are an example, read as a stream.

Only headers and captions are read in order; an image is looked up in its shard when it is its turn, by whoever decodes
it. So a shuffle buffer holds places of images and not images, every process knows the order of all examples, and a
training goes on where it was without decoding what it has seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from ...batch.formats.lists import MAP_COLUMNS
from ...batch.formats.tars import SAMPLE_IMAGE_FIELDS, TAR_ERRORS, iter_sample_members, open_shard
from ...errors import one_line, quote_value
from ...files.disk import open_regular_file, parse_object
from ...files.image_formats import sniff_format
from ...files.image_reader import IMAGE_FILE_LIMIT
from .examples import Example, PackedFile, measure_header
from .rows import CAPTION_LIMIT, TEXT_COLUMNS, Columns, decode_caption, read_text_value
from .tolerance import Tolerance

SHARD_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
COMPRESSED_MARKS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
MAX_SHARDS = 100_000  # that a pattern names
MAX_FIELDS = 64  # members of an example
HASHED_BYTES = 4096  # at the beginning and the end of an image, with its length, that decide on its side of the split
HEADER_BYTES = 2**18  # in which the size of an image stands
MAP_ROLES = (*MAP_COLUMNS, "cond", "conditioning", "control", "hint", "source")
PHOTO_ROLES = ("", "image", "target")
TEXT_FIELDS = ("txt", *TEXT_COLUMNS, *(f"{name}.txt" for name in TEXT_COLUMNS))
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


@dataclass(frozen=True)
class TarMember(PackedFile):
    """A file in a tar that is not compressed."""

    path: str
    member: str
    offset: int
    length: int

    @property
    def name(self) -> str:
        """The tar and the member."""
        return f"{self.path}/{self.member}"

    @property
    def place(self) -> str:
        """The file name of the tar, and the member: images without compression may differ in the middle alone."""
        return f" {Path(self.path).name}/{self.member}"

    def read(self) -> bytes:
        """Return the bytes. Raises ValueError when the tar has become shorter, or over 1 GiB."""
        with open_regular_file(self.path) as file:
            return self.read_from(file, self.length)

    def read_from(self, file: BinaryIO, count: int, skip: int = 0) -> bytes:
        """Return `count` bytes behind the first `skip` from the open tar, or what there is of them in the member.

        Raises ValueError when the tar has become shorter, or the member is over 1 GiB.
        """
        if self.length > IMAGE_FILE_LIMIT:
            raise ValueError(f"{self.name!r} is over 1 GiB, too large for an image")
        file.seek(self.offset + skip)
        count = min(count, self.length - skip)
        content = file.read(count)
        if len(content) < count:
            raise ValueError(f"{self.name!r} is cut short")
        return content


def is_shard_pattern(text: str) -> bool:
    """Return True if the text names shards: a .tar, a pattern with braces of such, or a folder of them."""
    path = Path(text)
    is_tar = text.lower().endswith((SHARD_SUFFIX, *COMPRESSED_SUFFIXES)) and not path.is_dir()
    return is_tar or (path.is_dir() and any(path.glob(f"*{SHARD_SUFFIX}")))


def list_shards(text: str) -> list[Path]:
    """Return the shards of a folder, or of a pattern such as `data/{0000..0099}.tar`, sorted.

    Raises FileNotFoundError for one that is missing, ValueError for over 100,000, or one that is compressed.
    """
    folder = Path(text)
    paths = sorted(folder.glob(f"*{SHARD_SUFFIX}")) if folder.is_dir() else expand_braces(text)
    for path in paths:
        with open_regular_file(path) as file:
            head = file.read(6)
        if head.startswith(COMPRESSED_MARKS):
            raise ValueError(f"{str(path)!r} is compressed, and no place in it can be looked up: unpack it to a .tar")
    return paths


def expand_braces(text: str) -> list[Path]:
    """Return the paths of a pattern: `{0000..0099}` counts, with zeros as at its ends, and `{a,b}` lists.

    Raises ValueError for over 100,000 paths, or a range that falls.
    """
    parts = BRACES.split(text)
    choices: list[list[str]] = []
    count = 1
    for i, part in enumerate(parts):
        match = RANGE.fullmatch(part) if i % 2 else None
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if match and (last < first or last - first >= MAX_SHARDS):
            raise ValueError(f"{{{part}}} in {quote_value(text, 200)}: expected a rising range of up to {MAX_SHARDS}")
        if match:
            choices.append([f"{n:0{len(match[1])}d}" for n in range(first, last + 1)])
        else:
            choices.append(part.split(",") if i % 2 else [part])
        count *= len(choices[-1])
        if count > MAX_SHARDS:
            raise ValueError(f"{quote_value(text, 200)} names over {MAX_SHARDS} shards")
    return [Path("".join(words)) for words in product(*choices)]


@dataclass(frozen=True)
class BrokenSample:
    """A sample of a shard that cannot be an example, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ShardReader:
    """The examples of shards, in the order of their members.

    `share` of them is held out: those the hash of whose image (`HASHED_BYTES` at both ends, and its length) is low, so
    that copies of an image are on one side; and those whose hash is in `held_out`. `needs_size` reads the size of each
    image.
    """

    columns: Columns
    share: float
    needs_size: bool = False
    needs_map: bool = False
    held_out: frozenset[str] = frozenset()

    def iter_shard(self, path: Path, tolerance: Tolerance) -> Iterator[tuple[Example, bool]]:
        """Yield each example, and whether it is held out. What cannot be an example is added to `tolerance`.

        Raises ValueError when that is too much.
        """
        samples = self._iter_samples(path)
        n = 0
        while True:
            try:
                sample = next(samples, None)
            except TAR_ERRORS as error:
                reason = f"{str(path)!r} is broken after {n} examples: {one_line(error, 200)}"
                tolerance.add(str(path), reason)
                return tolerance.check()
            if sample is None:
                return None
            n += 1
            tolerance.streamed += 1
            if isinstance(sample, BrokenSample):
                tolerance.add(sample.name, sample.reason)
                tolerance.check()
            else:
                if sample.sha256 in self.held_out:
                    tolerance.note(f"{sample.name} is also in the data of --validation, and not learnt from")
                yield sample, sample.sha256 in self.held_out or int(sample.sha256[:16], 16) < self.share * 2**64

    def _iter_samples(self, path: Path) -> Iterator[Example | BrokenSample]:
        with open_shard(path) as (tar, limit), open_regular_file(path) as file:
            for key, members in groupby(iter_sample_members(tar, limit), lambda member: member[0]):
                fields: dict[str, TarMember] = {}
                for _, name, info in members:
                    if len(fields) < MAX_FIELDS:
                        fields[name] = TarMember(str(path), info.name, info.offset_data, info.size)
                try:
                    sample: Example | BrokenSample = self._make_example(key, fields, file, f"{path}/{key}")
                except (ValueError, OSError) as error:
                    sample = BrokenSample(f"{path}/{key}", one_line(error))
                yield sample

    def _make_example(self, key: str, fields: dict[str, TarMember], file: BinaryIO, where: str) -> Example:
        name = quote_value(where, 200)
        if ".." in PurePosixPath(key).parts or key.startswith("/"):
            raise ValueError(f"{name} leads out of a folder")
        if len(fields) == MAX_FIELDS:
            raise ValueError(f"{name} has over {MAX_FIELDS - 1} files, too many for an example")
        image = _find_image(fields, self.columns.image, PHOTO_ROLES)
        if image is None:
            raise ValueError(f"{name} has no image among {', '.join(fields):.200}")
        control = _find_image(fields, self.columns.map, MAP_ROLES)
        if control is None and self.needs_map:
            raise ValueError(f"{name} has no map among {', '.join(fields):.200}: expected {key:.80}.map.png, or --map")
        caption = self._read_caption(fields, file, name)
        head = image.read_from(file, HASHED_BYTES)
        digest = hash_ends(head, image.read_from(file, HASHED_BYTES, max(0, image.length - HASHED_BYTES)), image.length)
        size = _measure(image, file) if self.needs_size else None
        return Example(image, caption, control, digest, size)

    def _read_caption(self, fields: dict[str, TarMember], file: BinaryIO, name: str) -> str:
        column = self.columns.text
        texts = [f for f in fields if (f in (column, f"{column}.txt") if column else f in TEXT_FIELDS)]
        if len(texts) > 1:
            raise ValueError(f"{name} has {len(texts)} captions, expected one: {', '.join(texts):.200}")
        if texts:
            return decode_caption(fields[texts[0]].read_from(file, CAPTION_LIMIT + 1), name)
        if "json" not in fields:
            raise ValueError(f"{name} has no caption: expected a .txt, or a .json with text")
        row = parse_object(fields["json"].read_from(file, CAPTION_LIMIT), name)
        return read_text_value(row[self.columns.find_text(row, name)], name)


def hash_ends(head: bytes, tail: bytes, length: int) -> str:
    """Return the SHA-256 of the first and the last `HASHED_BYTES` of a file, and its length."""
    return hashlib.sha256(b"".join((head, tail, length.to_bytes(8, "big")))).hexdigest()


def _find_image(fields: dict[str, TarMember], column: str | None, usual: Sequence[str]) -> TarMember | None:
    """Return the image with the role `column`, or with the first of the usual ones: `.png`, `.map.png`."""
    by_role: dict[str, TarMember] = {}
    for name, member in fields.items():
        role, _, suffix = name.lower().rpartition(".")
        if suffix in SAMPLE_IMAGE_FIELDS:
            by_role.setdefault(role, member)
            by_role.setdefault(name, member)
    return next((by_role[role] for role in ([column] if column is not None else usual) if role in by_role), None)


def _measure(image: TarMember, file: BinaryIO) -> tuple[int, int]:
    """Return (height, width) of an image from its header."""
    head, name = image.read_from(file, HEADER_BYTES), repr(image.name)
    format = sniff_format(head[:16])
    if format is None:
        raise ValueError(f"{name} is no image")
    return measure_header(head, format, name)


@dataclass(frozen=True)
class ShardStream:
    """The examples of shards, shuffled anew in each epoch.

    An epoch goes through the shards in a random order; examples leave a buffer of `buffer_size` in a random order. Both
    depend on the seed and the epoch alone. Held-out examples are left out.
    """

    paths: tuple[Path, ...]
    reader: ShardReader
    buffer_size: int = 2048

    @property
    def identity(self) -> str:
        """SHA-256 of names, lengths and beginnings of the shards, the share that is held out, and the columns."""
        rows: list[object] = []
        for path in self.paths:
            with open_regular_file(path) as file:
                rows.append((path.name, os.fstat(file.fileno()).st_size, hashlib.sha256(file.read(2**16)).hexdigest()))
        rows += [self.reader.share, self.buffer_size, vars(self.reader.columns)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def iter_examples(self, seed: int, tolerance: Tolerance, skip: int = 0) -> Iterator[Example]:
        """Yield examples without end, the first `skip` of all left out. Raises ValueError when an epoch has none.

        What is left out costs the headers of two epochs at most: all have as many examples as the first.
        """
        epoch, count = 0, 0
        while True:
            epoch_count = 0
            for example in self._iter_epoch(seed, epoch, tolerance):
                epoch_count += 1
                if epoch_count > skip:
                    yield example
            if not epoch_count:
                raise ValueError(f"{str(self.paths[0])!r} and its like hold no examples to learn from")
            count = count or epoch_count
            skip = max(0, skip - epoch_count)
            epoch += 1 + skip // count
            skip %= count

    def _iter_epoch(self, seed: int, epoch: int, tolerance: Tolerance) -> Iterator[Example]:
        rng = np.random.default_rng([seed, epoch])
        buffer: list[Example] = []
        for i in rng.permutation(len(self.paths)):
            for example, is_held_out in self.reader.iter_shard(self.paths[i], tolerance):
                if is_held_out:
                    continue
                if len(buffer) < self.buffer_size:
                    buffer.append(example)
                    continue
                place = int(rng.integers(self.buffer_size))
                buffer[place], example = example, buffer[place]
                yield example
        for i in rng.permutation(len(buffer)):
            yield buffer[i]

    def find_first(self, count: int, tolerance: Tolerance) -> tuple[list[Example], list[Example]]:
        """Return the first examples to learn from and the first that are held out, up to `count` of each.

        Without a share that is held out, none of the latter is looked for. No more of the shards is read than that
        takes. Raises ValueError when more than `tolerance` of it is broken.
        """
        sets: tuple[list[Example], list[Example]] = ([], [])
        for path in self.paths:
            for example, is_held_out in self.reader.iter_shard(path, tolerance):
                if len(sets[is_held_out]) < count:
                    sets[is_held_out].append(example)
                if len(sets[0]) == count and (not self.reader.share or len(sets[1]) == count):
                    tolerance.check(is_whole=True)
                    return sets
        tolerance.check(is_whole=True)
        return sets
