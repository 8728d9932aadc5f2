"""A sink that grows: what is finished goes to the end of one file, in order, and a journal says how far it is whole."""

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
from ..stages import Picture, Result
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


class AsItIs:
    """A store that leaves all to the sink."""

    def __call__(self, picture: Picture, files: dict[str, bytes]) -> dict[str, bytes]:
        return files

    def settle(self, pictures: Iterable[Picture]) -> None: ...


def indexed(part: Path) -> Iterator[tuple[int, dict[str, bytes]]]:
    """The members of a part that are called `<index>.<ending>`, by their index and how they end."""
    if part.stat().st_size == 0:
        return
    with tarfile.open(part) as tar:
        for index, members in groupby(members_of(tar), lambda info: info.name.partition(".")[0]):
            yield int(index), {m.name.partition(".")[2]: tar.extractfile(m).read() for m in members}  # type: ignore


def box(form: Form, part: Path, journal: Path) -> Box | Made:
    """The sink as earlier runs left it."""
    rows = lines(journal)
    if not rows or rows[-1] != {"finished": True}:
        return Box(form, part, journal, rows)
    _rename(form.files(part))  # it may have been killed before it did
    part.unlink(missing_ok=True)
    return Made(rows[:-1])


class Made:
    """A sink that an earlier run finished."""

    store = AsItIs()
    finished = True

    def __init__(self, rows: list[dict[str, Any]]):
        self._rows, self.start = rows, len(rows)

    def before(self) -> Iterator[Result]:
        return _results(self._rows)

    def done(self, picture: Picture) -> bool:
        return True

    def add(self, result: Result) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Box:
    """Members of a tar in the file `part`, a line in `journal` for each picture: where its members end, the CRC-32 of
    all bytes up to there, its name, key and errors. What follows the last line whose CRC holds is cut off."""

    store = AsItIs()
    finished = False

    def __init__(self, form: Form, part: Path, journal: Path, rows: list[dict[str, Any]]):
        self._form, self._part = form, part
        part.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(part, "ab+", buffering=0)  # noqa: SIM115  both are closed by close
        self._rows = _true(rows, self._file)
        self.start = len(self._rows)
        last = self._rows[-1] if self._rows else {"end": 0, "crc": 0}
        self._end, self._crc = last["end"], last["crc"]
        self._file.truncate(self._end)
        self._journal = open(journal, "w", buffering=1)  # noqa: SIM115
        self._journal.writelines(json.dumps(row) + "\n" for row in self._rows)

    def before(self) -> Iterator[Result]:
        return _results(self._rows)

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


def _results(rows: list[dict[str, Any]]) -> Iterator[Result]:
    for i, row in enumerate(rows):
        yield Result(Picture(i, row["key"], row["name"], None), {}, tuple(row["errors"]))


def lines(journal: Path) -> list[Any]:
    """The lines of a journal, as far as they are whole: the last may be cut short, or more after a power cut."""
    rows: list[Any] = []
    for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else []:
        try:
            rows.append(parse_json(line, "a line"))
        except ValueError:
            break
        if not line.endswith(b"\n"):
            return rows[:-1]
    return rows


def _true(rows: list[dict[str, Any]], part: BinaryIO) -> list[dict[str, Any]]:
    """The rows whose bytes are in the part: after a power cut, a journal can be ahead of it."""
    held = []
    crc = at = 0
    part.seek(0)
    for row in rows:
        while at < row["end"] and (content := part.read(min(CHUNK, row["end"] - at))):
            crc = zlib.crc32(content, crc)
            at += len(content)
        if (at, crc) != (row["end"], row["crc"]):
            break
        held.append(row)
    return held
