"""The words of a command line as files: pictures, and what holds several of them.

Masks of pictures that are files: the pictures of a folder that have their keys.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif")

TARS = (".tar", ".tar.gz", ".tgz")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
LISTS, TABLES = (".jsonl",), (".parquet",)


class File(NamedTuple):
    """A file, and the path without suffix, with forward slashes, that its results have in their folder. `mask` is that
    of a picture, where one is wanted."""

    path: str
    key: str
    mask: str | None = None


def found(words: list[str], recursive: bool) -> list[File]:
    """The files that are meant: those named; the pictures of folders, with `recursive` of the folders in them too,
    sorted, without hidden ones; what a glob matches, sorted. What lies deeper in a folder, or below the part of a glob
    without wildcards, has keys with these folders. FileNotFoundError or ValueError for what means nothing."""
    return [file for word in words for file in _meant(word, recursive)]


def _meant(word: str, recursive: bool) -> Iterator[File]:
    if os.path.isdir(word):
        yield from _pictures(word, recursive)
    elif os.path.lexists(word):
        yield File(word, _key(os.path.basename(word)))
    elif glob.has_magic(word):
        yield from _matched(word)
    else:
        raise FileNotFoundError(f"{word!r} does not exist")


def _pictures(folder: str, recursive: bool) -> list[File]:
    names = (name for name in _names(folder, recursive) if os.path.splitext(name)[1].lower() in SUFFIXES)
    files = [File(os.path.join(folder, name), _key(name)) for name in sorted(names)]
    if not files:
        raise ValueError(f"{folder!r} holds no pictures{'' if recursive else ' (--recursive looks into its folders)'}")
    return files


def _names(folder: str, recursive: bool) -> Iterator[str]:
    """The files of a folder, by their path in it. Hidden files and folders are left out."""

    def refuse(error: OSError) -> None:
        raise error

    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(here, name), folder) for name in names if not name.startswith("."))


def _matched(pattern: str) -> list[File]:
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    paths = sorted(path for path in glob.iglob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise FileNotFoundError(f"{pattern!r} matches no files")
    return [File(path, _key(os.path.relpath(path, root or "."))) for path in paths]


def _key(name: str) -> str:
    return os.path.splitext(name)[0].replace(os.sep, "/")


def holds_pictures(path: str) -> bool:
    """Whether a file is, by its suffix, no picture but one that holds pictures."""
    return path.lower().endswith((*TARS, *VIDEOS, *LISTS, *TABLES))


def by_kind(files: Sequence[File]) -> tuple[list[File], list[File], list[File]]:
    """Pictures, lists of pictures, and files with pictures in them."""
    kinds: tuple[list[File], list[File], list[File]] = [], [], []
    for file in files:
        kinds[0 if not holds_pictures(file.path) else 1 if file.path.lower().endswith(LISTS) else 2].append(file)
    return kinds


def with_masks(files: Sequence[File], folder: str) -> list[File]:
    """The files, each with the picture of its key in the folder or below; where there is none with its name as a PNG,
    which whoever reads it will miss. ValueError when two have one key, or the folder holds no pictures."""
    masks: dict[str, str] = {}
    for path, key, _ in found([folder], recursive=True):
        if key in masks:
            raise ValueError(f"{masks[key]!r} and {path!r} are masks of the same pictures: remove one")
        masks[key] = path
    return [file._replace(mask=masks.get(file.key, os.path.join(folder, f"{file.key}.png"))) for file in files]
