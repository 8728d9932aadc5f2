"""The state of an unfinished job, in the folder `OUT.job` beside its output."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.disk import LOCK_FILE, lock_folder, read_json, write_atomically
from .stages import ImageResult

JOB_FILE, ERRORS_FILE = "job.json", "errors.jsonl"


@dataclass(frozen=True)
class JobRecord:
    """The state of a job.

    folder: folder with job.json (the identity), errors.jsonl, and files that sinks need to continue.
    identity: everything that results depend on.
    is_resumed: True if an earlier run began this job.
    temp_prefix: prefix of the names of its temporary files.
    has_leftovers: True if temporary files of an earlier run may exist, of another job too if this one starts anew.
    """

    folder: Path
    identity: dict[str, Any]
    is_resumed: bool
    temp_prefix: str
    has_leftovers: bool


def state_dir_for(out: str, shard: tuple[int, int] | None) -> Path:
    """Return the state folder of a job with this output."""
    path = Path(os.path.abspath(out))
    return path.with_name(f"{path.name}.job" if shard is None else f"{path.name}.job-{shard[0]}-of-{shard[1]}")


def read_state(folder: Path, identity: dict[str, Any], overwrite: bool) -> JobRecord:
    """Return the record of this job, begun or new; write nothing.

    Raises ValueError when another job has begun there, unless `overwrite` starts anew, or it has tried every image.
    """
    job_file = folder / JOB_FILE if (folder / JOB_FILE).exists() else _closing_path(folder)
    begun = read_json(job_file) if job_file.exists() else {}
    mark, is_tried = begun.pop("mark", None), begun.pop("tried", False)
    identity = json.loads(json.dumps(identity))
    if begun == identity and isinstance(mark, str):
        return JobRecord(folder, identity, True, mark, True)
    if begun and not overwrite and not is_tried:
        other = next((name for name in identity if begun.get(name) != identity[name]), "mark")
        raise ValueError(
            f"{str(folder)!r} records an unfinished job with another {other}: give its arguments to finish it, "
            "--overwrite to start anew, or remove that folder"
        )
    return JobRecord(folder, identity, False, mark or f"{os.urandom(4).hex()}.", bool(begun))


@contextmanager
def lock_state(record: JobRecord) -> Iterator[None]:
    """Create the state folder and keep other processes from it within the context.

    Raises ValueError when another process works at the job.
    """
    record.folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(record.folder, "job"):
        if not record.is_resumed:
            for path in record.folder.iterdir():
                if path.name != LOCK_FILE:
                    path.unlink()
            content = json.dumps(record.identity | {"mark": record.temp_prefix}, indent=1).encode()
            write_atomically(record.folder / JOB_FILE, content, overwrite=True)
            _closing_path(record.folder).unlink(missing_ok=True)
        elif _closing_path(record.folder).exists():
            os.replace(_closing_path(record.folder), record.folder / JOB_FILE)
        yield


def close_state(record: JobRecord, retry_failed: bool) -> None:
    """Remove state that is no longer needed once every image was tried.

    Without failures that is the whole folder. With failures the errors file stays, and with `retry_failed` also the
    state that the same command needs to try them again.
    """
    has_errors = (record.folder / ERRORS_FILE).exists()
    for path in record.folder.iterdir():
        if path.name != JOB_FILE and not (has_errors and (path.name == ERRORS_FILE or retry_failed)):
            path.unlink()
    if has_errors and retry_failed:
        content = json.dumps(record.identity | {"mark": record.temp_prefix, "tried": True}, indent=1).encode()
        write_atomically(record.folder / JOB_FILE, content, overwrite=True)
        return
    os.replace(record.folder / JOB_FILE, _closing_path(record.folder))
    if not has_errors:
        record.folder.rmdir()
    _closing_path(record.folder).unlink()


def _closing_path(folder: Path) -> Path:
    """Return the path of job.json while its folder is deleted, which can take a second.

    It is deleted last: after a kill -9 without it, a new run could not tell whose results exist.
    """
    return folder.with_name(f".{folder.name}.json")


class ErrorLog:
    """The file errors.jsonl: a line {"path": .., "key": .., "error": ..} for each failure, in the order of images.

    The file does not exist while nothing failed.
    """

    def __init__(self, folder: Path):
        self._path = folder / ERRORS_FILE
        self._path.unlink(missing_ok=True)
        self.failed_count = 0

    def add(self, result: ImageResult) -> None:
        """Append the failures of a result."""
        if not result.errors:
            return
        self.failed_count += 1
        image = result.image
        rows = [{"path": image.name, "key": image.key, "error": error} for error in result.errors]
        with open(self._path, "a", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
