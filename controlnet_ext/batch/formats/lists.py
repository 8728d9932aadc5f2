"""Lists of images in JSON lines: the same rows are written again, with the paths of their maps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ...files.disk import open_regular_file, parse_object, write_atomically
from ..inputs import InputFile
from ..request import result_path

PATH_COLUMNS = ("file_name", "path", "image_path", "image")  # the first that a row has
KEY_COLUMNS = ("key", "__key__")
MASK_COLUMN = "mask"
# Names of the map in lists to train with: ours, the one that the training scripts of diffusers read, and what a Hugging
# Face image folder calls it
MAP_COLUMNS = ("map", "conditioning_image", "conditioning_image_file_name")
LINE_LIMIT = 2**20  # bytes


def read_list(path: str, needs_mask: bool = False) -> list[InputFile]:
    """Return the images of the rows.

    Paths start at the folder of the list. Keys are those of the rows, by default the paths without suffix; with
    `needs_mask` each row has a mask. Raises ValueError in one line: broken JSON, no path, a key that leads out of a
    folder.
    """
    return [
        _parse_row(row, path, needs_mask, f"line {i} of {path!r}")
        for i, row in enumerate(iter_list_rows(path), start=1)
    ]


def write_list(path: str, out: str, folder: str, spec_names: Sequence[str]) -> None:
    """Write the rows of the list to `out`, each with the path of every map that exists in `folder`.

    A map has the name of its preprocessor; a single one is also called `map`, unless the row names one, which is how
    `train` reads it. The paths of images begin at `folder`, where the list lies.
    """
    rows = (
        {**row, **_move_paths(row, file.key, path, folder), **_name_maps(row, file.key, folder, spec_names)}
        for row, file in zip(iter_list_rows(path), read_list(path), strict=True)
    )
    lines = (json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for row in rows)
    os.makedirs(folder, exist_ok=True)
    write_atomically(out, lines, overwrite=True)


def _name_maps(row: Mapping[str, Any], key: str, folder: str, spec_names: Sequence[str]) -> dict[str, str]:
    maps = {name: f"{key}_{name}.png" for name in spec_names if os.path.exists(result_path(folder, key, f"{name}.png"))}
    has_columns = any(row.get(name) is not None for name in MAP_COLUMNS)
    return maps | ({MAP_COLUMNS[0]: maps[spec_names[0]]} if maps and len(spec_names) == 1 and not has_columns else {})


def _move_paths(row: Mapping[str, Any], key: str, path: str, folder: str) -> dict[str, str]:
    """Return the paths of a row that begin at the folder of the list `path`, from `folder` on, and the row's key."""
    own = os.path.dirname(path)
    return {KEY_COLUMNS[0]: key} | {
        name: os.path.relpath(os.path.join(own, row[name]), folder).replace(os.sep, "/")
        for name in (*PATH_COLUMNS, *MAP_COLUMNS, MASK_COLUMN)
        if isinstance(row.get(name), str) and row[name] and not os.path.isabs(row[name])
    }


def get_row_key(row: Mapping[str, Any], image_path: str, where: str) -> str:
    """Return the key of a row, a path within a folder. Raises ValueError, beginning with `where`, for another path."""
    own_key = next((row[name] for name in KEY_COLUMNS if row.get(name) is not None), None)
    key = os.path.splitext(image_path.replace(os.sep, "/"))[0] if own_key is None else str(own_key)
    parts = PurePosixPath(key).parts
    if not parts or "\0" in key or "\\" in key or ":" in key or ".." in parts or key.startswith("/"):
        raise ValueError(f"{where}: the key {key!r:.80} is no path within a folder; give the row another `key`")
    return key


def _parse_row(row: dict[str, Any], path: str, needs_mask: bool, where: str) -> InputFile:
    image = next((row[name] for name in PATH_COLUMNS if isinstance(row.get(name), str) and row[name]), None)
    if image is None:
        raise ValueError(f"{where} names no image, expected one of {', '.join(PATH_COLUMNS)}")
    mask = row.get(MASK_COLUMN) if needs_mask else None
    if needs_mask and not (isinstance(mask, str) and mask):
        raise ValueError(f"{where} names no {MASK_COLUMN}")
    folder = os.path.dirname(path)
    return InputFile(os.path.join(folder, image), get_row_key(row, image, where), mask and os.path.join(folder, mask))


def iter_list_rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a list. Raises ValueError in one line for one that is no JSON object, or over 1 MiB."""
    with open_regular_file(path) as file:
        i = 0
        while line := file.readline(LINE_LIMIT + 1):
            i += 1
            if len(line) > LINE_LIMIT:
                raise ValueError(f"line {i} of {path!r} is over {LINE_LIMIT} bytes")
            yield parse_object(line, f"line {i} of {path!r}")
