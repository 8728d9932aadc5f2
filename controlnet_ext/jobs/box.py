"""A sink that grows: what is finished goes to the end of one file, in order, and a journal says how far it is whole."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from .pictures import Picture, Result
from .tars import member, members_of

CHUNK = 2**20


class Form(Protocol):
    """What becomes of the members, once all are there."""

    def name(self, picture: Picture, ending: str) -> str:
        """A member's name."""

    def files(self, part: Path) -> list[tuple[Path, Path]]:
        """The files that come of it, by the names they have first and in the end."""

    def conclude(self, part: Path) -> None:
        """Writes these files under their first names. The same part gives the same bytes."""


def as_it_is(picture: Picture, files: dict[str, bytes]) -> dict[str, bytes]:
    """A store that leaves all to the sink."""
    return files


def indexed(part: Path) -> Iterator[tuple[int, dict[str, bytes]]]:
    """The members of a part that are called `<index>.<ending>`, by their index and how they end."""
    if part.stat().st_size == 0:
        return
    with tarfile.open(part) as tar:
        for index, members in groupby(members_of(tar), lambda info: info.name.partition(".")[0]):
            yield int(index), {m.name.partition(".")[2]: tar.extractfile(m).read() for m in members}  # type: ignore


class Box:
    """Members of a tar in the file `part`, a line in `journal` for each picture: where its members end, the CRC-32 of
    all bytes up to there, its name, key and errors. What follows the last line whose CRC holds is cut off."""

    store = staticmethod(as_it_is)

    def __init__(self, form: Form, part: Path, journal: Path):
        self._form, self._part = form, part
        rows = _rows(journal)
        self.finished = bool(rows) and rows[-1] == {"finished": True}
        if self.finished:
            _rename(form.files(part))
            part.unlink(missing_ok=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        self._rows = rows[:-1] if self.finished else _true(rows, part)
        self.start = len(self._rows)
        self._end = self._rows[-1]["end"] if self._rows else 0
        self._crc = self._rows[-1]["crc"] if self._rows else 0
        self._journal = open(journal, "w", buffering=1)  # noqa: SIM115  closed by close
        self._journal.writelines(json.dumps(row) + "\n" for row in rows[: self.start + self.finished])
        self._file = open(part if not self.finished else os.devnull, "ab", buffering=0)  # noqa: SIM115
        if not self.finished:
            self._file.truncate(self._end)

    def before(self) -> Iterator[Result]:
        """The results of earlier runs, without files."""
        for i, row in enumerate(self._rows):
            yield Result(Picture(i, row["key"], row["name"], None), {}, tuple(row["errors"]))

    def done(self, picture: Picture) -> bool:
        return picture.index < self.start

    def add(self, result: Result) -> None:
        picture = result.picture
        for ending, content in result.files.items():
            written = memoryview(member(self._form.name(picture, ending), content))
            self._crc = zlib.crc32(written, self._crc)
            self._end += len(written)
            while written:
                written = written[self._file.write(written) :]
        row = {"end": self._end, "crc": self._crc, "name": picture.name, "key": picture.key, "errors": result.errors}
        self._journal.write(json.dumps(row) + "\n")

    def finish(self) -> None:
        self._file.close()
        self._form.conclude(self._part)
        files = self._form.files(self._part)
        for path in (path for path, _ in files if path.exists()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        self._journal.write(json.dumps({"finished": True}) + "\n")
        _rename(files)
        self._part.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()
        self._journal.close()


def _rename(files: list[tuple[Path, Path]]) -> None:
    for path, name in files:
        if path.exists():
            os.replace(path, name)


def _rows(journal: Path) -> list[dict[str, Any]]:
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be cut short


def _true(rows: list[dict[str, Any]], part: Path) -> list[dict[str, Any]]:
    """The rows whose bytes are in the part: after a power cut, a journal can be ahead of it."""
    held = []
    crc = at = 0
    with open(part, "ab+") as file:
        file.seek(0)
        for row in rows:
            while at < row["end"] and (content := file.read(min(CHUNK, row["end"] - at))):
                crc = zlib.crc32(content, crc)
                at += len(content)
            if (at, crc) != (row["end"], row["crc"]):
                break
            held.append(row)
    return held
