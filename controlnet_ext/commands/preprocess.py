"""controlnet-ext preprocess NAME[,NAME...] INPUT... -o OUT [--PARAMETER VALUE | --NAME.PARAMETER VALUE]...

Make control maps of pictures. `controlnet-ext preprocessors` lists the names and their parameters.

    INPUT             a picture, or a folder: all pictures in it
    -o, --output OUT  a file (.png, .jpg, .webp); a folder, if it ends in / or there are several results, which are
                      then called <stem>_<name>.png; or - for a PNG on stdout
    --PARAMETER       for every named preprocessor that has it; --NAME.PARAMETER for one
    --resolution N    the short side in pixels to work at, 64..2048, by default the picture's own
    --json            the key points of people or animals too, beside each map, with the suffix .json: see `draw`
    --sixteen-bit     depth as a grey PNG of 16 bits
    --recursive       the folders in a folder too
    --overwrite       replace files that exist

Of preprocessors with weights:

    --library FOLDER  where weights are, several times if need be, by default those in CONTROLNET_EXT_MODELS; then the
                      Hugging Face cache is looked into; what is nowhere is downloaded, to the first folder
    --no-download     only say which file to put where
    --weights FILE    the file itself, where one is needed
    --device D        where networks compute: cpu (by default), cuda, cuda:1, mps, ...
    --dtype T         in which numbers: float32 (by default), float16, bfloat16
    --batch N         so many pictures at once, of those that are alike in size

Two results of one name are refused before any work. Exit code 0: done; 1: some failed, one line each on stderr, the
others are done; 2: refused, nothing is written; 130: interrupted.
"""

from __future__ import annotations

import os
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from preprocessors.image_in import read_image
from preprocessors.image_out import encoded_image, write_image
from preprocessors.key_points import Poses
from preprocessors.maps import ControlMap
from preprocessors.pose_json import write_poses
from preprocessors.registry import RESOLUTION, Preprocessor, Ready, find, registered

from .. import library_options
from . import say

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif")
STDOUT = "-"


