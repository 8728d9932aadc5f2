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
from ..results import ResultRecord, stamp_files
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
            yield InputImage(i, key, path, path, mask, stamp_files(path, mask))


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

    An image is done when its files exist and it is in `journal`, as a row of the record, with the stamp that it has; or
    when its key is one of `unchanged_keys`, which earlier jobs made. In the end the rows are added to the record.
    """

    start_index = 0
    is_finished = False

    def __init__(
        self,
        store: FolderStore,
        endings: Sequence[str],
        journal: Path,
        record: ResultRecord,
        unchanged_keys: Collection[str],
    ):
        self.store = store
        self._endings, self._record, self._unchanged_keys = endings, record, unchanged_keys
        rows = [row for row in read_journal(journal) if isinstance(row, dict)]
        self._stamps = {row["key"]: row["stamp"] for row in rows}  # of images that an earlier run did
        self._path = journal
        self._journal: TextIO = open(journal, "w")  # noqa: SIM115  closed by close
        self._journal.writelines(json.dumps(row) + "\n" for row in rows)
        self._journal.flush()

    def earlier_results(self) -> Iterable[ImageResult]:
        """Return nothing: files of earlier runs are not read."""
        return ()

    def is_done(self, image: InputImage) -> bool:
        """Return True if an earlier run wrote all files of this image, which is unchanged, or an earlier job did."""
        if image.key in self._unchanged_keys:
            return True
        if image.key not in self._stamps or self._stamps[image.key] != image.stamp:
            return False
        return all(os.path.lexists(result_path(self.store.folder, image.key, ending)) for ending in self._endings)

    def add(self, result: ImageResult) -> None:
        """Note a complete result in the journal."""
        if not result.errors:
            row = self._record.make_row(result.image.key, result.image.name, result.image.stamp)
            self._journal.write(json.dumps(row) + "\n")
            self._journal.flush()

    def finish(self) -> None:
        """Add what this job made to the record of the folder."""
        self._record.add(row for row in read_journal(self._path) if row["stamp"] is not None)

    def close(self) -> None:
        self._journal.close()
