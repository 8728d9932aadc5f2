"""A job: the images of its sources, through the stages, into its sinks, with progress on stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

from tqdm import tqdm

from .engines import StageEngine, map_in_threads
from .record import ERRORS_FILE, ErrorLog, JobRecord, close_state, lock_state
from .stages import (
    Chain,
    EncodeStage,
    ImageResult,
    InputImage,
    LazyNetworks,
    NetworkStage,
    ReadStage,
    ResultStore,
    WriteStage,
    crashed_item,
)

WRITER_THREADS = 8  # threads, which mostly wait for the disk: flushed 8 at a time a file takes 3.7 ms, alone 15


class ImageSource(Protocol):
    """Images in a fixed order."""

    def iter_images(self, start: int) -> Generator[InputImage, None, None]:
        """Yield the images from position `start` on."""


class Sink(Protocol):
    """The end of a stream, which takes results in their order.

    All images before `start_index` are done; every image is when it `is_finished`.
    """

    @property
    def store(self) -> ResultStore:
        """The store that writes files from several threads, before `add`."""

    @property
    def start_index(self) -> int:
        """Position of the first image that is not done."""

    @property
    def is_finished(self) -> bool:
        """True when an earlier run finished the sink."""

    def earlier_results(self) -> Iterable[ImageResult]:
        """Return the results of earlier runs, without files."""

    def is_done(self, image: InputImage) -> bool:
        """Return True if an earlier run made the result of this image."""

    def add(self, result: ImageResult) -> None:
        """Take the next result."""

    def finish(self) -> None:
        """Complete the output after the last result."""

    def close(self) -> None:
        """Release files."""


@dataclass(frozen=True)
class MapRecipe:
    """The work on every image of a job.

    networks: None where no preprocessor needs weights.
    chunk_size: images in a chunk, which networks take at once. The last bits of a result depend on the other images of
        its chunk, so chunks are the same in every run and in all shards.
    """

    spec_names: tuple[str, ...]
    read_stage: ReadStage
    networks: NetworkStage | LazyNetworks | None
    chunk_size: int
    json: bool
    sixteen_bit: bool


def is_in_shard(chunk_index: int, shard: tuple[int, int]) -> bool:
    """Return True if the chunk belongs to shard (i, n), which takes every n-th."""
    return chunk_index % shard[1] == shard[0]


def run_stages(
    source: ImageSource, sink: Sink, recipe: MapRecipe, engine: StageEngine, shard: tuple[int, int] = (0, 1)
) -> Generator[ImageResult, None, None]:
    """Yield the results of the images that are not done, in order."""
    chunks = _iter_chunks(source, sink, recipe, shard)
    encode, keep = EncodeStage(recipe.spec_names, recipe.json, recipe.sixteen_bit), WriteStage(sink.store)
    if recipe.networks is None or engine.runs_networks:
        maps = recipe.read_stage if recipe.networks is None else Chain(recipe.read_stage, recipe.networks)
        encoded_chunks = engine.map(Chain(maps, encode), chunks, lambda image: encode([crashed_item(image)])[0])
        results = map_in_threads(WRITER_THREADS, keep, encoded_chunks)
    else:
        items = map(recipe.networks, engine.map(recipe.read_stage, chunks, crashed_item))
        results = map_in_threads(WRITER_THREADS, Chain(encode, keep), items)
    for chunk in results:
        yield from (result for result in chunk if result.image.index >= sink.start_index)


def _iter_chunks(
    source: ImageSource, sink: Sink, recipe: MapRecipe, shard: tuple[int, int]
) -> Iterator[list[InputImage]]:
    first = sink.start_index // recipe.chunk_size
    images = source.iter_images(first * recipe.chunk_size)
    for i in count(first):
        chunk = list(islice(images, recipe.chunk_size))
        if not chunk:
            return
        remaining = [image for image in chunk if not sink.is_done(image)]
        if remaining and is_in_shard(i, shard):
            yield remaining if recipe.networks is None else chunk


TERMINAL_INTERVAL, LOG_INTERVAL = 0.2, 60.0  # seconds between two states of the progress
MAX_ERROR_LINES = 20  # errors that are printed; the others are only counted, and stand in the errors file


class _ProgressBar(tqdm):  # type: ignore[type-arg]
    """A tqdm with a lock of this process alone; that of tqdm is shared with processes and made for them."""


_ProgressBar.set_lock(threading.RLock())


class _LogFile:
    """A text file for tqdm that calls `log` with each state, one line each."""

    def __init__(self, log: Callable[[str], None]):
        self._log = log

    def write(self, text: str) -> None:
        if text.strip():
            self._log(text.strip())

    def flush(self) -> None:
        """Do nothing."""


class JobProgress:
    """Progress over a source of `total` images (None: unknown): a bar on a terminal, elsewhere a line a minute.

    Images that are done already, or belong to another shard, come between those that are added: the rate and the time
    left are those of the position in the source.
    """

    def __init__(self, total: int | None, log: Callable[[str], None]):
        is_terminal = sys.stderr.isatty()
        interval = TERMINAL_INTERVAL if is_terminal else LOG_INTERVAL
        file: Any = sys.stderr if is_terminal else _LogFile(log)
        delay = 0.0 if is_terminal else interval
        intervals = {"mininterval": interval, "maxinterval": interval, "miniters": 1, "delay": delay, "smoothing": 0}
        self._bar = _ProgressBar(total=total, unit=" images", leave=False, dynamic_ncols=True, file=file, **intervals)
        self._log, self._count, self._errors = log, 0, 0

    def add(self, index: int) -> None:
        """Count the image at position `index` of the source as done."""
        if not self._count:
            self._bar.initial = self._bar.last_print_n = self._bar.n = index
        self._count += 1
        self._bar.update(index + 1 - self._bar.n)

    def add_error(self, message: str) -> None:
        """Log a failure, unless MAX_ERROR_LINES were logged already."""
        self._errors += 1
        if self._errors <= MAX_ERROR_LINES:
            self._bar.clear()
            self._log(f"controlnet-ext: {message}")

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.close()


@dataclass(frozen=True, eq=False)
class Stream:
    """A source and its sink.

    total: number of images, None where it is unknown.
    open_sink: function that opens the sink once the job has begun.
    shard: (i, n), the share of the source that is done.
    on_finish: function that is called after the last image.
    """

    source: ImageSource
    open_sink: Callable[[], Sink]
    total: int | None
    shard: tuple[int, int] = (0, 1)
    on_finish: Callable[[], None] = lambda: None


def run_job(
    streams: Sequence[Stream],
    recipe: MapRecipe,
    engine: StageEngine,
    record: JobRecord,
    log: Callable[[str], None],
    retry_failed: bool = True,
) -> int:
    """Do the rest of the job and return the number of failed images, which are listed in the errors file.

    With `retry_failed` the same job, run again, tries these again. Raises OSError when results cannot be written.
    """
    with lock_state(record):
        errors = ErrorLog(record.folder)
        count = 0
        for stream in streams:
            with (
                closing(JobProgress(stream.total, log)) as progress,
                closing(stream.open_sink()) as sink,
                closing(_remaining_results(stream, sink, recipe, engine)) as results,
            ):
                for result in sink.earlier_results():
                    errors.add(result)
                    count += 1
                for result in results:
                    sink.add(result)
                    errors.add(result)
                    for error in result.errors:
                        progress.add_error(error)
                    progress.add(result.image.index)
                    count += 1
                if not sink.is_finished:
                    sink.finish()
                    stream.on_finish()
        log(f"{count - errors.failed_count} of {count} images done")
        if errors.failed_count:
            log(f"{errors.failed_count} failed: see {record.folder / ERRORS_FILE}")
        close_state(
            record, retry_failed
        )  # the last there is to do: without its record the job is not known when it is run again
    return errors.failed_count


def _remaining_results(
    stream: Stream, sink: Sink, recipe: MapRecipe, engine: StageEngine
) -> Generator[ImageResult, None, None]:
    if not sink.is_finished:
        yield from run_stages(stream.source, sink, recipe, engine, stream.shard)
