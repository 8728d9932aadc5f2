"""A sink that appends results to one file, in order, with a journal of the bytes that are complete."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ...files.disk import parse_json
from ..stages import ImageResult, InputImage
from .tars import encode_member, iter_members

READ_BYTES = 2**20


class OutputFormat(Protocol):
    """The format of the file that is made of all members."""

    def member_name(self, image: InputImage, ending: str) -> str:
        """Return the name of a member."""

    def output_files(self, part: Path) -> list[tuple[Path, Path]]:
        """Return (temporary path, final path) of each file that is made."""

    def finalize(self, part: Path) -> None:
        """Write these files under their temporary paths. The same members give the same bytes."""


class PassThrough:
    """A store that leaves all files to the sink."""

    def __call__(self, image: InputImage, files: dict[str, bytes]) -> dict[str, bytes]:
        return files

    def fsync(self, images: Iterable[InputImage]) -> None:
        """Do nothing."""


def iter_indexed_members(part: Path) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield (index, content by ending) of members called `<index>.<ending>`."""
    if part.stat().st_size == 0:
        return
    with tarfile.open(part) as tar:
        for index, members in groupby(iter_members(tar), lambda info: info.name.partition(".")[0]):
            yield int(index), {m.name.partition(".")[2]: tar.extractfile(m).read() for m in members}  # type: ignore


def open_journaled_output(format: OutputFormat, part: Path, journal: Path) -> JournaledOutput | FinishedOutput:
    """Open the sink in the state that earlier runs left."""
    rows = read_journal(journal)
    if not rows or rows[-1] != {"finished": True}:
        return JournaledOutput(format, part, journal, rows)
    _commit_files(format.output_files(part))  # it may have been killed before it did
    part.unlink(missing_ok=True)
    return FinishedOutput(rows[:-1])


class FinishedOutput:
    """A sink that an earlier run finished."""

    store = PassThrough()
    is_finished = True

    def __init__(self, rows: list[dict[str, Any]]):
        self._rows, self.start_index = rows, len(rows)

    def earlier_results(self) -> Iterator[ImageResult]:
        """Yield the results of earlier runs, without files."""
        return _results_from_rows(self._rows)

    def is_done(self, image: InputImage) -> bool:
        """Return True."""
        return True

    def add(self, result: ImageResult) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None: ...


class JournaledOutput:
    """A sink of members of a tar in the file `part`, with a line in `journal` for each image.

    A line holds the end of the members, the CRC-32 of all bytes up to there, name, key and errors. Bytes behind the
    last line with a correct CRC are cut off.
    """

    store = PassThrough()
    is_finished = False

    def __init__(self, format: OutputFormat, part: Path, journal: Path, rows: list[dict[str, Any]]):
        self._format, self._part = format, part
        part.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(part, "ab+", buffering=0)  # noqa: SIM115  both are closed by close
        self._rows = _verify_rows(rows, self._file)
        self.start_index = len(self._rows)
        last = self._rows[-1] if self._rows else {"end": 0, "crc": 0}
        self._end, self._crc = last["end"], last["crc"]
        self._file.truncate(self._end)
        self._journal = open(journal, "w", buffering=1)  # noqa: SIM115
        self._journal.writelines(json.dumps(row) + "\n" for row in self._rows)

    def earlier_results(self) -> Iterator[ImageResult]:
        """Yield the results of earlier runs, without files."""
        return _results_from_rows(self._rows)

    def is_done(self, image: InputImage) -> bool:
        """Return True if the part holds the members of this image."""
        return image.index < self.start_index

    def add(self, result: ImageResult) -> None:
        """Append the members of a result."""
        image = result.image
        for ending, content in result.files.items():
            remaining = memoryview(encode_member(self._format.member_name(image, ending), content))
            self._crc = zlib.crc32(remaining, self._crc)
            self._end += len(remaining)
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
        row = {"end": self._end, "crc": self._crc, "name": image.name, "key": image.key, "errors": result.errors}
        self._journal.write(json.dumps(row) + "\n")

    def finish(self) -> None:
        """Write the output files and remove the part."""
        self._file.close()
        self._format.finalize(self._part)
        files = self._format.output_files(self._part)
        for path in (path for path, _ in files if path.exists()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        self._journal.write(json.dumps({"finished": True}) + "\n")
        _commit_files(files)
        self._part.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()
        self._journal.close()


def _commit_files(files: list[tuple[Path, Path]]) -> None:
    for path, name in files:
        if path.exists():
            os.replace(path, name)


def _results_from_rows(rows: list[dict[str, Any]]) -> Iterator[ImageResult]:
    for i, row in enumerate(rows):
        yield ImageResult(InputImage(i, row["key"], row["name"], None), {}, tuple(row["errors"]))


def read_journal(journal: Path) -> list[Any]:
    """Return the complete lines of a journal: after a power cut the last ones may be cut short."""
    rows: list[Any] = []
    for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else []:
        try:
            rows.append(parse_json(line, "a line"))
        except ValueError:
            break
        if not line.endswith(b"\n"):
            return rows[:-1]
    return rows


def _verify_rows(rows: list[dict[str, Any]], part: BinaryIO) -> list[dict[str, Any]]:
    """Return the rows whose bytes are in the part: after a power cut the journal can be ahead of it."""
    rows_in_file = []
    crc = at = 0
    part.seek(0)
    for row in rows:
        while at < row["end"] and (content := part.read(min(READ_BYTES, row["end"] - at))):
            crc = zlib.crc32(content, crc)
            at += len(content)
        if (at, crc) != (row["end"], row["crc"]):
            break
        rows_in_file.append(row)
    return rows_in_file
