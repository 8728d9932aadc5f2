"""Rows of training data, as a list, a table or a folder names them, and the examples that they become."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...batch.formats.lists import MAP_COLUMNS, PATH_COLUMNS
from ...errors import error_prefix, one_line, quote_value
from ...files.disk import open_regular_file
from ...maps.resize import check_same_aspect
from .examples import Example, ImageFile, measure_image, name_source, read_source
from .tolerance import Tolerance

TEXT_COLUMNS = ("text", "caption", "prompt")
CAPTION_LIMIT = 2**16  # bytes


@dataclass(frozen=True)
class Columns:
    """Names of columns where the user gives them; None looks for the usual ones."""

    image: str | None = None
    map: str | None = None
    text: str | None = None

    @classmethod
    def parse(cls, text: str) -> Columns:
        """Return the columns of `image=a,map=b,text=c`, each optional. Raises ValueError for another text."""
        pairs = [word.partition("=")[::2] for word in text.split(",")]
        names = dict(pairs)
        if len(names) < len(pairs) or not names.keys() <= {"image", "map", "text"} or not all(names.values()):
            raise ValueError(f"--columns {quote_value(text)}: expected image=A,map=B,text=C, or some of them")
        return cls(**names)

    def find_image(self, names: Collection[str], where: str) -> str:
        """Return the column of the images. Raises ValueError, beginning with `where`, when there is none."""
        column = _find_column(self.image, PATH_COLUMNS, names, "image", where)
        if column is None:
            raise ValueError(f"{where}: no column of images ({', '.join(PATH_COLUMNS)}); name it: --columns image=A")
        return column

    def find_text(self, names: Collection[str], where: str) -> str:
        """Return the column of the captions. Raises ValueError, beginning with `where`, when there is none."""
        column = _find_column(self.text, TEXT_COLUMNS, names, "text", where)
        if column is None:
            raise ValueError(
                f"{where}: no column of captions, expected {' or '.join(TEXT_COLUMNS)}; name it: --columns"
            )
        return column

    def find_map(self, names: Collection[str], where: str) -> str | None:
        """Return the column of the maps, None when there is none."""
        return _find_column(self.map, MAP_COLUMNS, names, "map", where)


USUAL_COLUMNS = Columns()


def _find_column(column: str | None, usual: Sequence[str], names: Collection[str], role: str, where: str) -> str | None:
    if column is None:
        return next((name for name in usual if name in names), None)
    if column not in names:
        some = ", ".join(sorted(map(str, names))[:10])
        raise ValueError(f"{where}: --columns {role}={column} is none of its columns: {some:.200}")
    return column


@dataclass(frozen=True)
class ExampleRow:
    """A row: the image, its caption or the file that holds it, and its map, None where none is named.

    `problem` is why it cannot be an example, where that is known already.
    """

    image: ImageFile
    caption: str | Path
    map: ImageFile | None = None
    problem: str | None = None


def read_text_value(value: Any, where: str) -> str:
    """Return a caption of a row; of a list of captions the first, as diffusers validates. Raises ValueError."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str):
        raise ValueError(f"{where}: the caption is {quote_value(value)}, expected text")
    if len(first) > CAPTION_LIMIT:
        raise ValueError(f"{where}: over {CAPTION_LIMIT} letters, too long for a caption")
    return first


def decode_caption(content: bytes, name: str) -> str:
    """Return the text of a file of a caption, in UTF-8, or UTF-16 with its mark. Raises ValueError, with `name`."""
    if len(content) > CAPTION_LIMIT:
        raise ValueError(f"{name} is over {CAPTION_LIMIT} bytes, too long for a caption")
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes text
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error}") from error


def build_examples(rows: Sequence[ExampleRow], tolerance: Tolerance) -> tuple[Example, ...]:
    """Return the examples of the rows. Files are read and hashed; their pixels are not decoded.

    Raises ValueError when more than `tolerance` cannot be learnt from: a file that is missing or no complete image, a
    caption that is no text, a map that `check_same_aspect` refuses.
    """
    examples = []
    for row in rows:
        try:
            examples.append(_build_example(row))
        except (ValueError, OSError) as error:
            tolerance.add(name_source(row.image), one_line(error))
    tolerance.listed += len(rows)
    tolerance.check()
    return tuple(examples)


def _build_example(row: ExampleRow) -> Example:
    if row.problem is not None:
        raise ValueError(row.problem)
    content = read_source(row.image)
    size = measure_image(content, name_source(row.image))
    caption, map_sha256 = row.caption, ""
    if isinstance(caption, Path):
        with open_regular_file(caption) as file:
            caption = decode_caption(file.read(CAPTION_LIMIT + 1), repr(str(caption)))
    if row.map is not None:
        map_content = read_source(row.map)
        map_size = measure_image(map_content, name_source(row.map))
        map_sha256 = hashlib.sha256(map_content).hexdigest()
        with error_prefix(name_source(row.map)):
            check_same_aspect(map_size, size)
    return Example(row.image, caption, row.map, hashlib.sha256(content).hexdigest(), size, map_sha256)


def find_named_map(row: Mapping[str, Any], where: str) -> str | None:
    """Return the column of a row that names its map, None if none does. Raises ValueError where two differ."""
    paths = {name: row[name] for name in MAP_COLUMNS if row.get(name) is not None}
    if not paths:
        return None
    first, *others = paths
    if any(paths[other] != paths[first] for other in others):
        raise ValueError(f"{where}: {first} and {others[0]} name different maps: remove one")
    return first
