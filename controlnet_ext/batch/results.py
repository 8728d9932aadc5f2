"""The record of finished results, a hidden file among them: what is done and unchanged is not done again.

A line of it is `{"key", "source", "stamp", "made"}`: the key of an image, its path from the folder of results, size and
modification time (those of its mask too), and for each ending of its files a digest of what made them. Each shard has a
file of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.disk import list_temporary_files, write_atomically
from .formats.journal import read_journal
from .inputs import InputFile
from .request import MapRequest, result_path

RECORD_NAME = ".controlnet-ext.jsonl"
Stamp = list[int]  # size and modification time in ns, of a mask too


def stamp_files(path: str, mask: str | None = None) -> Stamp | None:
    """Return size and modification time in ns of a file and of its mask, None where one cannot be looked at."""
    try:
        stats = [os.stat(each) for each in (path, mask) if each is not None]
    except (OSError, ValueError):
        return None
    return [number for each in stats for number in (each.st_size, each.st_mtime_ns)]


def digest_settings(request: MapRequest, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of what makes the files of each ending: preprocessor, parameters and `settings`."""
    digests: dict[str, str] = {}
    for spec, values in zip(request.specs, request.parameters, strict=True):
        text = json.dumps([spec.name, values, request.sixteen_bit, settings], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        digests |= {f"{spec.name}.{suffix}": digest for suffix in (("json", "png") if request.json else ("png",))}
    return digests


def list_record_files(folder: str) -> list[Path]:
    """Return the records in a folder of results, those of shards too, the latest last."""
    stem, suffix = RECORD_NAME.rsplit(".", 1)
    files = Path(folder).glob(f"{stem}*.{suffix}") if os.path.isdir(folder) else ()
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))


def read_rows(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the rows of records by key; of two rows of one key the later one, with what both made."""
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        for row in read_journal(file):
            if isinstance(row, dict) and isinstance(row.get("key"), str) and isinstance(row.get("made"), dict):
                earlier = rows.get(row["key"])
                is_same = earlier is not None and earlier.get("stamp") == row.get("stamp")
                rows[row["key"]] = row | {"made": {**earlier["made"], **row["made"]}} if earlier and is_same else row
    return rows


class ResultRecord:
    """The record of the results in a folder, and of what a job with these digests adds to it.

    Of a job that replaces what exists, nothing counts as done.
    """

    def __init__(self, folder: str, digests: Mapping[str, str], shard: tuple[int, int] | None, ignore: bool):
        stem, suffix = RECORD_NAME.rsplit(".", 1)
        part = "" if shard is None else f".{shard[0]}-of-{shard[1]}"
        self._folder, self._digests = folder, dict(digests)
        self._file = Path(folder) / f"{stem}{part}.{suffix}"
        self._rows = {} if ignore else read_rows(list_record_files(folder))

    def is_unchanged(self, file: InputFile, key: str, paths: Sequence[str]) -> bool:
        """Return True if an earlier job made these results of the file, and neither changed since."""
        row = self._rows.get(key)
        return (
            row is not None
            and row.get("source") == self._name_source(file.path)
            and row.get("stamp") == stamp_files(file.path, file.mask)
            and row["made"].items() >= self._digests.items()
            and all(os.path.lexists(path) for path in paths)
        )

    def make_row(self, key: str, source: str, stamp: Stamp | None) -> dict[str, Any]:
        """Return the row of results that this job made."""
        return {"key": key, "source": self._name_source(source), "stamp": stamp, "made": self._digests}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows of this job into its file of the record."""
        new_rows = {row["key"]: row for row in rows}
        old_rows = read_rows([self._file])
        for key, row in new_rows.items():
            earlier = old_rows.get(key)
            is_same = earlier is not None and earlier.get("stamp") == row["stamp"]
            old_rows[key] = row | {"made": {**earlier["made"], **row["made"]}} if earlier and is_same else row
        if not new_rows:
            return
        prefix = f"{self._file.name[1:]}."
        for path in list_temporary_files(self._file.parent, prefix):  # of a job that was killed here
            path.unlink(missing_ok=True)
        lines = (json.dumps(row).encode() + b"\n" for row in old_rows.values())
        write_atomically(self._file, lines, overwrite=True, temp_prefix=prefix)

    def _name_source(self, path: str) -> str:
        return os.path.relpath(path, self._folder).replace(os.sep, "/")


def forget_result(path: str) -> None:
    """Remove a file that something else than a job of its folder replaced from the records that have it."""
    full = Path(os.path.abspath(path))
    for folder in full.parents:
        name = full.relative_to(folder).as_posix()
        for file in list_record_files(str(folder)):
            rows = read_rows([file])
            other_rows = {
                key: row | {"made": {end: digest for end, digest in row["made"].items() if f"{key}_{end}" != name}}
                for key, row in rows.items()
            }
            if other_rows != rows:
                lines = (json.dumps(row).encode() + b"\n" for row in other_rows.values())
                write_atomically(file, lines, overwrite=True, temp_prefix=f"{file.name[1:]}.")


def exclude_recorded_maps(files: Sequence[InputFile], folder: str) -> list[InputFile]:
    """Return the images of a folder without the maps that earlier jobs made of others of them."""
    paths = {os.path.abspath(file.path) for file in files}
    folders = {os.path.abspath(folder)}
    for path in paths:
        while (path := os.path.dirname(path)) not in folders and path.startswith(os.path.abspath(folder)):
            folders.add(path)
    maps = {
        os.path.abspath(result_path(each, row["key"], ending))
        for each in folders
        for row in read_rows(list_record_files(each)).values()
        if os.path.normpath(os.path.join(each, str(row.get("source")))) in paths
        for ending in row["made"]
    }
    return [file for file in files if os.path.abspath(file.path) not in maps]
