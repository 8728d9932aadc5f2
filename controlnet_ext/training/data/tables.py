"""Tables of training data: Parquet, and Arrow as Hugging Face `datasets` saves it. Needs pyarrow."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...batch.formats.tables import import_pyarrow, iter_table_batches, open_parquet
from ...errors import one_line
from ...files.disk import open_regular_file, read_json, write_atomically
from ...files.image_reader import IMAGE_FILE_LIMIT
from .examples import ImageFile, PackedFile
from .lists import resolve_inside
from .rows import Columns, ExampleRow, read_text_value

STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"  # of `save_to_disk`
TRAIN_SPLIT = "train"
SPLIT_WORDS = re.compile(r"[-_.]")  # between the words of names such as fill50k-train-00000-of-00002.arrow
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream that was written to its end
FILE_MARK = b"ARROW1"  # at both ends of an Arrow file
FREE_BYTES, UNPACKED_PER_BYTE = 2**26, 64  # that a table may take in memory: so many, and so many for each byte of it


@dataclass(frozen=True)
class ArrowImage(PackedFile):
    """The bytes of an image in a row of an Arrow file."""

    path: str
    column: str
    row: int

    @property
    def name(self) -> str:
        """The file, the column and the row, from 0."""
        return f"{self.path}, {self.column} of row {self.row}"

    def read(self) -> bytes:
        """Return the bytes. Raises ValueError when there are none, or the file is no longer what it was."""
        try:
            value = _open_arrow(self.path).column(self.column)[self.row].as_py()
        except (IndexError, KeyError):
            raise ValueError(f"{self.name!r} is gone: the file has changed") from None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ValueError(f"{self.name!r} holds no image")
        if len(content) > IMAGE_FILE_LIMIT:
            raise ValueError(f"{self.name!r} is over 1 GiB, too large for an image")
        return content


def list_arrow_files(folder: Path) -> list[Path]:
    """Return the files of a dataset that `save_to_disk` wrote, or the Arrow files of a folder.

    Of one with several splits, those of `train`, or of its only one. Raises ValueError where it has others, or a file
    that its list names is outside the folder; FileNotFoundError for one that is missing.
    """
    if (folder / SPLITS_FILE).exists():
        splits = read_json(folder / SPLITS_FILE).get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        if TRAIN_SPLIT not in names and len(names) != 1:
            raise ValueError(f"{str(folder)!r} has the splits {', '.join(names)}: name one, such as FOLDER/{names[:1]}")
        split = resolve_inside(folder, TRAIN_SPLIT if TRAIN_SPLIT in names else names[0], repr(str(folder)))
        return list_arrow_files(split)
    if not (folder / STATE_FILE).exists():
        return _choose_training_split(sorted(folder.glob("*.arrow")))
    where = repr(str(folder / STATE_FILE))
    state = read_json(folder / STATE_FILE)
    files = state.get("_data_files")
    if not isinstance(files, list) or not files or not all(isinstance(file, dict) for file in files):
        raise ValueError(f"{where} names no files: is it a dataset that save_to_disk wrote?")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ValueError(f"{where} has indices: call flatten_indices() before save_to_disk()")
    paths = [resolve_inside(folder, file.get("filename"), where) for file in files]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{str(path)!r} does not exist, which {where} names")
    return paths


def list_parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, or of `data` in it, as repositories of datasets have them: those of the
    split `train` where the names say so."""
    return _choose_training_split(sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet")))


def _choose_training_split(files: list[Path]) -> list[Path]:
    """Return the files with the word train in their names, all of them if none has it."""
    return [path for path in files if TRAIN_SPLIT in SPLIT_WORDS.split(path.stem)] or files


def read_arrow_rows(path: Path, columns: Columns, map_column: str | None) -> list[ExampleRow]:
    """Return the rows of an Arrow file. Images are not read.

    Raises ValueError in one line: it is none, is cut short, or lacks a column.
    """
    where = repr(str(path))
    table = _open_arrow(str(path))
    image_name = columns.find_image(table.column_names, where)
    text_name = columns.find_text(table.column_names, where)
    own = columns.find_map(table.column_names, where)
    map_name = own or (map_column if map_column in table.column_names else None)
    texts = table.column(text_name)
    images = _list_sources(path, table, image_name)
    maps = _list_sources(path, table, map_name) if map_name else iter([None] * len(table))
    rows = []
    for i, (image, control) in enumerate(zip(images, maps, strict=True)):
        problem, caption = None, ""
        try:
            caption = read_text_value(texts[i].as_py(), f"{where}, row {i}")
        except ValueError as error:
            problem = one_line(error)
        source = image or ArrowImage(str(path), image_name, i)
        rows.append(ExampleRow(source, caption, control, problem))
    return rows


def _list_sources(path: Path, table: Any, column: str) -> Iterator[ImageFile | None]:
    """Yield where the images of a column lie, None for a row without."""
    pa = import_pyarrow("pyarrow")
    kind = table.schema.field(column).type
    values = table.column(column)
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        contents, paths = (pa.compute.struct_field(values, name) for name in ("bytes", "path"))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        contents, paths = pa.chunked_array([pa.nulls(len(table))]), values
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        contents, paths = values, pa.chunked_array([pa.nulls(len(table))])
    else:
        raise ValueError(f"{str(path)!r}: the column {column} holds {kind}, expected images or their files")
    has_bytes = contents.is_valid().to_pylist() if contents.type != pa.null() else [False] * len(table)
    for i, (is_packed, name) in enumerate(zip(has_bytes, paths.to_pylist(), strict=True)):
        if is_packed:
            yield ArrowImage(str(path), column, i)
        else:
            yield None if name is None else resolve_inside(path.parent, name, f"{str(path)!r}, row {i}")


@lru_cache(maxsize=256)
def _open_arrow(path: str) -> Any:
    """Return the table of an Arrow file, mapped into memory. Raises ValueError in one line."""
    pa = import_pyarrow("pyarrow")
    import_pyarrow("pyarrow.compute")
    with open_regular_file(path) as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 8, 0))
        end = file.read(8)
    is_file = start.startswith(FILE_MARK)
    if not (end.endswith(FILE_MARK) if is_file else end == STREAM_END):
        raise ValueError(f"{path!r} is cut short, or no Arrow file")
    try:
        memory_map = pa.memory_map(path)
        table = (pa.ipc.open_file(memory_map) if is_file else pa.ipc.open_stream(memory_map)).read_all()
        if table.nbytes > FREE_BYTES + UNPACKED_PER_BYTE * size:
            raise ValueError(f"it takes {table.nbytes} bytes in memory")
        table.validate(full=True)
    except (ValueError, OSError, MemoryError, pa.ArrowException) as error:
        raise ValueError(f"{path!r} is no Arrow file that can be read: {one_line(error, 200)}") from error
    return table


