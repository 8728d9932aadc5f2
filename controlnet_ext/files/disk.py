"""Bytes in from regular files, bytes out complete or not at all.

Names stand in messages as `repr` writes them, so that an error is one line whatever a file is called.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

JSON_LIMIT = 2**20  # bytes
MAX_INTEGER_DIGITS = 300  # any such integer has a float; Python before 3.10.7 takes minutes for a million digits
MAX_JSON_DEPTH = 100  # levels of objects and lists; functions that walk a value recurse
Content: TypeAlias = bytes | Iterable[bytes | memoryview]  # of a file, at once or in parts
STDOUT = "-"  # the name of an output that is not a file


@contextmanager
def open_regular_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file for reading bytes.

    Raises FileNotFoundError when it is missing, ValueError when it is a folder, a pipe or a device, or may not be read.
    """
    name = repr(os.fspath(path))
    try:
        _check_regular(os.stat(path), name)  # a device is not opened, which may act already
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  its reader's errors are not ours
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist") from None
    except NotRegularError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise ValueError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from error
    with file:
        status = os.fstat(file.fileno())
        _check_regular(status, name)  # the name may be another file's by now
        if status.st_size:
            yield file
            return
    with open(os.devnull, "rb") as empty:  # files of /proc say that they are empty, and can block a reader
        yield empty


class NotRegularError(ValueError):
    """A path of something other than a file."""


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer too, at once, which can be refused then."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise NotRegularError(f"{name} is {kind}, expected a file")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON object in a file of at most 1 MiB, such as config.json of a model.

    Raises ValueError for any other content, and what `open_regular_file` raises.
    """
    with open_regular_file(path) as file:
        content = file.read(JSON_LIMIT + 1)
    if len(content) > JSON_LIMIT:
        raise ValueError(f"{os.fspath(path)!r} is over {JSON_LIMIT} bytes, too large for a configuration")
    return parse_object(content, repr(os.fspath(path)))


def parse_object(text: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError, beginning with `name`, for what `parse_json` refuses and other values."""
    value = parse_json(text, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a JSON {type(value).__name__}, expected an object")
    return value


def parse_json(text: bytes | bytearray, name: str, allow_nan: bool = True) -> Any:
    """Parse a JSON value, of UTF-8 with or without a byte order mark, or of UTF-16 or UTF-32, as Windows writes them.

    Raises ValueError, beginning with `name`: broken JSON, a key given twice, over `MAX_JSON_DEPTH` levels, an integer
    of over `MAX_INTEGER_DIGITS`; without `allow_nan` also NaN and numbers beyond the range of floats.
    """
    hooks: dict[str, Any] = {"parse_int": _parse_integer}
    if not allow_nan:
        hooks |= {"parse_constant": _parse_finite, "parse_float": _parse_finite}
    try:
        document = text.decode(json.detect_encoding(text))
        value = json.loads(document, object_pairs_hook=_reject_duplicate_keys, **hooks)
    except RecursionError:
        raise ValueError(f"{name} nests its JSON too deeply, expected up to {MAX_JSON_DEPTH} levels") from None
    except ValueError as error:  # broken JSON or UTF-8, and what the hooks refuse
        raise ValueError(f"{name} is not valid JSON: {error}") from error
    level, depth = _list_containers([value]), 0
    while level:
        level, depth = [inner for each in level for inner in _list_containers(each)], depth + 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"{name} nests its JSON too deeply, expected up to {MAX_JSON_DEPTH} levels")
    return value


def _list_containers(value: dict[str, Any] | list[Any]) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value
    return [each for each in items if isinstance(each, dict | list)]


