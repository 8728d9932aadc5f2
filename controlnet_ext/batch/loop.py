"""The loop of a job: pictures of a source through the stages into a sink."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

from .engines import Engine, threads
from .pictures import Picture, Result
from .stages import After, Encode, Keep, Loading, Networks, Read, Store, lost

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
