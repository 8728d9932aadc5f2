"""Lists of training data: JSON lines, JSON, CSV, and the prompt.json of the original ControlNet's tutorial."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...batch.formats.lists import LINE_LIMIT
from ...batch.results import list_record_files, read_rows
from ...files.disk import open_regular_file, parse_json, parse_object
from .rows import USUAL_COLUMNS, Columns, ExampleRow, find_named_map, read_text_value

LIST_SUFFIXES = (".jsonl", ".json", ".csv")
METADATA_FILES = ("metadata.jsonl", "captions.jsonl", "metadata.csv")
TUTORIAL_FILE = "prompt.json"  # lllyasviel/ControlNet, docs/train.md: target is the image, source its map
TUTORIAL_COLUMNS = Columns("target", "source", "prompt")
LIST_LIMIT = 2**30  # bytes of a list that is one value


def read_list_rows(path: Path, columns: Columns, map_column: str | None) -> list[ExampleRow]:
    """Return the rows of a list; paths begin at its folder.

    A map is in one of `MAP_COLUMNS`, else in `map_column`, a row's own. Raises ValueError in one line: broken JSON, no
    column of images or captions, a file outside the folder of the list, except for images that the record of a
    `preprocess` in that folder has.
    """
    if columns == USUAL_COLUMNS and path.name == TUTORIAL_FILE:
        columns = TUTORIAL_COLUMNS
    sources = {str(row.get("source")) for row in read_rows(list_record_files(str(path.parent))).values()}
    rows = list(_iter_rows(path))
    if columns.map is not None and rows:
        columns.find_map({name for row, _ in rows for name in row}, repr(str(path)))
    return [_read_row(path, row, where, columns, map_column, sources) for row, where in rows]


def _read_row(
    path: Path, row: dict[str, Any], where: str, columns: Columns, map_column: str | None, sources: set[str]
) -> ExampleRow:
    values = {name: value for name, value in row.items() if value is not None}
    try:
        image, text = values[columns.find_image(values, where)], values[columns.find_text(values, where)]
    except ValueError as error:
        if columns != USUAL_COLUMNS:
            raise
        raise ValueError(f'{where}: expected {{"file_name": "a.png", "text": "a caption"}}') from error
    own = find_named_map(row, where) if columns.map is None else columns.map
    control = values.get(own or map_column or "")
    is_source = isinstance(image, str) and posixpath.normpath(image) in sources
    return ExampleRow(
        path.parent / image if is_source else resolve_inside(path.parent, image, where),
        read_text_value(text, where),
        None if control is None else resolve_inside(path.parent, control, where),
    )


def _iter_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each row with its place for messages."""
    name = repr(str(path))
    with open_regular_file(path) as file:
        if path.suffix.lower() == ".csv":
            text = _read_whole(file.read(LIST_LIMIT + 1), name)
            for n, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 2):
                yield {str(key): value for key, value in row.items() if key is not None}, f"{name}, line {n}"
            return
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
        file.seek(0)
        if path.suffix.lower() == ".json" and start.startswith(b"["):
            content = file.read(LIST_LIMIT + 1)
            _read_whole(content, name)
            for n, value in enumerate(parse_json(content, name), 1):
                if not isinstance(value, dict):
                    raise ValueError(f"{name}, entry {n} is a {type(value).__name__}, expected an object")
                yield value, f"{name}, entry {n}"
            return
        n = 0
        while line := file.readline(LINE_LIMIT + 1):
            n += 1
            if len(line) > LINE_LIMIT:
                raise ValueError(f"{name}, line {n} is over {LINE_LIMIT} bytes")
            if line.strip():
                yield parse_object(line, f"{name}, line {n}"), f"{name}, line {n}"


def _read_whole(content: bytes, name: str) -> str:
    if len(content) > LIST_LIMIT:
        raise ValueError(f"{name} is over {LIST_LIMIT} bytes: write JSON lines, or a table")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error}") from error


def resolve_inside(folder: Path, name: object, where: str) -> Path:
    """Return the path of a file in a list. Raises ValueError, beginning with `where`, for one outside the folder: the
    list may be downloaded."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{where}: {name!r:.80} is not a file in the list's folder")
    return folder / name
