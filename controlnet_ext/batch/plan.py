"""What a job has to do, checked before any work.

Files that hold pictures, and what comes of each: one of its kind, with the maps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from ..preprocessors.registry import Ready
from .formats.folder import Files, Folder, Place
from .formats.journal import Form, box
from .formats.lists import listed, write_list
from .formats.tables import Rows, Table
from .formats.tars import Shard, Tar
from .formats.videos import CODES, Film, Video
from .inputs import SUFFIXES, TABLES, TARS, File, by_kind
from .job import Recipe, Sink, Source, Stream, mine
from .record import Record, beside, look
from .request import STDOUT, Order, check, originals, target
from .stages import Loading, Networks, Read, endings


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


TOGETHER = 4  # pictures that a process is given at once where no network takes a batch


@dataclass(frozen=True, eq=False)
class Plan:
    """Streams, and the record of the job that they are."""

    streams: tuple[Stream, ...]
    record: Record


def planned(
    order: Order, files: Sequence[File], shard: tuple[int, int] | None, size: int, more: dict[str, Any]
) -> Plan:
    """The plan for these files, in lots of `size`. With the order, `more` is all that results depend on: a job that is
    run again is the same job if these are. A file that holds pictures is not divided, so shards take every n-th of
    them. Raises what `look`, `check` and `output` do, before anything is written."""
    pictures, lists, boxes = by_kind(files)
    single = len(files) == len(boxes) == 1 and shard is None
    if not single:
        order.single(max(2, len(files)) * len(order.entries))
    record = look(beside(order.out, shard), _job(order, [*lists, *boxes], more), order.overwrite)
    draft = _Draft(order, record, shard or (0, 1), size)
    if record.begun or shard is not None:
        pictures = originals(pictures, draft.ends, order.out)
    rows = [listed(file.path, order.masked) for file in lists]
    outputs = [output(order, file, single) for file in boxes]
    wanted = chain(
        *(draft.targets(some) for some in (pictures, *rows)),
        ((file.path, [draft.list_place(file)], draft.expected or shard is not None) for file in lists),
        ((f.path, made.paths, draft.expects(i)) for i, (f, made) in enumerate(zip(boxes, outputs, strict=True))),
        ((file.mask, [], True) for some in (pictures, *rows) for file in some if file.mask),
    )
    check(wanted, own=False)
    streams = [draft.stream(pictures)] if pictures else []
    streams += [draft.stream(some, draft.listing(file)) for file, some in zip(lists, rows, strict=True)]
    streams += [stream(made, i, record) for i, made in enumerate(outputs) if mine(i, draft.shard)]
    return Plan(tuple(streams), record)


def _job(order: Order, holding: Sequence[File], more: dict[str, Any]) -> dict[str, Any]:
    """What makes a job the same: where it goes on inside of a file, that file may not have changed."""
    found = [(os.path.abspath(file.path), os.stat(file.path)) for file in holding]
    return {
        "preprocessors": [entry.name for entry in order.entries],
        "values": list(order.values),
        "json": order.json,
        "sixteen_bit": order.sixteen_bit,
        "overwrite": order.overwrite,
        "opencv": cv2.__version__,  # encodes
        "holding": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found],
        **more,
    }


@dataclass(frozen=True)
class _Draft:
    """Where the results of files go, in lots of `size`."""

    order: Order
    record: Record
    shard: tuple[int, int]
    size: int

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.order.entries]

    @property
    def ends(self) -> list[str]:
        return endings(self.names, self.order.json)

    @property
    def expected(self) -> bool:
        """Whether results may be there already."""
        return self.record.begun or self.order.overwrite

    def expects(self, lot: int) -> bool:
        """Whether those of a lot may, which is perhaps another shard's."""
        return self.expected or not mine(lot, self.shard)

    def targets(self, files: Sequence[File]) -> Iterator[tuple[str, list[str], bool]]:
        ends = self.ends
        for i, file in enumerate(files):
            yield file.path, [target(self.order.out, file.key, end) for end in ends], self.expects(i // self.size)

    def stream(self, files: Sequence[File], after: Callable[[], None] = lambda: None) -> Stream:
        place = Place(self.order.out, self.record.mark)
        journal = self.record.folder / "done" if self.order.overwrite else None

        def sink() -> Sink:
            if self.record.left:
                place.sweep({file.key for file in files})
            return Folder(place, self.ends, journal)

        return Stream(Files(files), sink, len(files), self.shard, after)

    def list_place(self, file: File) -> str:
        return os.path.join(self.order.out, os.path.basename(file.path))

    def listing(self, file: File) -> Callable[[], None]:
        return lambda: write_list(file.path, self.list_place(file), self.order.out, self.names)


def lot(order: Order, batch: int | None) -> int:
    """How many pictures go through the stages together."""
    return (batch or 1) if order.networks else TOGETHER


def recipe(order: Order, networks: Networks | Loading | None, size: int) -> Recipe:
    """How a job makes its maps of lots of that size."""
    made = zip(order.entries, order.values, strict=True)
    quick = tuple((entry.name, values) for entry, values in made if not isinstance(entry.make, type))
    names = tuple(entry.name for entry in order.entries)
    return Recipe(names, Read(quick, networks is not None), networks, size, order.json, order.sixteen_bit)


def networks(ready: Sequence[Ready], values: Sequence[dict[str, Any]]) -> Networks | None:
    """Those of the preprocessors that have something to load."""
    slow = [(make, chosen) for make, chosen in zip(ready, values, strict=True) if isinstance(make.entry.make, type)]
    return Networks(tuple(slow)) if slow else None
