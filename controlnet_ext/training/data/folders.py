"""Folders of images with the caption of each beside it, and with maps of the same names in a folder of their own."""

from __future__ import annotations

from pathlib import Path

from ...batch.inputs import IMAGE_SUFFIXES, InputFile
from ...batch.results import exclude_recorded_maps
from ...preprocessors.registry import list_preprocessors
from .rows import ExampleRow

CAPTION_SUFFIXES = (".txt", ".caption")  # the latter is that of kohya's sd-scripts


def list_captioned_images(
    folder: Path, maps: Path | None, list_name: str, preprocessor: str | None = None
) -> list[ExampleRow]:
    """Return a row for each image of a folder, with its map in `maps` where that is given: of the same stem, or as
    `preprocess` names it, of this preprocessor if there are several.

    Rows without caption or map have a problem.
    """
    images = [Path(f.path) for f in exclude_recorded_maps(_list_inputs(folder), str(folder))]
    by_stem = {} if maps is None else _index_maps(maps, preprocessor)
    return [_make_row(image, by_stem.get(image.stem, []), maps, list_name) for image in images]


def _index_maps(folder: Path, preprocessor: str | None) -> dict[str, list[Path]]:
    """Return the maps of a folder by the stem of their image: their own, or what stands before the name of a
    preprocessor; where there are maps of several preprocessors, those of this one."""
    paths = list_images(folder)
    by_stem: dict[str, list[Path]] = {}
    for path in paths:
        by_stem.setdefault(path.stem, []).append(path)
    if not any("_" in path.stem for path in paths):
        return by_stem
    names = {spec.name for spec in list_preprocessors()}
    by_preprocessor: dict[str, dict[str, list[Path]]] = {}
    for path in paths:
        for place in (i for i, letter in enumerate(path.stem) if letter == "_"):
            if path.stem[place + 1 :] in names:
                by_preprocessor.setdefault(path.stem[:place], {}).setdefault(path.stem[place + 1 :], []).append(path)
    for stem, by_name in by_preprocessor.items():
        several = [path for each in by_name.values() for path in each]
        by_stem.setdefault(stem, by_name.get(preprocessor or "", several))
    return by_stem


def describe_orphans(folder: Path) -> str | None:
    """Return a line on captions of a folder whose images are not there, None without any."""
    stems = {path.stem for path in list_images(folder)}
    orphans = sorted(p for p in folder.iterdir() if p.suffix in CAPTION_SUFFIXES and p.stem not in stems)
    if not orphans:
        return None
    return f"{len(orphans)} captions in {str(folder)!r} have no image of their stem, such as {orphans[0].name!r}"


def _make_row(image: Path, map_paths: list[Path], maps: Path | None, list_name: str) -> ExampleRow:
    captions = [image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES if image.with_suffix(suffix).exists()]
    problem = None
    if not captions:
        problem = (
            f"{str(image)!r} has no caption: write one to {image.with_suffix('.txt').name!r} beside it, or list all in "
            f"{list_name}"
        )
    elif len(captions) > 1:
        problem = f"{str(image)!r} has two captions, {captions[0].name!r} and {captions[1].name!r}: remove one"
    elif maps is not None and len(map_paths) != 1:
        several = (
            f"{len(map_paths)} maps called {image.stem!r}, expected one"
            if map_paths
            else f"no map called {image.stem!r}"
        )
        problem = f"{str(maps)!r} holds {several}, for {str(image)!r}"
    return ExampleRow(image, captions[0] if captions else "", map_paths[0] if map_paths else None, problem)


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder by name, without hidden ones."""
    return [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]


def _list_inputs(folder: Path) -> list[InputFile]:
    return [InputFile(str(path), path.stem) for path in list_images(folder)]
