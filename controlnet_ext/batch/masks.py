"""Masks of pictures that are files: the pictures of a folder that have their keys."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .inputs import File, found


def with_masks(files: Sequence[File], folder: str) -> list[File]:
    """The files, each with the picture of its key in the folder or below; where there is none with its name as a PNG,
    which whoever reads it will miss. ValueError when two have one key, or the folder holds no pictures."""
    masks: dict[str, str] = {}
    for path, key, _ in found([folder], recursive=True):
        if key in masks:
            raise ValueError(f"{masks[key]!r} and {path!r} are masks of the same pictures: remove one")
        masks[key] = path
    return [file._replace(mask=masks.get(file.key, os.path.join(folder, f"{file.key}.png"))) for file in files]