def unpack_parquet(path: Path, columns: Columns, map_column: str | None, folder: Path) -> Path:
    """Write the columns of a Parquet file that training needs to an Arrow file in `folder`, and return its path.

    Rows of Parquet cannot be read one by one; Arrow is mapped into memory. A file that is there already is returned.
    Raises ValueError in one line: no Parquet file, cut short, a column that is missing or unpacks into too much.
    """
    pa, where = import_pyarrow("pyarrow"), repr(str(path))
    status = os.stat(path)
    with open_parquet(str(path)) as file:
        names = file.schema_arrow.names
        own = columns.find_map(names, where) or (map_column if map_column in names else None)
        column_names = [columns.find_image(names, where), columns.find_text(names, where), *([own] if own else [])]
        what = json.dumps([os.path.abspath(path), status.st_size, status.st_mtime_ns, column_names])
        target = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.arrow"
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write_atomically(target, _iter_stream(pa, file, column_names, str(path)), overwrite=True)
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{where} is broken: {one_line(error, 200)}") from error
    return target


def _iter_stream(pa: Any, file: Any, column_names: list[str], path: str) -> Iterator[bytes]:
    """Yield an Arrow stream of these columns."""
    buffer = _Buffer()
    schema = pa.schema([file.schema_arrow.field(name) for name in column_names])
    with pa.ipc.new_stream(pa.PythonFile(buffer, mode="w"), schema) as writer:
        for batch in iter_table_batches(file, column_names, path):
            writer.write_batch(batch.select(column_names))
            yield buffer.take()
    yield buffer.take()


class _Buffer:
    """A file whose bytes are taken out as they come."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: Any) -> int:
        """Append bytes."""
        self._parts.append(bytes(part))
        return len(self._parts[-1])

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None: ...

    def take(self) -> bytes:
        """Return all bytes since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
