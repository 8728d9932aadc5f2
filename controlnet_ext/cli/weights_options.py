"""The options of commands that run networks: where their weights are, and where they compute."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..preprocessors.registry import LoadedPreprocessor, Preprocessor

TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as versions of transformers call a model's
OPTION_NAMES = ("library", "weights", "no_download", "device", "dtype", "batch")


def add_options(parser: ArgumentParser) -> None:
    """Adds --library FOLDER (several), --weights FILE or FOLDER, --no-download, --device, --dtype and --batch."""
    parser.add_argument("--library", metavar="FOLDER", action="append")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--no-download", action="store_true", default=None)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--batch", metavar="N", type=int)


def load_preprocessors(specs: Sequence[Preprocessor], options: Namespace) -> list[LoadedPreprocessor]:
    """The preprocessors with their weights loaded, those of one file once. Raises ValueError for options that none of
    them has a use for, and what loading does."""
    given = [name for name in OPTION_NAMES if getattr(options, name) is not None]
    if not any(entry.weights for entry in specs):
        if given:
            named = ", ".join(entry.name for entry in specs)
            raise ValueError(f"--{given[0].replace('_', '-')} is for preprocessors with weights, not for: {named}")
        return [entry.load() for entry in specs]
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"--batch {options.batch} is below 1")
    from ..preprocessors.backends.torch import Device
    from ..preprocessors.library import Library

    files = {} if options.weights is None else _match_files(specs, Path(options.weights))
    library = Library(options.library, download=not options.no_download, files=files)
    device = Device(options.device or "cpu", options.dtype or "float32")
    return [entry.load(device, library) for entry in specs]


def _match_files(specs: Sequence[Preprocessor], path: Path) -> dict[str, Path]:
    """The given file by the name of the one that the preprocessors load; a folder's files by the names of theirs, if
    these are one model of transformers or diffusers."""
    wanted = [file for entry in specs for file in entry.weights]
    names = {file.local_name for file in wanted}
    if path.is_dir() and len({file.repo for file in wanted}) == 1 and names & {"config.json", "model_index.json"}:
        return {name: _find_file(path, name) for name in names}
    if len(names) != 1:
        raise ValueError(f"--weights is one file, and these are loaded: {', '.join(sorted(names))}; name a --library")
    return {names.pop(): path}


def _find_file(folder: Path, name: str) -> Path:
    """The file of that name in a folder of transformers; where its weights are called otherwise, that one."""
    others = [
        folder / other
        for other in TRANSFORMERS_WEIGHTS
        if name in TRANSFORMERS_WEIGHTS and not (folder / name).is_file()
    ]
    return next((path for path in others if path.is_file()), folder / name)
