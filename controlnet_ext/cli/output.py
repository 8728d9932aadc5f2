"""The output file of commands that write one PNG."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from pathlib import Path

from ..files.disk import STDOUT, write_atomically


def add_output_options(parser: ArgumentParser, help: str, default: str | None = None) -> None:
    """Add -o/--output, required without a default, and --overwrite."""
    parser.add_argument("-o", "--output", metavar="OUT", required=default is None, default=default, help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def resolve_output_path(out: str, name: str, overwrite: bool) -> Path | None:
    """Return the file for `-o OUT`: OUT itself, `name` in the folder OUT, None for stdout.

    Raises ValueError, FileNotFoundError or FileExistsError where no PNG can be written there.
    """
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
    """Write `content` to `path`, complete or not at all, with its folder made if need be; None means stdout."""
    if path is None:
        with open(sys.stdout.fileno(), "wb", closefd=False) as stdout:
            stdout.write(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, overwrite)


def print_stderr(message: object) -> None:
    """Print a line to stderr."""
    print(message, file=sys.stderr)
