"""The flags of commands that run networks of preprocessors: where their weights are, and where they compute."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _ActionsContainer
from collections.abc import Sequence
from pathlib import Path

from ..preprocessors.registry import LoadedPreprocessor, Preprocessor

TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the names in different versions of transformers
OPTION_NAMES = ("library", "weights", "no_download", "device", "dtype", "batch")
DEVICE, DTYPE = "cpu", "float32"  # the defaults


def add_library_options(parser: _ActionsContainer) -> None:
    """Add --library FOLDER, which may be given several times, and --no-download."""
    parser.add_argument(
        "--library",
        metavar="FOLDER",
        action="append",
        help="folder with weights of preprocessors, may be given several times; by default the folders in "
        "CONTROLNET_EXT_MODELS. Then the Hugging Face cache is searched; a missing file is downloaded to the first "
        "folder",
    )
    parser.add_argument(
        "--no-download", action="store_true", default=None, help="refuse where weights are missing, and name the file"
    )


def add_options(parser: ArgumentParser) -> None:
    """Add a group of flags: --library, --no-download, --weights, --device, --dtype and --batch."""
    group = parser.add_argument_group("preprocessors with weights")
    add_library_options(group)
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="the file of weights, where one is needed; or the folder of a model of transformers",
    )
    group.add_argument(
        "--device", metavar="D", help=f"device of the networks: cpu, cuda, cuda:1, mps (default: {DEVICE})"
    )
    group.add_argument("--dtype", metavar="T", help=f"float32, float16 or bfloat16 (default: {DTYPE})")
    group.add_argument("--batch", metavar="N", type=int, help="number of images of one size in each call of a network")


def load_preprocessors(specs: Sequence[Preprocessor], options: Namespace) -> list[LoadedPreprocessor]:
    """Load the preprocessors, each file of weights once.

    Raises ValueError for an option that none of them can use, and what `Preprocessor.load` raises.
    """
    flags = [name for name in OPTION_NAMES if getattr(options, name) is not None]
    if not any(spec.weights for spec in specs):
        if flags:
            names = ", ".join(spec.name for spec in specs)
            raise ValueError(f"--{flags[0].replace('_', '-')} is for preprocessors with weights, not for: {names}")
        return [spec.load() for spec in specs]
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"--batch {options.batch} is below 1")
    from ..preprocessors.backends.torch import Device
    from ..preprocessors.library import Library

    files = {} if options.weights is None else _match_files(specs, Path(options.weights))
    library = Library(options.library, download=not options.no_download, files=files)
    device = Device(options.device or DEVICE, options.dtype or DTYPE)
    return [spec.load(device, library) for spec in specs]


def _match_files(specs: Sequence[Preprocessor], path: Path) -> dict[str, Path]:
    """Return paths by the names of the files that the preprocessors load.

    A folder is matched file by file, if they load one model of transformers or diffusers.
    """
    expected = [file for spec in specs for file in spec.weights]
    names = {file.local_name for file in expected}
    if path.is_dir() and len({file.repo for file in expected}) == 1 and names & {"config.json", "model_index.json"}:
        return {name: _find_file(path, name) for name in names}
    if len(names) != 1:
        raise ValueError(f"--weights is one file, and these are loaded: {', '.join(sorted(names))}; name a --library")
    return {names.pop(): path}


def _find_file(folder: Path, name: str) -> Path:
    """Return the file of that name in a folder of transformers, or its weights under another version's name."""
    others = [
        folder / other
        for other in TRANSFORMERS_WEIGHTS
        if name in TRANSFORMERS_WEIGHTS and not (folder / name).is_file()
    ]
    return next((path for path in others if path.is_file()), folder / name)
