"""The plan of a job, checked before any work: its outputs, streams and record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from ..files.disk import STDOUT, is_folder_name
from ..files.image_formats import get_pixel_limit
from ..preprocessors.registry import LoadedPreprocessor, get_loaded_files
from .formats.folder import FileSource, FolderSink, FolderStore
from .formats.journal import OutputFormat, open_journaled_output, read_journal
from .formats.lists import read_list, write_list
from .formats.tables import ParquetOutput, ParquetSource
from .formats.tars import TarOutput, TarSource
from .formats.videos import FOURCC_BY_SUFFIX, VideoOutput, VideoSource
from .inputs import IMAGE_SUFFIXES, TABLE_SUFFIXES, TAR_SUFFIXES, InputFile, split_by_kind
from .job import ImageSource, MapRecipe, Sink, Stream, is_in_shard
from .record import JobRecord, read_state, state_dir_for
from .request import MapRequest, check_targets, exclude_results, result_path
from .results import ResultRecord, digest_settings, stamp_files
from .stages import LazyNetworks, NetworkStage, ReadStage, list_file_endings


class ContainerOutput(NamedTuple):
    """The output of a file that holds several images.

    total: number of images, None where it is unknown.
    paths: files that the format writes.
    """

    source: ImageSource
    total: int | None
    format: OutputFormat
    paths: tuple[str, ...]


def plan_output(request: MapRequest, file: InputFile, is_only_result: bool) -> ContainerOutput:
    """Plan the output for a file that holds several images: of the same kind, in the folder OUT or OUT itself.

    Raises ValueError when its kind cannot hold what is requested, or when the only input cannot be read.
    """
    names = [spec.name for spec in request.specs]
    ends = list_file_endings(names, request.json)
    path = file.path.lower()
    if path.endswith(TAR_SUFFIXES):
        place = _output_path(request, file, is_only_result, (".tar",))
        return _check_source(
            ContainerOutput(TarSource(file.path, request.needs_mask), None, TarOutput(Path(place)), (place,)),
            is_only_result,
        )
    if path.endswith(TABLE_SUFFIXES):
        place = _output_path(request, file, is_only_result, TABLE_SUFFIXES)
        rows = ParquetOutput(Path(place), file.path, tuple(ends))
        rows.check_columns()
        table = ParquetSource(file.path, request.needs_mask)
        table.check_columns()
        return ContainerOutput(table, len(table), rows, (place,))
    if request.needs_mask:
        raise ValueError(f"{file.path!r} is a video, which has no masks")
    if request.json or request.sixteen_bit:
        raise ValueError(
            f"--{'json' if request.json else 'sixteen-bit'} has no place in a video, which {file.path!r} becomes"
        )
    places = {
        name: _output_path(request, file, is_only_result and len(names) == 1, _list_video_suffixes(file), f"_{name}")
        for name in names
    }
    film = VideoOutput({name: Path(place) for name, place in places.items()}, file.path)
    video = VideoSource(file.path)
    return _check_source(ContainerOutput(video, len(video) or None, film, tuple(places.values())), is_only_result)


def _check_source(output: ContainerOutput, is_only_result: bool) -> ContainerOutput:
    if is_only_result:
        with closing(output.source.iter_images(0)) as images:
            first = next(images, None)
        if first and not first.key and isinstance(first.content, ValueError):
            raise first.content
    return output


def make_output_stream(
    output: ContainerOutput, index: int, record: JobRecord, results: ResultRecord | None, file: InputFile
) -> Stream:
    """Return the stream that makes the output with this index in its job, and adds it to the record if all succeeds."""
    journal, stamp = record.folder / f"{index}.journal", stamp_files(file.path)

    def sink() -> Sink:
        part = Path(output.paths[0]).parent / f".{record.temp_prefix}{index}.box"
        return open_journaled_output(output.format, part, journal)

    def note() -> None:
        if results is not None and not any(row.get("errors") for row in read_journal(journal)):
            results.add([results.make_row(os.path.basename(output.paths[0]), file.path, stamp)])

    return Stream(output.source, sink, output.total, on_finish=note)


def _list_video_suffixes(file: InputFile) -> tuple[str, ...]:
    """Return the suffixes that the maps of a video may have, the default first."""
    own = os.path.splitext(file.path)[1].lower()
    return (own, *FOURCC_BY_SUFFIX) if own in FOURCC_BY_SUFFIX else tuple(FOURCC_BY_SUFFIX)


def _output_path(
    request: MapRequest, file: InputFile, is_only_result: bool, suffixes: Sequence[str], stem_suffix: str = ""
) -> str:
    is_folder = request.out.endswith(("/", os.sep)) or os.path.isdir(request.out)
    if request.out == STDOUT:
        raise ValueError(f"what becomes of {file.path!r} does not go to stdout: name a folder")
    if is_only_result and not is_folder and request.out.lower().endswith(tuple(suffixes)):
        return request.out
    if not is_folder and (
        os.path.lexists(request.out)
        or request.out.lower().endswith((*IMAGE_SUFFIXES, *TAR_SUFFIXES, *FOURCC_BY_SUFFIX, *TABLE_SUFFIXES))
    ):
        raise ValueError(f"{request.out!r} is a file, expected a folder, or for one result a {' or '.join(suffixes)}")
    stem = next((file.key.removesuffix(end) for end in (".tar",) if file.key.lower().endswith(end)), file.key)
    return os.path.join(request.out, f"{stem}{stem_suffix}{suffixes[0]}")


MODEL_FREE_CHUNK_SIZE = 4  # images that a process is given at once where no network takes a batch


@dataclass(frozen=True, eq=False)
class JobPlan:
    """The streams of a job, its record, and the number of inputs whose results earlier jobs made."""

    streams: tuple[Stream, ...]
    record: JobRecord
    unchanged_count: int


def plan_job(
    request: MapRequest,
    files: Sequence[InputFile],
    shard: tuple[int, int] | None,
    chunk_size: int,
    extra_identity: dict[str, Any],
) -> JobPlan:
    """Plan a job over these files, in chunks of `chunk_size`.

    Results depend on `request` and `extra_identity` alone: a command with the same ones continues the job. A file that
    holds several images is not divided: shards take every n-th of these files. Raises ValueError, FileNotFoundError or
    FileExistsError before anything is written.
    """
    images, lists, boxes = split_by_kind(files)
    single = len(files) == len(boxes) == 1 and shard is None
    if not single:
        request.resolve_single_output(max(2, len(files)) * len(request.specs))
    record = read_state(
        state_dir_for(request.out, shard), _job_identity(request, [*lists, *boxes], extra_identity), request.overwrite
    )
    settings = {name: extra_identity.get(name) for name in ("weights", "device", "dtype", "load")}
    results = ResultRecord(request.out, digest_settings(request, settings), shard, ignore=request.overwrite)
    draft = _StreamPlanner(request, record, shard or (0, 1), chunk_size, results)
    if record.is_resumed or shard is not None:
        images = exclude_results(images, draft.file_endings, request.out)
    rows = [read_list(file.path, request.needs_mask) for file in lists]
    outputs = [plan_output(request, file, single) for file in boxes]
    draft.find_unchanged([*images, *chain(*rows)])
    is_recorded = not single or is_folder_name(request.out)
    kept_files = {
        i
        for i, (file, output) in enumerate(zip(boxes, outputs, strict=True))
        if is_recorded and results.is_unchanged(file, os.path.basename(output.paths[0]), output.paths)
    }
    sources = chain(
        *(draft.iter_targets(some) for some in (images, *rows)),
        (
            (file.path, [draft.list_path(file)], draft.may_exist or shard is not None or draft.has_unchanged(some))
            for file, some in zip(lists, rows, strict=True)
        ),
        (
            (f.path, output.paths, i in kept_files or draft.chunk_may_exist(i))
            for i, (f, output) in enumerate(zip(boxes, outputs, strict=True))
        ),
        ((file.mask, [], True) for some in (images, *rows) for file in some if file.mask),
    )
    check_targets(sources, may_replace_source=False)
    streams = [draft.make_stream(images)] if images else []
    streams += [draft.make_stream(some, draft.list_writer(file)) for file, some in zip(lists, rows, strict=True)]
    for i, (file, output) in enumerate(zip(boxes, outputs, strict=True)):
        if i not in kept_files and is_in_shard(i, draft.shard):
            streams.append(make_output_stream(output, i, record, results if is_recorded else None, file))
    return JobPlan(tuple(streams), record, len(draft.unchanged_keys) + len(kept_files))


def _job_identity(
    request: MapRequest, containers: Sequence[InputFile], extra_identity: dict[str, Any]
) -> dict[str, Any]:
    """Return everything that results depend on. Files that a job continues inside of must be unchanged."""
    stats = [(os.path.abspath(file.path), os.stat(file.path)) for file in containers]
    return {
        "preprocessors": [spec.name for spec in request.specs],
        "values": list(request.parameters),
        "json": request.json,
        "sixteen_bit": request.sixteen_bit,
        "overwrite": request.overwrite,
        "opencv": cv2.__version__,  # encodes
        "holding": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats],
        **extra_identity,
    }


@dataclass(frozen=True)
class _StreamPlanner:
    """Maker of the streams of image files, in chunks of `chunk_size`."""

    request: MapRequest
    record: JobRecord
    shard: tuple[int, int]
    chunk_size: int
    results: ResultRecord
    unchanged_keys: set[str] = field(default_factory=set)

    def find_unchanged(self, files: Iterable[InputFile]) -> None:
        """Note the files whose results earlier jobs made."""
        for file in files:
            paths = [result_path(self.request.out, file.key, end) for end in self.file_endings]
            if self.results.is_unchanged(file, file.key, paths):
                self.unchanged_keys.add(file.key)

    def has_unchanged(self, files: Iterable[InputFile]) -> bool:
        """Return True if earlier jobs made results of some of the files, and so perhaps a list of them."""
        return any(file.key in self.unchanged_keys for file in files)

    @property
    def spec_names(self) -> list[str]:
        """Names of the preprocessors."""
        return [spec.name for spec in self.request.specs]

    @property
    def file_endings(self) -> list[str]:
        """Endings of the files of an image, in their order."""
        return list_file_endings(self.spec_names, self.request.json)

    @property
    def may_exist(self) -> bool:
        """True if results may exist already."""
        return self.record.is_resumed or self.request.overwrite

    def chunk_may_exist(self, chunk_index: int) -> bool:
        """Return True if results of a chunk, perhaps of another shard, may exist already."""
        return self.may_exist or not is_in_shard(chunk_index, self.shard)

    def iter_targets(self, files: Sequence[InputFile]) -> Iterator[tuple[str, list[str], bool]]:
        """Yield (source, results, may exist) of each file."""
        ends = self.file_endings
        for i, file in enumerate(files):
            yield (
                file.path,
                [result_path(self.request.out, file.key, end) for end in ends],
                file.key in self.unchanged_keys or self.chunk_may_exist(i // self.chunk_size),
            )

    def make_stream(self, files: Sequence[InputFile], on_finish: Callable[[], None] = lambda: None) -> Stream:
        """Return the stream of these files."""
        place = FolderStore(self.request.out, self.record.temp_prefix)
        journal = self.record.folder / "done"

        def sink() -> Sink:
            if self.record.has_leftovers:
                place.remove_leftovers({file.key for file in files})
            return FolderSink(place, self.file_endings, journal, self.results, self.unchanged_keys)

        return Stream(FileSource(files), sink, len(files), self.shard, on_finish)

    def list_path(self, file: InputFile) -> str:
        """Return the path of the list that is written for the list `file`."""
        return os.path.join(self.request.out, os.path.basename(file.path))

    def list_writer(self, file: InputFile) -> Callable[[], None]:
        """Return a function that writes the list for the list `file`."""
        return lambda: write_list(file.path, self.list_path(file), self.request.out, self.spec_names)


def choose_chunk_size(request: MapRequest, batch_size: int | None) -> int:
    """Return the number of images in a chunk."""
    return (batch_size or 1) if request.needs_networks else MODEL_FREE_CHUNK_SIZE


def build_recipe(request: MapRequest, networks: NetworkStage | LazyNetworks | None, chunk_size: int) -> MapRecipe:
    """Return the recipe of a job with chunks of `chunk_size`."""
    pairs = zip(request.specs, request.parameters, strict=True)
    quick = tuple((spec.name, values) for spec, values in pairs if not isinstance(spec.factory, type))
    names = tuple(spec.name for spec in request.specs)
    limit, side = get_pixel_limit(), request.min_side
    read_stage = ReadStage(quick, networks is not None, tuple(get_loaded_files()), limit, side)
    return MapRecipe(names, read_stage, networks, chunk_size, request.json, request.sixteen_bit)


def build_network_stage(
    preprocessors: Sequence[LoadedPreprocessor], parameters: Sequence[dict[str, Any]]
) -> NetworkStage | None:
    """Return a stage of the preprocessors that load weights, None if there is none."""
    slow = [
        (make, values)
        for make, values in zip(preprocessors, parameters, strict=True)
        if isinstance(make.spec.factory, type)
    ]
    return NetworkStage(tuple(slow)) if slow else None
