"""A job from its beginning to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from .engines import Engine
from .loop import Recipe, Sink, Source, results
from .pictures import Result
from .progress import Progress
from .record import ERRORS, Errors, Record, begin, finish


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
