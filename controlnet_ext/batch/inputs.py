"""Input files of a job, found from the arguments of the command: images, files that hold several, and masks."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..preprocessors.registry import find_or_none

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".avif",
)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
LIST_SUFFIXES, TABLE_SUFFIXES = (".jsonl",), (".parquet",)


class InputFile(NamedTuple):
    """An input file.

    key: path of its results in their folder, without suffix, with forward slashes.
    mask: path of the mask of an image, where one is needed.
    """

    path: str
    key: str
    mask: str | None = None


def find_inputs(patterns: list[str], recursive: bool) -> list[InputFile]:
    """Find the input files.

    A pattern is a file; a folder, for its images sorted by name without hidden ones, with `recursive` those of its
    folders too; or a glob, for its matches sorted. Files deeper in a folder, or below the part of a glob without
    wildcards, have keys with these folders. Raises FileNotFoundError or ValueError for a pattern without files.
    """
    return [file for word in patterns for file in _expand_pattern(word, recursive)]


def _expand_pattern(pattern: str, recursive: bool) -> Iterator[InputFile]:
    if os.path.isdir(pattern):
        yield from _list_images(pattern, recursive)
    elif os.path.lexists(pattern):
        yield InputFile(pattern, _key_from_path(os.path.basename(pattern)))
    elif glob.has_magic(pattern):
        yield from _expand_glob(pattern)
    else:
        name = find_or_none(pattern)
        hint = f": {name.name} is a preprocessor, join several by commas, NAME,{name.name}" if name else ""
        raise FileNotFoundError(f"{pattern!r} does not exist{hint}")


def _list_images(folder: str, recursive: bool) -> list[InputFile]:
    names = (name for name in _walk_files(folder, recursive) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
    files = [InputFile(os.path.join(folder, name), _key_from_path(name)) for name in sorted(names)]
    if not files:
        raise ValueError(f"{folder!r} holds no images{'' if recursive else ' (--recursive looks into its folders)'}")
    return files


def _walk_files(folder: str, recursive: bool) -> Iterator[str]:
    """Yield the files of a folder by their path in it, without hidden files and folders."""

    def refuse(error: OSError) -> None:
        raise error

    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(here, name), folder) for name in names if not name.startswith("."))


def _expand_glob(pattern: str) -> list[InputFile]:
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    paths = sorted(path for path in glob.iglob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise FileNotFoundError(f"{pattern!r} matches no files")
    return [InputFile(path, _key_from_path(os.path.relpath(path, root or "."))) for path in paths]


def _key_from_path(path: str) -> str:
    return os.path.splitext(path)[0].replace(os.sep, "/")


def is_container(path: str) -> bool:
    """Return True if the suffix is that of a file that holds several images."""
    return path.lower().endswith((*TAR_SUFFIXES, *VIDEO_SUFFIXES, *LIST_SUFFIXES, *TABLE_SUFFIXES))


def split_by_kind(files: Sequence[InputFile]) -> tuple[list[InputFile], list[InputFile], list[InputFile]]:
    """Return the images, the lists of images, and the other files that hold images."""
    kinds: tuple[list[InputFile], list[InputFile], list[InputFile]] = [], [], []
    for file in files:
        kinds[0 if not is_container(file.path) else 1 if file.path.lower().endswith(LIST_SUFFIXES) else 2].append(file)
    return kinds


def attach_masks(files: Sequence[InputFile], folder: str) -> list[InputFile]:
    """Return the files, each with the image of the same key in `folder` or below as its mask.

    A file without one gets the path that its PNG would have, and the reader reports it as missing. Raises ValueError
    when two masks have one key, or the folder holds no images.
    """
    masks: dict[str, str] = {}
    for path, key, _ in find_inputs([folder], recursive=True):
        if key in masks:
            raise ValueError(f"{masks[key]!r} and {path!r} are masks of the same images: remove one")
        masks[key] = path
    return [file._replace(mask=masks.get(file.key, os.path.join(folder, f"{file.key}.png"))) for file in files]
