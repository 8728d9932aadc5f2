"""Folders of images with the caption of each beside it, and with maps of the same names in a folder of their own."""

from __future__ import annotations

from pathlib import Path

from ...batch.inputs import IMAGE_SUFFIXES, InputFile
from ...batch.results import exclude_recorded_maps
from .rows import ExampleRow

CAPTION_SUFFIXES = (".txt", ".caption")  # the latter is that of kohya's sd-scripts


def list_captioned_images(folder: Path, maps: Path | None, list_name: str) -> list[ExampleRow]:
    """Return a row for each image of a folder, with its map of the same stem in `maps` where that is given.

    Rows without caption or map have a problem.
    """
    images = [Path(f.path) for f in exclude_recorded_maps(_list_inputs(folder), str(folder))]
    by_stem: dict[str, list[Path]] = {}
    for path in list_images(maps) if maps is not None else ():
        by_stem.setdefault(path.stem, []).append(path)
    return [_make_row(image, by_stem.get(image.stem, []), maps, list_name) for image in images]


def describe_orphans(folder: Path) -> str | None:
    """Return a line on captions of a folder whose images are not there, None without any."""
    stems = {path.stem for path in list_images(folder)}
    orphans = sorted(p for p in folder.iterdir() if p.suffix in CAPTION_SUFFIXES and p.stem not in stems)
    if not orphans:
        return None
    return f"{len(orphans)} captions in {str(folder)!r} have no image of their stem, such as {orphans[0].name!r}"


def _make_row(image: Path, found: list[Path], maps: Path | None, list_name: str) -> ExampleRow:
    captions = [image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES if image.with_suffix(suffix).exists()]
    problem = None
    if not captions:
        problem = (
            f"{str(image)!r} has no caption: write one to {image.with_suffix('.txt').name!r} beside it, or list all in "
            f"{list_name}"
        )
    elif len(captions) > 1:
        problem = f"{str(image)!r} has two captions, {captions[0].name!r} and {captions[1].name!r}: remove one"
    elif maps is not None and len(found) != 1:
        several = f"{len(found)} maps called {image.stem!r}, expected one" if found else f"no map called {image.stem!r}"
        problem = f"{str(maps)!r} holds {several}, for {str(image)!r}"
    return ExampleRow(image, captions[0] if captions else "", found[0] if found else None, problem)


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder by name, without hidden ones."""
    return [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]


def _list_inputs(folder: Path) -> list[InputFile]:
    return [InputFile(str(path), path.stem) for path in list_images(folder)]
