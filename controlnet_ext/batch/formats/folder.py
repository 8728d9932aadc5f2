"""Pictures that are files, and their maps as files in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ...files.disk import settle, write_atomically
from ..inputs import File
from ..request import target
from ..stages import Picture, Result
from .journal import lines


@dataclass(frozen=True, eq=False)
class Files:
    """A source of files."""

    files: Sequence[File]

    def __len__(self) -> int:
        return len(self.files)

    def pictures(self, start: int) -> Generator[Picture, None, None]:
        """Those from `start` on."""
        for i in range(start, len(self.files)):
            path, key, mask = self.files[i]
            yield Picture(i, key, path, path, mask)


@dataclass(frozen=True)
class Place:
    """Stores files in a folder, each whole or not at all. What is left of them after kill -9 begins with `.` and
    `mark`."""

    folder: str
    mark: str

    def __call__(self, picture: Picture, files: dict[str, bytes]) -> dict[str, bytes]:
        for ending, content in files.items():
            path = target(self.folder, picture.key, ending)
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            write_atomically(path, content, overwrite=True, mark=self.mark, settled=False)
        return {}

    def settle(self, pictures: Iterable[Picture]) -> None:
        for folder in {os.path.dirname(target(self.folder, picture.key, "")) or "." for picture in pictures}:
            settle(folder)

    def sweep(self, keys: Collection[str]) -> None:
        """Removes what a job that was killed has left where files with these keys go."""
        for folder in {os.path.dirname(target(self.folder, key, "")) or "." for key in keys}:
            if os.path.isdir(folder):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith(f".{self.mark}") and entry.name.endswith(".part"):
                            Path(entry.path).unlink(missing_ok=True)


class Folder:
    """A sink of files. A picture is done when its files are there; where they may have been there before the job, when
    its key also stands in `journal`, as a line of JSON."""

    start = 0
    finished = False

    def __init__(self, store: Place, endings: Sequence[str], journal: Path | None):
        self.store = store
        self._endings = endings
        self._keys: set[str] | None = None
        self._file: TextIO | None = None
        if journal is not None:
            self._keys = set(lines(journal))
            self._file = open(journal, "w")  # noqa: SIM115  closed by close
            self._file.writelines(json.dumps(key) + "\n" for key in self._keys)

    def before(self) -> Iterable[Result]:
        return ()

    def done(self, picture: Picture) -> bool:
        if self._keys is not None and picture.key not in self._keys:
            return False
        return all(os.path.lexists(target(self.store.folder, picture.key, ending)) for ending in self._endings)

    def add(self, result: Result) -> None:
        if self._file is not None and not result.errors:
            self._file.write(json.dumps(result.picture.key) + "\n")
            self._file.flush()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
