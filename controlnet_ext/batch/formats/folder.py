"""Image files as a source, and maps as files in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ...files.disk import fsync_dir, write_atomically
from ..inputs import InputFile
from ..request import result_path
from ..stages import ImageResult, InputImage
from .journal import read_journal


@dataclass(frozen=True, eq=False)
class FileSource:
    """A source of image files."""

    files: Sequence[InputFile]

    def __len__(self) -> int:
        return len(self.files)

    def iter_images(self, start: int) -> Generator[InputImage, None, None]:
        """Yield the images from position `start` on."""
        for i in range(start, len(self.files)):
            path, key, mask = self.files[i]
            yield InputImage(i, key, path, path, mask)


@dataclass(frozen=True)
class FolderStore:
    """A store of files in a folder, each complete or absent.

    Temporary files that kill -9 leaves begin with `.` and `temp_prefix`.
    """

    folder: str
    temp_prefix: str

    def __call__(self, image: InputImage, files: dict[str, bytes]) -> dict[str, bytes]:
        for ending, content in files.items():
            path = result_path(self.folder, image.key, ending)
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            write_atomically(path, content, overwrite=True, temp_prefix=self.temp_prefix, sync_folder=False)
        return {}

    def fsync(self, images: Iterable[InputImage]) -> None:
        """Flush the names of the files of these images to the disk."""
        for folder in {os.path.dirname(result_path(self.folder, image.key, "")) or "." for image in images}:
            fsync_dir(folder)

    def remove_leftovers(self, keys: Collection[str]) -> None:
        """Remove temporary files of a killed job from the folders of these keys."""
        for folder in {os.path.dirname(result_path(self.folder, key, "")) or "." for key in keys}:
            if os.path.isdir(folder):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith(f".{self.temp_prefix}") and entry.name.endswith(".part"):
                            Path(entry.path).unlink(missing_ok=True)


class FolderSink:
    """A sink of files.

    An image is done when its files exist, and, where they may be older than the job, when its key is in `journal`, as a
    line of JSON.
    """

    start_index = 0
    is_finished = False

    def __init__(self, store: FolderStore, endings: Sequence[str], journal: Path | None):
        self.store = store
        self._endings = endings
        self._done_keys: set[str] | None = None
        self._journal: TextIO | None = None
        if journal is not None:
            self._done_keys = set(read_journal(journal))
            self._journal = open(journal, "w")  # noqa: SIM115  closed by close
            self._journal.writelines(json.dumps(key) + "\n" for key in self._done_keys)

    def earlier_results(self) -> Iterable[ImageResult]:
        """Return nothing: files of earlier runs are not read."""
        return ()

    def is_done(self, image: InputImage) -> bool:
        """Return True if an earlier run wrote all files of this image."""
        if self._done_keys is not None and image.key not in self._done_keys:
            return False
        return all(os.path.lexists(result_path(self.store.folder, image.key, ending)) for ending in self._endings)

    def add(self, result: ImageResult) -> None:
        """Note the key of a complete result in the journal."""
        if self._journal is not None and not result.errors:
            self._journal.write(json.dumps(result.image.key) + "\n")
            self._journal.flush()

    def finish(self) -> None:
        """Do nothing: files are complete already."""

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
