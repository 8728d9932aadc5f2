"""Where a command writes its PNG."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..files.disk import write_atomically

STDOUT = "-"


def resolve_output_path(out: str, name: str, overwrite: bool) -> Path | None:
    """The file that `-o OUT` means: itself, `name` in a folder, None for stdout. ValueError or OSError where nothing
    can be written there."""
    if out == STDOUT:
        return None
    path = Path(out)
    if out.endswith(("/", os.sep)) or path.is_dir():
        path = path / name
        if path.parent.exists() and not path.parent.is_dir():
            raise ValueError(f"{out!r} is a file, expected a folder")
    elif not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist")
    if path.suffix.lower() != ".png":
        raise ValueError(f"{out!r} does not end in .png, the only format it can have")
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK):
        raise ValueError(f"the folder {str(path.parent)!r} may not be written to")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces it")
    return path


def write_output(path: Path | None, content: bytes, overwrite: bool) -> None:
    """The file whole or not at all, its folder made if need be; or to stdout."""
    if path is None:
        with open(sys.stdout.fileno(), "wb", closefd=False) as stdout:
            stdout.write(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, overwrite)
