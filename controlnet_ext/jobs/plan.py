"""What a job has to do, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from preprocessors.registry import Ready

from .folder import Files, Folder, Place
from .inputs import File, holds_pictures, is_list
from .job import Stream
from .lists import listed, write_list
from .loop import Recipe, Sink, mine
from .order import Order
from .record import Record, beside, look
from .stages import Loading, Networks, Read, endings
from .streams import output, stream
from .targets import check, target

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
    boxes = [file for file in files if holds_pictures(file.path) and not is_list(file.path)]
    lists = [file for file in files if is_list(file.path)]
    pictures = [file for file in files if not holds_pictures(file.path)]
    single = len(files) == len(boxes) == 1 and shard is None
    if not single:
        order.single(max(2, len(files)) * len(order.entries))
    job = {
        "preprocessors": [entry.name for entry in order.entries],
        "values": list(order.values),
        "json": order.json,
        "sixteen_bit": order.sixteen_bit,
        "overwrite": order.overwrite,
        "opencv": cv2.__version__,  # encodes
        "holding": [
            (os.path.abspath(file.path), os.stat(file.path).st_size, os.stat(file.path).st_mtime_ns)
            for file in (*boxes, *lists)
        ],
        **more,
    }
    record = look(beside(order.out, shard), job, order.overwrite)
    part = shard or (0, 1)
    rows = {file.path: listed(file.path) for file in lists}
    outputs = [output(order, file, single) for file in boxes]
    expected = record.begun or order.overwrite
    ends = endings([entry.name for entry in order.entries], order.json)
    check(
        [
            *_targets(pictures, order, ends, part, size, expected),
            *(wanted for files in rows.values() for wanted in _targets(files, order, ends, part, size, expected)),
            *((file.path, [_list_place(file, order)], expected or shard is not None) for file in lists),
            *(
                (file.path, made.paths, expected or not mine(i, part))
                for i, (file, made) in enumerate(zip(boxes, outputs, strict=True))
            ),
        ],
        own=False,
    )
    streams = [_files(order, pictures, record, ends, part)] if pictures else []
    for file in lists:
        streams.append(_files(order, rows[file.path], record, ends, part, _listing(file, order)))
    streams += [stream(made, i, record) for i, made in enumerate(outputs) if mine(i, part)]
    return Plan(tuple(streams), record)


def _targets(
    files: Sequence[File], order: Order, ends: Sequence[str], shard: tuple[int, int], size: int, expected: bool
) -> Iterator[tuple[str, list[str], bool]]:
    for i, (path, key) in enumerate(files):
        yield path, [target(order.out, key, end) for end in ends], expected or not mine(i // size, shard)


def _files(
    order: Order,
    files: Sequence[File],
    record: Record,
    ends: Sequence[str],
    shard: tuple[int, int],
    after: Callable[[], None] = lambda: None,
) -> Stream:
    place = Place(order.out, record.mark)

    def sink() -> Sink:
        if record.left:
            place.sweep({file.key for file in files})
        return Folder(place, ends, record.folder / "done" if order.overwrite else None)

    return Stream(Files(files), sink, len(files), shard, after)


def _list_place(file: File, order: Order) -> str:
    return os.path.join(order.out, os.path.basename(file.path))


def _listing(file: File, order: Order) -> Callable[[], None]:
    names = [entry.name for entry in order.entries]
    return lambda: write_list(file.path, _list_place(file, order), order.out, names)


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
