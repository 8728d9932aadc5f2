"""What a job keeps beside its output while it is not finished: the folder `OUT.job`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.disk import read_json, write_atomically
from .stages import Result

JOB, ERRORS, LOCK = "job.json", "errors.jsonl", "lock"


@dataclass(frozen=True)
class Record:
    """`folder` holds job.json, which says what the job is, errors.jsonl, and what sinks need to go on. `begun`: an
    earlier run has begun this job. `mark` begins the names of its unfinished files, of which some may be `left`, of
    another job too if this one starts anew."""

    folder: Path
    job: dict[str, Any]
    begun: bool
    mark: str
    left: bool


def beside(out: str, shard: tuple[int, int] | None) -> Path:
    """The folder for a job with this output."""
    path = Path(os.path.abspath(out))
    return path.with_name(f"{path.name}.job" if shard is None else f"{path.name}.job-{shard[0]}-of-{shard[1]}")


def look(folder: Path, job: dict[str, Any], anew: bool) -> Record:
    """The record of this job, begun or new; nothing is written. ValueError when another job has begun there, unless
    it is to start `anew`."""
    told = folder / JOB if (folder / JOB).exists() else _last(folder)
    begun = read_json(told) if told.exists() else {}
    mark = begun.pop("mark", None)
    job = json.loads(json.dumps(job))
    if begun == job and isinstance(mark, str):
        return Record(folder, job, True, mark, True)
    if begun and not anew:
        other = next((name for name in job if begun.get(name) != job[name]), "mark")
        raise ValueError(
            f"{str(folder)!r} records an unfinished job with another {other}: give its arguments to finish it, "
            "--overwrite to start anew, or remove that folder"
        )
    return Record(folder, job, False, mark or f"{os.urandom(4).hex()}.", bool(begun))


@contextmanager
def begin(record: Record) -> Iterator[None]:
    """While the job works: its folder exists, and no other process works at it. ValueError when one does."""
    record.folder.mkdir(parents=True, exist_ok=True)
    with _locked(record.folder):
        if not record.begun:
            for path in record.folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            content = json.dumps(record.job | {"mark": record.mark}, indent=1).encode()
            write_atomically(record.folder / JOB, content, overwrite=True)
            _last(record.folder).unlink(missing_ok=True)
        elif _last(record.folder).exists():
            os.replace(_last(record.folder), record.folder / JOB)
        yield


def finish(record: Record, again: bool) -> None:
    """The job has tried all. What it does not need any more is removed: without errors the folder, with errors all but
    these and, if the same command is to try them `again`, what that needs."""
    failed = (record.folder / ERRORS).exists()
    for path in record.folder.iterdir():
        if path.name != JOB and not (failed and (path.name == ERRORS or again)):
            path.unlink()
    if failed and again:
        return
    os.replace(record.folder / JOB, _last(record.folder))
    if not failed:
        record.folder.rmdir()
    _last(record.folder).unlink()


def _last(folder: Path) -> Path:
    """Where the record is while its folder goes, which can take a second: it is the very last that goes, as kill -9
    after that leaves results of which nobody knows what they are."""
    return folder.with_name(f".{folder.name}.json")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if os.name == "nt":
        yield
        return
    import fcntl

    with open(folder / LOCK, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system opens it when this process ends
        except OSError:
            raise ValueError(f"another process works at this job: it has locked {str(folder / LOCK)!r}") from None
        yield


class Errors:
    """errors.jsonl, a line {"path": .., "key": .., "error": ..} for each thing that failed, in the pictures' order.
    There is no such file as long as nothing failed."""

    def __init__(self, folder: Path):
        self._path = folder / ERRORS
        self._path.unlink(missing_ok=True)
        self.pictures = 0

    def add(self, result: Result) -> None:
        if not result.errors:
            return
        self.pictures += 1
        picture = result.picture
        rows = [{"path": picture.name, "key": picture.key, "error": error} for error in result.errors]
        with open(self._path, "a", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
