"""What a job has to do, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from preprocessors.registry import Ready

from .folder import Files, Folder, Place
from .inputs import File
from .job import Stream
from .loop import Recipe, Sink, mine
from .order import Order
from .record import Record, beside, look
from .stages import Networks, Read, endings
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
    run again is the same job if these are. Raises what `look` and `check` do, before anything is written."""
    order.single(max(2, len(files)) * len(order.entries))
    names = [entry.name for entry in order.entries]
    job = {
        "preprocessors": names,
        "values": list(order.values),
        "json": order.json,
        "sixteen_bit": order.sixteen_bit,
        "overwrite": order.overwrite,
        "opencv": cv2.__version__,  # encodes
        **more,
    }
    record = look(beside(order.out, shard), job, order.overwrite)
    return Plan((_files(order, files, record, shard or (0, 1), size),), record)


def _files(order: Order, files: Sequence[File], record: Record, shard: tuple[int, int], size: int) -> Stream:
    expected = record.begun or order.overwrite
    ends = endings([entry.name for entry in order.entries], order.json)
    check(
        (path, [target(order.out, key, end) for end in ends], expected or not mine(i // size, shard))
        for i, (path, key) in enumerate(files)
    )
    place = Place(order.out, record.mark)

    def sink() -> Sink:
        if record.begun:
            place.sweep({file.key for file in files})
        return Folder(place, ends, record.folder / "done" if order.overwrite else None)

    return Stream(Files(files), sink, len(files))


def lot(order: Order, batch: int | None) -> int:
    """How many pictures go through the stages together."""
    return (batch or 1) if any(isinstance(entry.make, type) for entry in order.entries) else TOGETHER


def recipe(order: Order, ready: Sequence[Ready], size: int) -> Recipe:
    """How a job makes its maps, with preprocessors that are loaded, of lots of that size."""
    made = list(zip(ready, order.values, strict=True))
    quick = tuple((make.entry.name, values) for make, values in made if not isinstance(make.entry.make, type))
    slow = tuple((make, values) for make, values in made if isinstance(make.entry.make, type))
    names = tuple(entry.name for entry in order.entries)
    return Recipe(names, Read(quick, bool(slow)), Networks(slow) if slow else None, size, order.json, order.sixteen_bit)