def _parse_integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits, expected up to {MAX_INTEGER_DIGITS}")
    return int(text)


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def parse_whole_number(value: object) -> int | None:
    """Return a whole number of JSON, 256 or 256.0, as an int; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 else None  # NaN and infinity are not equal to their floor


def convert_whole_numbers(value: Any) -> Any:
    """Return a value of JSON with all whole numbers as ints, in its lists and objects too: 320 for 320.0."""
    if isinstance(value, dict):
        return {key: convert_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [convert_whole_numbers(item) for item in value]
    number = parse_whole_number(value)
    return value if number is None else number


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is given twice")
    return value


LOCK_FILE = "lock"  # in a folder that one process at a time works in
_TEMPORARY_NAME = r"[0-9a-f]{16}\.part"


_files_of_locks: set[BinaryIO] = set()  # that a forked process would hold locked when this one is killed
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _files_of_locks])


@contextmanager
def _close_in_forks(file: BinaryIO) -> Iterator[None]:
    _files_of_locks.add(file)
    try:
        yield
    finally:
        _files_of_locks.discard(file)


@contextmanager
def lock_folder(folder: Path, work: str) -> Iterator[None]:
    """Keep other processes from the folder, which exists, within the context; a kill releases it too.

    Raises ValueError, which says that another process works at `work`, when one has it. File systems without locks, and
    Windows, keep nobody out.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    with open(folder / LOCK_FILE, "wb") as file, _close_in_forks(file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system opens it when this process ends
        except BlockingIOError:
            raise ValueError(
                f"another process works at this {work}: it has locked {str(folder / LOCK_FILE)!r}"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
        yield


def list_temporary_files(folder: Path, temp_prefix: str = "") -> list[Path]:
    """Return the files and folders that are left in a folder when their writer is killed, with this prefix."""
    form = re.compile(rf"\.{re.escape(temp_prefix)}{_TEMPORARY_NAME}")
    return sorted(path for path in folder.iterdir() if form.fullmatch(path.name)) if folder.is_dir() else []


def is_folder_name(out: str) -> bool:
    """Return True if the argument OUT means a folder: it ends in a slash, or there is one."""
    return out.endswith(("/", os.sep)) or os.path.isdir(out)


def check_target_folder(folder: str | os.PathLike[str]) -> None:
    """Raise ValueError unless the folder can be written to, or made with the folders on the way to it."""
    path = Path(folder)
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    if not path.is_dir():
        raise ValueError(f"{str(path)!r} is a file, expected a folder")
    if not os.access(path, os.W_OK):
        raise ValueError(f"the folder {str(path)!r} may not be written to")


def check_stdout() -> None:
    """Raise ValueError where this process was started with stdout closed."""
    if sys.stdout is None:
        raise ValueError("stdout is closed: name a file to write to")


def write_stdout(content: bytes) -> None:
    """Write a file's bytes to stdout. Raises BrokenPipeError when its reader is gone."""
    check_stdout()
    sys.stdout.flush()
    with open(1, "wb", closefd=False) as stdout:
        stdout.write(content)


def write_atomically(
    path: str | os.PathLike[str],
    content: Content,
    overwrite: bool = False,
    temp_prefix: str = "",
    sync_folder: bool = True,
) -> None:
    """Write `content`, at once or in parts, so that `path` names either all of it or what it named before.

    The bytes go to a hidden `.….part` file in the same folder, are flushed to the disk, then get their name. After any
    failure or interruption nothing is left behind; after kill -9 a `.part` file may be, whose name begins with `.` and
    `temp_prefix`. Without `sync_folder` the name may not outlive a power cut before `fsync_dir` is called for the
    folder.

    Raises FileExistsError when `path` exists, or appears meanwhile, without `overwrite`; ValueError when it is a
    folder; FileNotFoundError when its folder is missing; OSError with the name of the file.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{str(target)!r} is a folder, expected a file name")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{str(target.parent)!r} is not a folder, so {target.name!r} cannot be written into it")
    if not overwrite and os.path.lexists(target):
        raise _make_exists_error(target)
    with _stage_file(target, content, temp_prefix) as temporary, _name_in_errors(target):
        commit_file(temporary, target, overwrite, sync_folder)


@contextmanager
def _stage_file(target: Path, content: Content, temp_prefix: str = "") -> Iterator[Path]:
    """Write a temporary file beside `target` for `commit_file`; what has no name after the context is removed."""
    temporary = target.parent / make_temporary_name(temp_prefix)
    try:
        with _name_in_errors(target):
            _write_temporary(temporary, [content] if isinstance(content, bytes) else content)
        yield temporary
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except KeyboardInterrupt:  # which came before the file was removed
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _name_in_errors(target: Path) -> Iterator[None]:
    """Put the name of a file that is being written into what the system raises."""
    try:
        yield
    except FileExistsError:
        raise _make_exists_error(target) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error


def write_together(
    files: Mapping[Path, Content],
    old_files: Collection[Path] = (),
    temp_prefix: str = "",
) -> None:
    """Write several files, by path, which get their names one after the other when all are on the disk.

    A full disk leaves none of them. `temp_prefix` is that of `write_atomically`. Raises FileExistsError for a name that
    is taken and not among `old_files`, OSError with the name of the file.
    """
    with ExitStack() as stack:
        temporary_files = [
            (stack.enter_context(_stage_file(target, content, temp_prefix)), target)
            for target, content in files.items()
        ]
        for temporary, target in temporary_files:
            with _name_in_errors(target):
                commit_file(temporary, target, overwrite=target in old_files)


def make_temporary_name(temp_prefix: str = "") -> str:
    """Return a name that `list_temporary_files` finds, and that nothing else has."""
    return f".{temp_prefix}{os.urandom(8).hex()}.part"


def _write_temporary(temporary: Path, parts: Iterable[bytes | memoryview]) -> None:
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_file(temporary: Path, target: Path, overwrite: bool, sync_folder: bool = True) -> None:
    """Give the temporary file its name.

    With `sync_folder` the folder is flushed too, so that the name outlives a power cut. Raises FileExistsError when the
    name is taken, without `overwrite`.
    """
    if overwrite:
        os.replace(temporary, target)
        if sync_folder:
            fsync_dir(target.parent)
        return
    try:
        os.link(temporary, target)  # unlike a rename, a link refuses a name that is taken
    except FileExistsError:
        raise
    except (
        OSError
    ):  # a file system without links (FAT, some shares): here, another process may come between the two lines
        if os.path.lexists(target):
            raise _make_exists_error(target) from None
        os.replace(temporary, target)
    try:
        if sync_folder:
            fsync_dir(target.parent)
    except BaseException:
        target.unlink()
        raise


def fsync_dir(folder: str | os.PathLike[str]) -> None:
    """Flush the names in a folder to the disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_exists_error(target: Path) -> FileExistsError:
    return FileExistsError(f"{str(target)!r} exists already; it is only replaced when overwriting is asked for")
