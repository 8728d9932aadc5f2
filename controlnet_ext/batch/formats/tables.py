"""Parquet tables of images: the same rows are written again, with their maps. Needs pyarrow."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import one_line, quote_value
from ...files.disk import open_regular_file
from ..stages import InputImage
from .journal import iter_indexed_members
from .lists import MASK_COLUMN, PATH_COLUMNS
from .tars import SAMPLE_IMAGE_FIELDS

BATCH_ROWS = 64  # in memory at once, fewer where they may be large:
BATCH_BYTES = 2**26  # that a batch may take
FREE_BYTES, UNPACKED_PER_BYTE = 2**26, 64  # that a column may unpack into: so many, and so many for each byte
FREE_ROWS = 2**16  # of any table; beyond them, one for each byte of the file


def import_pyarrow(name: str = "pyarrow.parquet") -> Any:
    """Import a module of pyarrow. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f'a .parquet file needs pyarrow: pip install "controlnet-ext[data]" ({error})') from None


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """A source of the rows of a table.

    The image is in the first column with a name for images: bytes, a path from the folder of the table, or both as
    datasets of Hugging Face write them, {"bytes", "path"}. With `needs_mask` the mask is in the column `mask`,
    likewise.
    """

    path: str
    needs_mask: bool = False

    def __len__(self) -> int:
        with open_parquet(self.path) as file:
            return int(file.metadata.num_rows)

    def check_columns(self) -> None:
        """Raise ValueError when the table lacks a column of images or masks."""
        with open_parquet(self.path) as file:
            names = file.schema_arrow.names
        find_image_column(names, self.path)
        if self.needs_mask and MASK_COLUMN not in names:
            raise ValueError(f"{self.path!r} has no column of masks: expected {MASK_COLUMN!r}")

    def iter_images(self, start: int) -> Generator[InputImage, None, None]:
        """Yield the images from position `start` on."""
        with open_parquet(self.path) as file:
            column = find_image_column(file.schema_arrow.names, self.path)
            i = 0
            try:
                for batch in iter_table_batches(
                    file, [column, MASK_COLUMN] if self.needs_mask else [column], self.path
                ):
                    values = batch.column(column).to_pylist()
                    masks = batch.column(MASK_COLUMN).to_pylist() if self.needs_mask else [None] * len(values)
                    for value, mask in zip(values, masks, strict=True):
                        if i >= start:
                            its = None if mask is None else self._content(mask)
                            yield InputImage(i, str(i), f"{self.path}/{i}", self._content(value), its)
                        i += 1
            except (ValueError, OSError, import_pyarrow("pyarrow").ArrowException) as error:
                reason = ValueError(f"{self.path!r} is broken after {i} rows: {one_line(error, 200)}")
                yield InputImage(i, "", self.path, reason)

    def _content(self, value: Any) -> Any:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return os.path.join(os.path.dirname(self.path), value)
        return value if isinstance(value, bytes) else ValueError("the row has no image")


def find_image_column(names: list[str], path: str) -> str:
    """Return the name of the column of images. Raises ValueError when there is none."""
    for name in (*PATH_COLUMNS, *sorted(SAMPLE_IMAGE_FIELDS)):
        if name in names:
            return name
    raise ValueError(f"{path!r} has no column of images: expected image, file_name, path, jpg, png, ...")


def select_kept_columns(file: Any, path: str) -> list[str]:
    """Return the columns that an open table shares with the one that is written."""
    column = find_image_column(file.schema_arrow.names, path)
    text = import_pyarrow("pyarrow").types.is_string(file.schema_arrow.field(column).type)
    return [name for name in file.schema_arrow.names if text or name != column]


