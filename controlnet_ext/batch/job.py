"""A job from its beginning to its end.

The loop of a job: pictures of a source through the stages into a sink.

How far a job is, on stderr: one line that is written over on a terminal, one a minute elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

from .engines import Engine, threads
from .record import ERRORS, Errors, Record, begin, finish
from .stages import After, Encode, Keep, Loading, Networks, Picture, Read, Result, Store, lost

WRITERS = 8  # threads, which mostly wait for the disk: flushed 8 at a time a file takes 3.7 ms, alone 15


class Source(Protocol):
    """Pictures in a fixed order."""

    def pictures(self, start: int) -> Generator[Picture, None, None]:
        """Those from `start` on."""


class Sink(Protocol):
    """Takes results in their order. `store` is what threads do with files before that. All pictures before `start`
    are done, all there are when it has `finished`."""

    @property
    def store(self) -> Store: ...

    @property
    def start(self) -> int: ...

    @property
    def finished(self) -> bool: ...

    def before(self) -> Iterable[Result]:
        """The results of these pictures, without files."""

    def done(self, picture: Picture) -> bool:
        """Whether it has this picture's result, of an earlier run."""

    def add(self, result: Result) -> None: ...

    def finish(self) -> None:
        """The last result is there."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Recipe:
    """What is made of every picture. `networks` is None where no preprocessor needs weights. `size`
    pictures are a lot, which networks take at once: as the last bits of a result depend on what was beside it, lots are
    the same in every run and in all shards."""

    names: tuple[str, ...]
    read: Read
    networks: Networks | Loading | None
    size: int
    json: bool
    sixteen_bit: bool


def mine(lot: int, shard: tuple[int, int]) -> bool:
    """Whether a lot belongs to shard (i, n), which takes every n-th."""
    return lot % shard[1] == shard[0]


def results(
    source: Source, sink: Sink, recipe: Recipe, engine: Engine, shard: tuple[int, int] = (0, 1)
) -> Generator[Result, None, None]:
    """The results of the pictures that are not done yet, in their order."""
    lots = _lots(source, sink, recipe, shard)
    encode, keep = Encode(recipe.names, recipe.json, recipe.sixteen_bit), Keep(sink.store)
    if recipe.networks is None or engine.whole:
        maps = recipe.read if recipe.networks is None else After(recipe.read, recipe.networks)
        made = engine.map(After(maps, encode), lots, lambda picture: encode([lost(picture)])[0])
        kept = threads(WRITERS, keep, made)
    else:
        sheets = map(recipe.networks, engine.map(recipe.read, lots, lost))
        kept = threads(WRITERS, After(encode, keep), sheets)
    for lot in kept:
        yield from (result for result in lot if result.picture.index >= sink.start)


def _lots(source: Source, sink: Sink, recipe: Recipe, shard: tuple[int, int]) -> Iterator[list[Picture]]:
    first = sink.start // recipe.size
    pictures = source.pictures(first * recipe.size)
    for i in count(first):
        lot = list(islice(pictures, recipe.size))
        if not lot:
            return
        left = [picture for picture in lot if not sink.done(picture)]
        if left and mine(i, shard):
            yield left if recipe.networks is None else lot


TERMINAL, ELSEWHERE = 0.2, 60.0  # seconds between two
LINES = 20  # of errors; the others are only counted, and in the errors file


class Progress:
    """Counts pictures of a source, which has `total` if that is known. Those that are done already, or another shard's,
    come between: the time left is by how fast the place in the source grows, the rate by how many were done."""

    def __init__(self, total: int | None, say: Callable[[str], None]):
        self._total, self._say = total, say
        self._terminal = sys.stderr.isatty()
        self._begin = self._last = time.monotonic()
        self._first: int | None = None
        self._count = self._errors = 0

    def add(self, index: int) -> None:
        """The picture at this place in the source is done."""
        self._first = index if self._first is None else self._first
        self._count += 1
        now = time.monotonic()
        if now - self._last >= (TERMINAL if self._terminal else ELSEWHERE):
            self._last, seconds = now, now - self._begin
            rate = f"{self._count / seconds:.1f} a second"
            if self._total is None:
                self._show(f"{index + 1} pictures, {rate}")
            else:
                left = duration((self._total - index - 1) * seconds / (index + 1 - self._first))
                self._show(f"{index + 1} of {self._total} pictures, {rate}, {left} left")

    def error(self, words: str) -> None:
        """A line of its own for something that failed, for the first of them."""
        self._errors += 1
        if self._errors <= LINES:
            self._clear()
            self._say(f"controlnet-ext: {words}")

    def close(self) -> None:
        self._clear()

    def _show(self, words: str) -> None:
        if self._terminal:
            print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)
        else:
            self._say(words)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


@dataclass(frozen=True, eq=False)
class Stream:
    """A source, of `total` pictures where that is known, of which the shard takes its part, what opens its sink once
    the job has begun, and what there is to do `after` the last picture."""

    source: Source
    sink: Callable[[], Sink]
    total: int | None
    shard: tuple[int, int] = (0, 1)
    after: Callable[[], None] = lambda: None


def work(
    streams: Sequence[Stream],
    recipe: Recipe,
    engine: Engine,
    record: Record,
    say: Callable[[str], None],
    again: bool = True,
) -> int:
    """Does what is left of the job and gives the number of pictures that failed, which are in the errors file. `again`:
    the same job, begun another time, tries these again. Raises OSError when results cannot be written."""
    with begin(record):
        errors = Errors(record.folder)
        done = 0
        for stream in streams:
            with (
                closing(Progress(stream.total, say)) as progress,
                closing(stream.sink()) as sink,
                closing(_results(stream, sink, recipe, engine)) as made,
            ):
                for result in sink.before():
                    errors.add(result)
                    done += 1
                for result in made:
                    sink.add(result)
                    errors.add(result)
                    for error in result.errors:
                        progress.error(error)
                    progress.add(result.picture.index)
                    done += 1
                if not sink.finished:
                    sink.finish()
                    stream.after()
        say(f"{done - errors.pictures} of {done} pictures done")
        if errors.pictures:
            say(f"{errors.pictures} failed: see {record.folder / ERRORS}")
        finish(record, again)  # the last there is to do: without its record the job is not known when it is run again
    return errors.pictures


def _results(stream: Stream, sink: Sink, recipe: Recipe, engine: Engine) -> Generator[Result, None, None]:
    if not sink.finished:
        yield from results(stream.source, sink, recipe, engine, stream.shard)
