"""Flags, messages and the output file that several commands share; flags of networks are in `weights_options`."""

from __future__ import annotations

import gc
import os
import sys
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import escape_unprintable
from ..files.disk import STDOUT, check_stdout, check_target_folder, is_folder_name, write_atomically, write_stdout
from ..generation import DEVICES, DTYPES
from ..preprocessors.registry import register_file

DEVICE_HELP = f"one of: {', '.join(DEVICES)}, or cuda:N (default: the fastest one present)"
DTYPE_HELP = f"one of: {', '.join(DTYPES)} (default: float32 on a CPU, float16 elsewhere)"
MODEL_HELP = "folder saved by diffusers (SD1.5, SD2.1, SDXL), or owner/name in the local Hugging Face cache"


def resume_garbage_collection() -> None:
    """Collect garbage again, if the process was started without (`cli.program`); what is imported by now stays."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def add_load_option(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add --load FILE.py, and run the files that the command line names: other flags depend on what they register.

    Raises what `register_file` raises.
    """
    load = {
        "metavar": "FILE.py",
        "action": "append",
        "default": [],
        "help": "Python file with preprocessors of your own, which is run first; may be given several times",
    }
    scan = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for each in (scan, parser):
        each.add_argument("--load", **load)  # type: ignore[arg-type]
    try:
        files = scan.parse_known_args(argv)[0].load
    except ArgumentError:
        return  # a flag without its value, which the parser itself says
    for file in files:
        register_file(file)


def list_changed_flags(
    options: Namespace, add_flags: Callable[[ArgumentParser], None], left_out: Collection[str]
) -> dict[str, Any]:
    """Return the values that are not the defaults of the flags that `add_flags` declares, but of those left out."""
    parser = ArgumentParser(add_help=False)
    add_flags(parser)
    defaults = {action.dest: action.default for action in parser._actions if action.dest not in left_out}
    values = vars(options)
    return {name: values[name] for name, default in defaults.items() if values[name] != default}


def add_output_options(parser: ArgumentParser, help: str, default: str | None = None) -> None:
    """Add -o/--output, required without a default, and --overwrite."""
    parser.add_argument("-o", "--output", metavar="OUT", required=default is None, default=default, help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def resolve_output_path(out: str, name: str, overwrite: bool) -> Path | None:
    """Return the file for `-o OUT`: OUT itself, `name` in the folder OUT, None for stdout.

    Folders on the way need not exist. Raises ValueError or FileExistsError where no PNG can be written there.
    """
    if out == STDOUT:
        check_stdout()
        return None
    path = Path(out) / name if is_folder_name(out) else Path(out)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{out!r} does not end in .png, the only format it can have")
    check_target_folder(path.parent)
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces it")
    return path


def write_output(path: Path | None, content: bytes, overwrite: bool) -> None:
    """Write `content` to `path`, complete or not at all, with its folder made if need be; None means stdout."""
    if path is None:
        write_stdout(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, overwrite)


def print_stderr(message: object) -> None:
    """Print one line to stderr, whatever text from outside it holds.

    Without an open stderr nothing is printed: a result does not fail for want of a reader of messages.
    """
    if sys.stderr is not None:  # None would be stdout
        with suppress(OSError):
            print(escape_unprintable(message), file=sys.stderr)
