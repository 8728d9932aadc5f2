"""Flags and help texts that several commands share."""

from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence

from ..generation.recipe import DEVICES, DTYPES
from ..preprocessors.registry import register_file

DEVICE_HELP = f"one of: {', '.join(DEVICES)}, or cuda:N (default: the fastest one present)"
DTYPE_HELP = f"one of: {', '.join(DTYPES)} (default: float32 on a CPU, float16 elsewhere)"
MODEL_HELP = "folder saved by diffusers (SD1.5, SD2.1, SDXL), or owner/name in the local Hugging Face cache"


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
