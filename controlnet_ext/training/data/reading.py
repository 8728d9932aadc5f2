"""All that a training reads, from what its user names: the sets to learn from and held out, checked before any work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...embedded.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS
from ..config import VALIDATION_SHARE
from .datasets import (
    ControlDataset,
    FolderDataset,
    LoadingSettings,
    RandomSource,
    Sampling,
    SceneDataset,
    StreamSource,
    TrainingData,
    TrainingSource,
)
from .examples import Example, MapMaker, read_source
from .layouts import ReadingOptions, read_examples
from .rows import USUAL_COLUMNS, Columns
from .shards import HASHED_BYTES, ShardReader, ShardStream, hash_ends, is_shard_pattern, list_shards
from .split import check_disjoint, describe_near_duplicates, find_near_duplicates, split_examples

SCENES_PATTERN = re.compile(r"scenes(?::(\d{1,8}))?")
MEASURED_EXAMPLES = 1024  # of shards, on either side


@dataclass(frozen=True)
class DataRequest:
    """Names of data, as the user gives them.

    data: a folder, a list, a table, shards, or scenes.
    validation: a share of the different images, or data like the former.
    columns: names of the columns.
    map_column: a column that holds maps where no usual one does.
    maps: folder with the maps of a folder of images.
    """

    data: str
    validation: str | None = None
    columns: Columns = USUAL_COLUMNS
    map_column: str | None = None
    maps: Path | None = None


def parse_share(text: str) -> float | None:
    """Return the number of a text, None where it is no number."""
    try:
        return float(text)
    except ValueError:
        return None


def read_training_data(
    request: DataRequest,
    maps: MapMaker,
    sampling: Sampling,
    loading: LoadingSettings,
    report: Callable[[str], None],
) -> TrainingData:
    """Read all examples but their pixels, of shards the first ones; `report` gets a line on near-duplicates.

    Raises FileNotFoundError or ValueError in one line for data that cannot be learnt from.
    """
    source, held_out = _read_sets(request, maps, sampling, loading, report)
    return TrainingData(source, held_out, sampling, loading)


def _read_sets(
    request: DataRequest,
    maps: MapMaker,
    sampling: Sampling,
    loading: LoadingSettings,
    report: Callable[[str], None],
) -> tuple[TrainingSource, ControlDataset]:
    if match := SCENES_PATTERN.fullmatch(request.data):
        return _make_scenes(match[1], request, maps, sampling)
    if is_shard_pattern(request.data):
        return _read_shards(request, maps, sampling, loading, report)
    validation = request.validation or VALIDATION_SHARE
    share = parse_share(validation)
    examples = read_examples(Path(request.data), options=_make_options(request, loading))
    if share is None:
        held_out = _read_held_out(validation, request, loading)
        check_disjoint(examples, held_out)
    else:
        examples, held_out = split_examples(examples, share)
    _check_flips((*examples, *held_out), maps, sampling)
    sets = FolderDataset(examples, maps), FolderDataset(held_out, maps)
    _report_near_duplicates(examples, held_out, report)
    return RandomSource(sets[0]), sets[1]


def _report_near_duplicates(
    train_set: Sequence[Example], held_out: Sequence[Example], report: Callable[[str], None]
) -> None:
    if line := describe_near_duplicates(find_near_duplicates(train_set, held_out)):
        report(line)


def _make_options(request: DataRequest, loading: LoadingSettings) -> ReadingOptions:
    return ReadingOptions(loading.tolerance, request.columns, request.map_column, request.maps, loading.folder)


def _read_held_out(validation: str, request: DataRequest, loading: LoadingSettings) -> tuple[Example, ...]:
    if is_shard_pattern(validation):
        stream = ShardStream(tuple(list_shards(validation)), ShardReader(request.columns, 0.0, needs_size=True))
        examples = stream.find_first(MEASURED_EXAMPLES, loading.tolerance)[0]
        return tuple(replace(each, sha256=hashlib.sha256(read_source(each.image)).hexdigest()) for each in examples)
    return read_examples(Path(validation), options=_make_options(request, loading))


def _make_scenes(
    count: str | None, request: DataRequest, maps: MapMaker, sampling: Sampling
) -> tuple[TrainingSource, ControlDataset]:
    seeds = TRAINING_SEEDS if count is None else TRAINING_SEEDS[: int(count)]
    if not seeds:
        raise ValueError(f"--data {request.data!r}: expected at least one scene")
    is_square = sampling.size[0] == sampling.size[1]
    if maps.make is None or request.validation is not None or not is_square or sampling.has_buckets:
        raise ValueError(
            "scenes are square (no --buckets), have held-out ones of their own, and need a preprocessor in --map"
        )
    if request.maps is not None or request.columns != USUAL_COLUMNS:
        raise ValueError("scenes have maps from --map alone: neither --maps nor --columns")
    return RandomSource(SceneDataset(seeds, maps)), SceneDataset(HELD_OUT_SEEDS, maps)


def _read_shards(
    request: DataRequest,
    maps: MapMaker,
    sampling: Sampling,
    loading: LoadingSettings,
    report: Callable[[str], None],
) -> tuple[TrainingSource, ControlDataset]:
    if request.maps is not None:
        raise ValueError(f"--maps {str(request.maps)!r} belongs to a folder of images; shards hold their maps")
    validation = request.validation or VALIDATION_SHARE
    share = parse_share(validation)
    if share is not None and not 0 < share < 1:
        raise ValueError(f"validation {share:g} of the shards leaves none on one side")
    own_examples = [] if share is not None else list(_read_held_out(validation, request, loading))
    hashes = frozenset(_hash_ends_of(example) for example in own_examples)
    reader = ShardReader(request.columns, share or 0.0, sampling.has_buckets, maps.make is None, hashes)
    stream = ShardStream(tuple(list_shards(request.data)), reader)
    first, examples = stream.find_first(MEASURED_EXAMPLES, loading.tolerance)
    held_out = examples if share is not None else own_examples
    if not first or not held_out:
        raise ValueError(
            f"validation {validation} of {len(first) + len(held_out)} examples in {request.data!r} leaves none on one "
            "side: more of them, or --validation"
        )
    _check_flips((*first, *held_out), maps, sampling)
    _report_near_duplicates(first, held_out, report)
    evaluation_set = FolderDataset(tuple(first), maps)
    return StreamSource(stream, evaluation_set), FolderDataset(tuple(held_out), maps)


def _hash_ends_of(example: Example) -> str:
    """Return the hash by which shards know an image."""
    content = read_source(example.image)
    return hash_ends(content[:HASHED_BYTES], content[-HASHED_BYTES:], len(content))


def _check_flips(examples: Iterable[Example], maps: MapMaker, sampling: Sampling) -> None:
    """Raise ValueError where a given map would be mirrored that cannot be."""
    example = next((example for example in examples if example.map is not None), None)
    if sampling.flips and maps.mirroring == "sided" and example is not None:
        raise ValueError(
            f"--flip: the map of {example.name} tells left from right by its colors, which mirroring would mix up: "
            "leave the maps out, so that --map makes them of the mirrored images, or do without --flip"
        )
