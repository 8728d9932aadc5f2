"""Training data of control networks: images with captions and maps, from folders, lists, tables, shards, or drawn."""

from __future__ import annotations

from .datasets import (
    BatchPlan,
    ControlDataset,
    Draw,
    FolderDataset,
    LoadingSettings,
    RandomSource,
    Sampling,
    SceneDataset,
    StreamSource,
    TrainingData,
    TrainingSource,
)
from .examples import CENTER, DecodedExample, Example, MapFunction, MapMaker, Sample, View
from .layouts import ReadingOptions, check_data_source, read_examples
from .shards import is_shard_pattern
from .split import check_disjoint, split_examples
from .tolerance import Tolerance

__all__ = [
    "CENTER",
    "BatchPlan",
    "ControlDataset",
    "DecodedExample",
    "Draw",
    "Example",
    "FolderDataset",
    "LoadingSettings",
    "MapFunction",
    "MapMaker",
    "RandomSource",
    "ReadingOptions",
    "Sample",
    "Sampling",
    "SceneDataset",
    "StreamSource",
    "Tolerance",
    "TrainingData",
    "TrainingSource",
    "View",
    "check_data_source",
    "check_disjoint",
    "is_shard_pattern",
    "read_examples",
    "split_examples",
]
