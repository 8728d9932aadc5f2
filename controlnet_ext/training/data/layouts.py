"""The layouts of training data, told apart by what a folder or file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import TOLERANCE
from .examples import Example
from .folders import describe_orphans, list_captioned_images, list_images
from .lists import LIST_SUFFIXES, METADATA_FILES, TUTORIAL_FILE, read_list_rows
from .rows import USUAL_COLUMNS, Columns, ExampleRow, build_examples
from .shards import is_shard_pattern, list_shards
from .tables import (
    SPLITS_FILE,
    STATE_FILE,
    TRAIN_SPLIT,
    list_arrow_files,
    list_parquet_files,
    read_arrow_rows,
    unpack_parquet,
)
from .tolerance import Tolerance


@dataclass(frozen=True)
class ReadingOptions:
    """Names and folders that reading examples needs.

    columns: names of the columns of a list or table.
    map_column: a column that holds maps too, where no usual one does: the preprocessor's name.
    maps: folder with the maps of a folder of images, by stem.
    tolerance: what counts broken examples.
    unpack_folder: where Parquet files are unpacked to.
    """

    tolerance: Tolerance
    columns: Columns = USUAL_COLUMNS
    map_column: str | None = None
    maps: Path | None = None
    unpack_folder: Path | None = None


def check_data_source(text: str) -> None:
    """Raise FileNotFoundError or ValueError unless the text names a folder, a list, a table, or shards that exist."""
    path = Path(text)
    if is_shard_pattern(text):
        list_shards(text)
        if path.is_dir() and (other := _find_beside_shards(path)):
            raise ValueError(f"{text!r} holds both shards and {other}: name what is meant with --data")
        return
    suffixes = (*LIST_SUFFIXES, ".parquet", ".arrow")
    if not path.is_dir() and not (path.suffix.lower() in suffixes and path.is_file()):
        raise FileNotFoundError(
            f"{text!r} is not a folder; expected one with images, a list ({', '.join(LIST_SUFFIXES)}), a table "
            "(.parquet, .arrow), shards (data/{0000..0099}.tar), or the word scenes"
        )


def _find_beside_shards(folder: Path) -> str | None:
    """Return the name of other training data in a folder of shards, None without any."""
    markers = [marker for marker, holds in MARKERS.items() if holds(folder)]
    return markers[0] if markers else next((path.name for path in list_images(folder)), None)


def read_examples(
    path: Path, map_column: str | None = None, options: ReadingOptions | None = None
) -> tuple[Example, ...]:
    """Read the examples of a folder, a list or a table.

    They are the rows of its list (`METADATA_FILES`: `{"file_name": .., "text": .., "map": ..}`, the map optional, its
    column one of `MAP_COLUMNS`, else `map_column`), of its prompt.json, its Arrow or Parquet files, or all images with
    the caption `<stem>.txt` beside each; where it holds none of these, those of its folder `train`. Files are read and
    hashed; their pixels are not decoded. Raises FileNotFoundError or ValueError in one line: no images, no captions,
    files that are no complete images, maps that `check_same_aspect` refuses.
    """
    options = options or ReadingOptions(Tolerance(TOLERANCE, lambda _: None), map_column=map_column)
    check_data_source(str(path))
    rows = _read_rows(path, options)
    if not rows:
        raise ValueError(f"{str(path)!r} holds no images")
    return build_examples(rows, options.tolerance)


def _read_rows(path: Path, options: ReadingOptions) -> list[ExampleRow]:
    if path.is_file():
        _refuse_maps(options, repr(str(path)))
        return _read_file(path, options)
    markers = [marker for marker, holds in MARKERS.items() if holds(path)]
    if len(markers) > 1:
        raise ValueError(f"{str(path)!r} holds both {markers[0]} and {markers[1]}: remove one, or name one with --data")
    if not markers:
        rows = list_captioned_images(path, options.maps, METADATA_FILES[0], options.map_column)
        if not rows and (path / TRAIN_SPLIT).is_dir():
            return _read_rows(path / TRAIN_SPLIT, options)
        if rows and (line := describe_orphans(path)):
            options.tolerance.note(line)
        return rows
    _refuse_maps(options, repr(markers[0]))
    if markers[0] == ARROW:
        files = list_arrow_files(path)
    else:
        files = list_parquet_files(path) if markers[0] == PARQUET else [path / markers[0]]
    return [row for file in files for row in _read_file(file, options)]


def _refuse_maps(options: ReadingOptions, name: str) -> None:
    if options.maps is not None:
        raise ValueError(
            f"--maps {str(options.maps)!r} belongs to a folder of images, but {name} lists them: --columns"
        )


def _read_file(path: Path, options: ReadingOptions) -> list[ExampleRow]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        if options.unpack_folder is None:
            raise ValueError(f"{str(path)!r} needs a folder to be unpacked to")
        path = unpack_parquet(path, options.columns, options.map_column, options.unpack_folder)
    if suffix in (".parquet", ".arrow"):
        return read_arrow_rows(path, options.columns, options.map_column)
    return read_list_rows(path, options.columns, options.map_column)


ARROW, PARQUET = "an Arrow dataset", "Parquet files"
MARKERS: dict[str, Callable[[Path], bool]] = {
    **{name: lambda folder, name=name: (folder / name).exists() for name in (*METADATA_FILES, TUTORIAL_FILE)},  # type: ignore[misc]
    ARROW: lambda folder: any((folder / n).exists() for n in (SPLITS_FILE, STATE_FILE)) or any(folder.glob("*.arrow")),
    PARQUET: lambda folder: bool(list_parquet_files(folder)),
}