@dataclass(frozen=True)
class ParquetOutput:
    """The format of a table: the rows of the source in order, and for each preprocessor a column of PNGs.

    Columns with the bytes of images are left out. A map that failed is null.
    """

    path: Path
    source_path: str
    endings: tuple[str, ...]

    def member_name(self, image: InputImage, ending: str) -> str:
        """Return `<index>.<ending>`."""
        return f"{image.index}.{ending}"

    def output_files(self, part: Path) -> list[tuple[Path, Path]]:
        """Return the paths of the table."""
        return [(part.with_name(f"{part.name}.parquet"), self.path)]

    def map_columns(self) -> list[str]:
        """Return the names of the columns of maps: `canny` for canny.png, `openpose_json` for openpose.json."""
        return [ending.removesuffix(".png").replace(".", "_") for ending in self.endings]

    def check_columns(self) -> None:
        """Raise ValueError when the table has a column with the name of a column of maps."""
        with open_parquet(self.source_path) as file:
            if duplicates := sorted({*select_kept_columns(file, self.source_path)} & {*self.map_columns()}):
                raise ValueError(f"{self.source_path!r} has a column {duplicates[0]!r} already")

    def finalize(self, part: Path) -> None:
        """Write the table with the maps of the part."""
        pa, members = import_pyarrow("pyarrow"), iter_indexed_members(part)
        waiting = next(members, None)
        with open_parquet(self.source_path) as file:
            names = select_kept_columns(file, self.source_path)
            maps = [pa.field(name, pa.binary()) for name in self.map_columns()]
            schema = pa.schema([*(file.schema_arrow.field(name) for name in names), *maps])
            first = 0
            [(path, _)] = self.output_files(part)
            with import_pyarrow().ParquetWriter(path, schema) as writer:
                for batch in iter_table_batches(file, names, self.source_path):
                    rows: list[dict[str, bytes]] = [{} for _ in range(batch.num_rows)]
                    while waiting is not None and waiting[0] < first + len(rows):
                        rows[waiting[0] - first] = waiting[1]
                        waiting = next(members, None)
                    first += len(rows)
                    columns = [batch.column(name) for name in names]
                    columns += [pa.array([row.get(end) for row in rows], pa.binary()) for end in self.endings]
                    writer.write_batch(pa.record_batch(columns, schema=schema))


def iter_table_batches(file: Any, columns: list[str], path: str) -> Iterator[Any]:
    """Yield batches of these columns, of all if there are none, that take `BATCH_BYTES` at most.

    A value may be as large as its column in a row group, and a dictionary may repeat it in every row. Raises ValueError
    where a column unpacks into more than its bytes pay for, or there are more rows than bytes.
    """
    metadata, size, largest = file.metadata, os.path.getsize(path), 1
    if metadata.num_rows > FREE_ROWS + size:
        raise ValueError(f"{path!r} has {metadata.num_rows} rows in {size} bytes")
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        total = 0
        for chunk in map(group.column, range(group.num_columns)):
            if columns and chunk.path_in_schema.partition(".")[0] not in columns:
                continue
            limit = FREE_BYTES + UNPACKED_PER_BYTE * min(chunk.total_compressed_size, size)
            if chunk.total_uncompressed_size > limit:
                raise ValueError(
                    f"{path!r} has a column {quote_value(chunk.path_in_schema)} that unpacks into "
                    f"{chunk.total_uncompressed_size} bytes, over the limit of {limit} for its size"
                )
            total += chunk.total_uncompressed_size
        largest = max(largest, total)
    yield from file.iter_batches(max(1, min(BATCH_ROWS, BATCH_BYTES // largest)), columns=columns or None)


def open_parquet(path: str) -> Any:
    """Open a Parquet file. Raises ValueError when it is none, what `open_regular_file` raises."""
    module = import_pyarrow()
    with open_regular_file(path):  # not a pipe, which pyarrow would wait for
        pass
    try:
        return module.ParquetFile(path, buffer_size=2**20)  # or it reads a column of a row group at once
    except (OSError, import_pyarrow("pyarrow").ArrowException) as error:
        raise ValueError(f"{path!r} is no Parquet file: {one_line(error, 200)}") from error
