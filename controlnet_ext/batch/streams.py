"""Files that hold pictures, and what comes of each: one of its kind, with the maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from .formats.journal import Form, box
from .formats.tables import Rows, Table
from .formats.tars import Shard, Tar
from .formats.videos import CODES, Film, Video
from .inputs import SUFFIXES, TABLES, TARS, File
from .job import Stream
from .loop import Sink, Source
from .record import Record
from .request import STDOUT, Order
from .stages import endings


class Output(NamedTuple):
    """A source, of `total` pictures where that is known, and the form that comes of it in the files `paths`."""

    source: Source
    total: int | None
    form: Form
    paths: tuple[str, ...]


def output(order: Order, file: File, single: bool) -> Output:
    """What comes of a file, in the folder OUT, or OUT itself where it can stand for the `single` result.
    ValueError when its kind cannot be what is asked for, or the only file is not what its name says."""
    names = [entry.name for entry in order.entries]
    ends = endings(names, order.json)
    path = file.path.lower()
    if path.endswith(TARS):
        place = _place(order, file, single, (".tar",))
        return _checked(Output(Tar(file.path, order.masked), None, Shard(Path(place)), (place,)), single)
    if path.endswith(TABLES):
        place = _place(order, file, single, TABLES)
        rows = Rows(Path(place), file.path, tuple(ends))
        rows.check()
        table = Table(file.path, order.masked)
        table.check()
        return Output(table, len(table), rows, (place,))
    if order.masked:
        raise ValueError(f"{file.path!r} is a video, which has no masks")
    if order.json or order.sixteen_bit:
        raise ValueError(
            f"--{'json' if order.json else 'sixteen-bit'} has no place in a video, which {file.path!r} becomes"
        )
    places = {name: _place(order, file, single and len(names) == 1, _film_suffixes(file), f"_{name}") for name in names}
    film = Film({name: Path(place) for name, place in places.items()}, file.path)
    video = Video(file.path)
    return _checked(Output(video, len(video) or None, film, tuple(places.values())), single)


def _checked(made: Output, single: bool) -> Output:
    if single:
        with closing(made.source.pictures(0)) as pictures:
            first = next(pictures, None)
        if first and not first.key and isinstance(first.content, ValueError):
            raise first.content
    return made


def stream(made: Output, number: int, record: Record) -> Stream:
    """The stream that makes an output, the one of this number in its job."""

    def sink() -> Sink:
        part = Path(made.paths[0]).parent / f".{record.mark}{number}.box"
        return box(made.form, part, record.folder / f"{number}.journal")

    return Stream(made.source, sink, made.total)


def _film_suffixes(file: File) -> tuple[str, ...]:
    """Those a video's maps may have, the one they have in a folder first."""
    own = os.path.splitext(file.path)[1].lower()
    return (own, *CODES) if own in CODES else tuple(CODES)


def _place(order: Order, file: File, single: bool, suffixes: Sequence[str], more: str = "") -> str:
    is_folder = order.out.endswith(("/", os.sep)) or os.path.isdir(order.out)
    if order.out == STDOUT:
        raise ValueError(f"what becomes of {file.path!r} does not go to stdout: name a folder")
    if single and not is_folder and order.out.lower().endswith(tuple(suffixes)):
        return order.out
    if not is_folder and (
        os.path.lexists(order.out) or order.out.lower().endswith((*SUFFIXES, *TARS, *CODES, *TABLES))
    ):
        raise ValueError(f"{order.out!r} is a file, expected a folder, or for one result a {' or '.join(suffixes)}")
    stem = next((file.key.removesuffix(end) for end in (".tar",) if file.key.lower().endswith(end)), file.key)
    return os.path.join(order.out, f"{stem}{more}{suffixes[0]}")
