"""The options of commands that run networks: where their weights are, and where they compute."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from preprocessors.registry import Preprocessor, Ready

NAMES = ("library", "weights", "no_download", "device", "dtype", "batch")


def declare(parser: ArgumentParser) -> None:
    """Adds --library FOLDER (several), --weights FILE, --no-download, --device, --dtype and --batch."""
    parser.add_argument("--library", metavar="FOLDER", action="append")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--no-download", action="store_true", default=None)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--batch", metavar="N", type=int)


def ready(entries: Sequence[Preprocessor], options: Namespace) -> list[Ready]:
    """The preprocessors with their weights loaded, those of one file once. Raises ValueError for options that none of
    them has a use for, and what loading does."""
    given = [name for name in NAMES if getattr(options, name) is not None]
    if not any(entry.weights for entry in entries):
        if given:
            named = ", ".join(entry.name for entry in entries)
            raise ValueError(f"--{given[0].replace('_', '-')} is for preprocessors with weights, not for: {named}")
        return [entry.ready() for entry in entries]
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"--batch {options.batch} is below 1")
    from preprocessors.library import Library
    from preprocessors.network import Device

    files = {} if options.weights is None else {_only(entries): options.weights}
    library = Library(options.library, download=not options.no_download, files=files)
    device = Device(options.device or "cpu", options.dtype or "float32")
    return [entry.ready(device, library) for entry in entries]


def _only(entries: Sequence[Preprocessor]) -> str:
    """The name of the one file that the preprocessors load."""
    names = {file.name for entry in entries for file in entry.weights}
    if len(names) != 1:
        raise ValueError(f"--weights is one file, and these are loaded: {', '.join(sorted(names))}; name a --library")
    return names.pop()