def arguments(parser: ArgumentParser, words: list[str]) -> None:
    """Declares a flag for every parameter of the named preprocessors, plain and with its preprocessor's name."""
    parser.add_argument("names", metavar="NAME")
    parser.add_argument("inputs", metavar="INPUT", nargs="+")
    parser.add_argument("-o", "--output", metavar="OUT", required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sixteen-bit", action="store_true")
    parser.add_argument("--recursive", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    library_options.declare(parser)
    named = _entries(words[0]) if words and not words[0].startswith("-") else registered()
    for flag in {flag: None for entry in named for flag in _flags(entry)}:
        parser.add_argument(f"--{flag}", dest=f"--{flag}", default=SUPPRESS)


def run(options: Namespace) -> int:
    """Plans all of the work, which may refuse it, then does it."""
    entries = _entries(options.names)
    values = _values(entries, {flag[2:]: text for flag, text in vars(options).items() if flag.startswith("--")})
    pictures = [picture for path in options.inputs for picture in _pictures(Path(path), options.recursive)]
    targets = _targets(options.output, pictures, entries)
    _check(_files_of(targets, options.json), pictures, options.overwrite)
    if options.sixteen_bit:
        _check_sixteen_bit(entries, targets)
    ready = library_options.ready(entries, options)
    written, failed = 0, 0
    for paths, maps in zip(targets, _maps(pictures, ready, values, options.batch or 1), strict=True):
        try:
            for made, path in zip(maps, paths, strict=True):
                if options.json:
                    _write_json(path, made, options.overwrite)
                pixels = made.pixels if made.fine is None or not options.sixteen_bit else made.fine
                _write(path, pixels, options.overwrite)
                written += 1
        except (ValueError, OSError) as error:
            if len(pictures) == 1 and not written and isinstance(error, (ValueError, FileNotFoundError)):
                raise
            say(f"controlnet-ext: {error}")
            failed += 1
    return 1 if failed else 0


def _maps(
    pictures: list[Path], ready: list[Ready], values: list[dict[str, Any]], batch: int
) -> Iterator[Iterator[ControlMap]]:
    """For each picture its maps, which are made when they are asked for; what is wrong with a picture is raised then.
    Up to `batch` pictures are computed together, and one by one where that fails, so that the bad one is told."""
    for i in range(0, len(pictures), batch):
        some = pictures[i : i + batch]
        if len(some) > 1:
            try:
                pixels = [read_image(picture) for picture in some]
                columns = [make.batch(pixels, **chosen) for make, chosen in zip(ready, values, strict=True)]
            except (ValueError, OSError):
                pass
            else:
                yield from map(iter, zip(*columns, strict=True))
                continue
        yield from (_alone(picture, ready, values) for picture in some)


def _alone(picture: Path, ready: list[Ready], values: list[dict[str, Any]]) -> Iterator[ControlMap]:
    pixels = read_image(picture)
    for make, chosen in zip(ready, values, strict=True):
        yield make(pixels, **chosen)


def _entries(names: str) -> list[Preprocessor]:
    return [find(name.strip()) for name in names.split(",")]


def _flags(entry: Preprocessor) -> dict[str, str]:
    """The flags that are for an entry and the parameters they give, the particular after the plain."""
    names = [parameter.name for parameter in (*entry.parameters, RESOLUTION)]
    return {name: name for name in names} | {f"{entry.name}.{name}": name for name in names}


def _values(entries: list[Preprocessor], given: dict[str, str]) -> list[dict[str, Any]]:
    """For each entry the values of the flags that are for it. A flag for none of them is refused."""
    if idle := given.keys() - {flag for entry in entries for flag in _flags(entry)}:
        raise ValueError(f"--{min(idle)} is for none of the preprocessors named: {', '.join(e.name for e in entries)}")
    texts = [{name: given[flag] for flag, name in _flags(entry).items() if flag in given} for entry in entries]
    return [entry.parse(chosen) for entry, chosen in zip(entries, texts, strict=True)]


def _pictures(given: Path, recursive: bool) -> list[Path]:
    """The picture, or those of a folder, sorted. Hidden files and folders are left out."""
    if not given.is_dir():
        if not given.exists():
            raise FileNotFoundError(f"{str(given)!r} does not exist")
        return [given]
    found = sorted(path for path in _files(given, recursive) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(
            f"{str(given)!r} holds no pictures{'' if recursive else ' (--recursive looks into its folders)'}"
        )
    return found


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (Path(here, name) for name in names if not name.startswith("."))


def _targets(out: str, pictures: list[Path], entries: list[Preprocessor]) -> list[list[str | Path]]:
    """For each picture, for each entry, where the map goes: a path, or STDOUT."""
    results = len(pictures) * len(entries)
    if not out:
        raise ValueError("OUT is empty, expected a file, a folder or -")
    if out == STDOUT:
        if results > 1:
            raise ValueError(f"{results} results do not go to stdout: name a folder")
        return [[STDOUT]]
    folder = Path(out)
    if results == 1 and not out.endswith(("/", os.sep)) and not folder.is_dir():
        if not folder.parent.is_dir():
            raise FileNotFoundError(f"the folder {str(folder.parent)!r} does not exist")
        return [[folder]]
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{out!r} is a file, expected a folder for {results} results")
    return [[folder / f"{picture.stem}_{entry.name}.png" for entry in entries] for picture in pictures]


def _files_of(targets: list[list[str | Path]], json: bool) -> list[list[str | Path]]:
    """The maps, and with them their key points."""
    if json and targets == [[STDOUT]]:
        raise ValueError("--json writes a file beside the map, which goes to stdout: name a file or folder")
    return [[*paths, *(Path(path).with_suffix(".json") for path in paths if json)] for paths in targets]


def _check(targets: list[list[str | Path]], pictures: list[Path], overwrite: bool) -> None:
    """Raises ValueError when two results have one name, one would replace another's picture, or exists."""
    sources = {_place(picture): picture for picture in pictures}
    makers: dict[str, Path] = {}
    for picture, paths in zip(pictures, targets, strict=True):
        for path in paths:
            if path == STDOUT:
                continue
            place = _place(path)
            if place in makers:
                raise ValueError(f"{str(path)!r} would be made twice, of {str(makers[place])!r} and {str(picture)!r}")
            if sources.get(place, picture) != picture:
                raise ValueError(f"{str(path)!r} would replace a picture that is still to be read")
            if os.path.lexists(path) and not overwrite:
                raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces it")
            makers[place] = picture


def _check_sixteen_bit(entries: list[Preprocessor], targets: list[list[str | Path]]) -> None:
    if other := [entry.name for entry in entries if entry.makes != "depth"]:
        raise ValueError(f"--sixteen-bit is for depth, which {other[0]} does not make")
    if other := [path for paths in targets for path in paths if Path(path).suffix.lower() not in (".png", "")]:
        raise ValueError(f"--sixteen-bit is for PNG, not for {str(other[0])!r}")


def _place(path: str | Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _write_json(path: str | Path, made: ControlMap, overwrite: bool) -> None:
    if not isinstance(made.values, Poses):
        raise ValueError(f"--json writes key points, which a map of {made.kind} has not")
    target = Path(path).with_suffix(".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_poses(target, made.values, overwrite)
    say(target)


def _write(path: str | Path, pixels: np.ndarray, overwrite: bool) -> None:
    if isinstance(path, str):
        with open(1, "wb", closefd=False) as stdout:
            stdout.write(encoded_image("stdout.png", pixels))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, pixels, overwrite=overwrite)
    say(path)
