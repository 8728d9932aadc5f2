"""The words of a command line as files: pictures, and what holds several of them.

Masks of pictures that are files: the pictures of a folder that have their keys.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
    """A file, and the path without suffix, with forward slashes, that its results have in their folder. `mask` is that
    of a picture, where one is wanted."""

    path: str
    key: str
    mask: str | None = None


def find_inputs(patterns: list[str], recursive: bool) -> list[InputFile]:
    """The files that are meant: those named; the pictures of folders, with `recursive` of the folders in them too,
    sorted, without hidden ones; what a glob matches, sorted. What lies deeper in a folder, or below the part of a glob
    without wildcards, has keys with these folders. FileNotFoundError or ValueError for what means nothing."""
    return [file for word in patterns for file in _expand_pattern(word, recursive)]


def _expand_pattern(pattern: str, recursive: bool) -> Iterator[InputFile]:
    if os.path.isdir(pattern):
        yield from _list_images(pattern, recursive)
    elif os.path.lexists(pattern):
        yield InputFile(pattern, _key_from_path(os.path.basename(pattern)))
    elif glob.has_magic(pattern):
        yield from _expand_glob(pattern)
    else:
        raise FileNotFoundError(f"{pattern!r} does not exist")


def _list_images(folder: str, recursive: bool) -> list[InputFile]:
    names = (name for name in _walk_files(folder, recursive) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
    files = [InputFile(os.path.join(folder, name), _key_from_path(name)) for name in sorted(names)]
    if not files:
        raise ValueError(f"{folder!r} holds no pictures{'' if recursive else ' (--recursive looks into its folders)'}")
    return files


def _walk_files(folder: str, recursive: bool) -> Iterator[str]:
    """The files of a folder, by their path in it. Hidden files and folders are left out."""

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
    """Whether a file is, by its suffix, no picture but one that holds pictures."""
    return path.lower().endswith((*TAR_SUFFIXES, *VIDEO_SUFFIXES, *LIST_SUFFIXES, *TABLE_SUFFIXES))


def split_by_kind(files: Sequence[InputFile]) -> tuple[list[InputFile], list[InputFile], list[InputFile]]:
    """Pictures, lists of pictures, and files with pictures in them."""
    kinds: tuple[list[InputFile], list[InputFile], list[InputFile]] = [], [], []
    for file in files:
        kinds[0 if not is_container(file.path) else 1 if file.path.lower().endswith(LIST_SUFFIXES) else 2].append(file)
    return kinds


def attach_masks(files: Sequence[InputFile], folder: str) -> list[InputFile]:
    """The files, each with the picture of its key in the folder or below; where there is none with its name as a PNG,
    which whoever reads it will miss. ValueError when two have one key, or the folder holds no pictures."""
    masks: dict[str, str] = {}
    for path, key, _ in find_inputs([folder], recursive=True):
        if key in masks:
            raise ValueError(f"{masks[key]!r} and {path!r} are masks of the same pictures: remove one")
        masks[key] = path
    return [file._replace(mask=masks.get(file.key, os.path.join(folder, f"{file.key}.png"))) for file in files]
