"""Sets of examples to learn from or to measure on, and the order in which batches take them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np

from ...errors import check_choice
from ..config import CACHES, CAPTION_DROPOUT
from .buckets import choose_size, group_by_size
from .examples import CENTER, Example, MapFunction, MapMaker, Sample, SceneSample, View, make_map_maker
from .shards import ShardStream
from .tolerance import Tolerance

MAX_WORKERS = 64
CROP_PLACES = 8  # of a random crop, so that the latents and maps of all crops of an image can be kept
SUBSTITUTES = 4  # examples that may replace one that is broken


class ControlDataset(Protocol):
    """Examples in a fixed order."""

    @property
    def maps(self) -> MapMaker:
        """The maps of examples that have none."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample: ...

    @property
    def identity(self) -> str:
        """Text that is equal for equal images, captions and given maps."""

    def read(self, i: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return example i: image and map, (height, width, 3) uint8 RGB, and caption."""


def read_sample(sample: Sample, maps: MapMaker, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the middle of an example: image and map, (height, width, 3) uint8 RGB, and caption."""
    example = sample.decode(height, width, CENTER, maps)
    assert example.pixels is not None
    return example.pixels, example.map, example.caption


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """Images of a folder, a list or a table, cropped to the size.

    Without `make_map` all examples have a map. With it, the maps that are not given are made from the cropped images.
    """

    examples: tuple[Example, ...]
    make_map: MapFunction | MapMaker | None
    maps: MapMaker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", make_map_maker(self.make_map))
        without = next((each for each in self.examples if each.map is None), None)
        if self.maps.make is None and without:
            raise ValueError(
                f"{without.name} has no map: list it, name the folder of maps with --maps, or a preprocessor with --map"
            )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]

    @property
    def identity(self) -> str:
        """SHA-256 of the hashes and captions."""
        rows = [(e.sha256, e.caption, e.map_key or None) for e in self.examples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def read(self, i: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return example i: image and map, (height, width, 3) uint8 RGB, and caption."""
        return read_sample(self[i], self.maps, height, width)


@dataclass(frozen=True, eq=False)
class SceneDataset:
    """The drawn scenes of the embedded model with these seeds."""

    seeds: range
    make_map: MapFunction | MapMaker
    maps: MapMaker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", make_map_maker(self.make_map))

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, i: int) -> SceneSample:
        return SceneSample(self.seeds[i])

    @property
    def identity(self) -> str:
        """The range of seeds."""
        return f"scenes {self.seeds.start}..{self.seeds.stop}"

    def read(self, i: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return example i: image and map, (height, width, 3) uint8 RGB, and caption. ValueError unless square."""
        return read_sample(self[i], self.maps, height, width)


@dataclass(frozen=True)
class Sampling:
    """Size, part and dropout of examples.

    size: height and width in pixels, or with `has_buckets` those of a square or its like, whose area all have.
    step: multiple of the sides of other buckets.
    is_random_crop: the crop lies at one of eight places, evenly spaced, and not in the middle.
    flips: half of the examples are mirrored.
    caption_dropout, map_dropout: shares of captions that are empty and of maps that are black.
    """

    size: tuple[int, int]
    step: int = 64
    has_buckets: bool = False
    is_random_crop: bool = False
    flips: bool = False
    caption_dropout: float = CAPTION_DROPOUT
    map_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, share in (("caption-dropout", self.caption_dropout), ("map-dropout", self.map_dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"--{name} {share:g} is outside 0..1")


@dataclass(frozen=True)
class Draw:
    """An example of a batch: how it is seen, what of it is dropped, and what may replace it if it is broken."""

    sample: Sample
    view: View
    drops_caption: bool
    drops_map: bool
    substitutes: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class BatchPlan:
    """The examples of a batch, whose images have one size (height, width)."""

    size: tuple[int, int]
    draws: tuple[Draw, ...]


class TrainingSource(ABC):
    """Examples to learn from: read at random, or a stream. Both give batches in an order that the seed decides."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Text that is equal for equal images, captions and given maps."""

    @property
    @abstractmethod
    def measured(self) -> ControlDataset:
        """The examples on which the loss is measured."""

    @property
    @abstractmethod
    def total(self) -> int | None:
        """Number of examples, None of a stream."""

    @property
    def shard_count(self) -> int:
        """Number of shards of a stream."""
        return 0

    @abstractmethod
    def iter_plans(
        self, sampling: Sampling, batch_size: int, seed: int, first_step: int, parts: int, tolerance: Tolerance
    ) -> Iterator[BatchPlan]:
        """Yield batches without end: the parts of `first_step`, then those of the next step. They depend on the
        arguments alone."""


class RandomSource(TrainingSource):
    """Examples that are drawn with replacement."""

    def __init__(self, dataset: ControlDataset):
        self._dataset = dataset

    @property
    def identity(self) -> str:
        """The identity of the examples."""
        return self._dataset.identity

    @property
    def measured(self) -> ControlDataset:
        """All examples."""
        return self._dataset

    @property
    def total(self) -> int:
        """Number of examples."""
        return len(self._dataset)

    def iter_plans(
        self, sampling: Sampling, batch_size: int, seed: int, first_step: int, parts: int, tolerance: Tolerance
    ) -> Iterator[BatchPlan]:
        """Yield batches without end; each depends on the seed, the step and the part alone."""
        data = self._dataset
        sizes = [data[i].size for i in range(len(data))] if sampling.has_buckets else []
        groups = list(group_by_size(sizes, sampling.size, sampling.step).items())
        weights = np.cumsum([len(rows) for _, rows in groups]) if groups else None
        for step in count(first_step):
            for part in range(parts):
                rng = np.random.default_rng([seed, step, part])
                if weights is None:
                    size, rows = sampling.size, rng.integers(len(data), size=(batch_size, 1 + SUBSTITUTES))
                else:
                    group = int(np.searchsorted(weights, rng.integers(weights[-1]), side="right"))
                    size, members = groups[group]
                    rows = np.array(members)[rng.integers(len(members), size=(batch_size, 1 + SUBSTITUTES))]
                samples = [[data[int(i)] for i in each] for each in rows]
                yield _plan_batch(size, [(each[0], tuple(each[1:])) for each in samples], sampling, rng)


class StreamSource(TrainingSource):
    """Examples of shards, each once in an epoch. Images whose size fills a bucket make a batch."""

    def __init__(self, stream: ShardStream, evaluation_set: ControlDataset):
        self._stream, self._measured = stream, evaluation_set

    @property
    def identity(self) -> str:
        """The identity of the shards."""
        return self._stream.identity

    @property
    def measured(self) -> ControlDataset:
        """The first examples to learn from."""
        return self._measured

    @property
    def total(self) -> None:
        """None: nobody has counted."""
        return

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return len(self._stream.paths)

    def iter_plans(
        self, sampling: Sampling, batch_size: int, seed: int, first_step: int, parts: int, tolerance: Tolerance
    ) -> Iterator[BatchPlan]:
        """Yield batches without end. Those before `first_step` are passed over: their headers are read, no image."""
        waiting: dict[tuple[int, int], list[tuple[Sample, tuple[Sample, ...]]]] = {}
        earlier: deque[Sample] = deque(maxlen=SUBSTITUTES)
        number, skip = 0, 0
        if not sampling.has_buckets:  # where batches wait to be full, those before decide on the next
            number = max(0, first_step * parts - -(-SUBSTITUTES // batch_size))  # those before may be substitutes
            skip = number * batch_size
        for example in self._stream.iter_examples(seed, tolerance, skip):
            size = sampling.size
            if sampling.has_buckets and example.size is not None:
                size = choose_size(example.size, sampling.size, sampling.step)
            batch = waiting.setdefault(size, [])
            batch.append((example, tuple(earlier)))
            earlier.append(example)
            if len(batch) == batch_size:
                del waiting[size]
                if number >= first_step * parts:
                    yield _plan_batch(size, batch, sampling, np.random.default_rng([seed, *divmod(number, parts)]))
                number += 1


def _plan_batch(
    size: tuple[int, int],
    samples: Sequence[tuple[Sample, tuple[Sample, ...]]],
    sampling: Sampling,
    rng: np.random.Generator,
) -> BatchPlan:
    """Return the batch of these samples, each with its substitutes."""
    places = rng.integers(CROP_PLACES, size=len(samples)) / (CROP_PLACES - 1)
    flips, captions, maps = rng.random((3, len(samples)))
    draws = []
    for i, (sample, substitutes) in enumerate(samples):
        view = View(float(places[i]) if sampling.is_random_crop else 0.5, bool(sampling.flips and flips[i] < 0.5))
        drops = bool(captions[i] < sampling.caption_dropout), bool(maps[i] < sampling.map_dropout)
        draws.append(Draw(sample, sample.resolve_view(view), *drops, substitutes))
    return BatchPlan(size, tuple(draws))


@dataclass(frozen=True)
class LoadingSettings:
    """Processes, caches and tolerance of a training's reading; nothing of it changes what is learnt.

    workers: processes that read ahead, 0 to read in this one; None: as many as the device needs.
    cache: where latents and text states are kept, one of `CACHES`.
    folder: of the cache on disk.
    tolerance: what counts examples that cannot be read.
    identity: text that is equal for equal models, without which nothing is kept on disk.
    """

    tolerance: Tolerance
    workers: int | None = None
    cache: str = "memory"
    folder: Path | None = None
    identity: str = ""

    def __post_init__(self) -> None:
        check_choice("--cache", self.cache, CACHES)
        if self.workers is not None and not 0 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"--workers {self.workers} is outside 0..{MAX_WORKERS}")


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All that a training reads: examples to learn from and held-out ones, and how they are taken and loaded."""

    source: TrainingSource
    held_out: ControlDataset
    sampling: Sampling
    loading: LoadingSettings
