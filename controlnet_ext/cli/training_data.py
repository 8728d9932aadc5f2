"""The flags of `train` that say what it reads, and the data that they name."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..generation.options import split_unit_text
from ..maps.control_map import MAP_KINDS
from ..maps.mirror import Mirroring, get_mirroring_of_kind
from ..preprocessors.registry import find_unless_none
from ..training.config import CACHES, CAPTION_DROPOUT, TOLERANCE, VALIDATION_SHARE
from ..training.work_folder import CACHE_FOLDER, MAP_FOLDER
from .common import list_changed_flags, print_stderr

if TYPE_CHECKING:
    import numpy as np

    from ..maps.control_map import ControlMap
    from ..maps.fidelity import Measure, NoMeasure
    from ..training.data import MapMaker, TrainingData
    from ..training.data.map_cache import PreprocessorMaps

# Flags that change nothing of what is learnt, or that the work folder knows by the data itself.
NOT_OF_THE_WORK = ("data", "map", "validation", "size", "tolerate", "workers", "cache")
CROPS = ("center", "random")


def add_data_flags(parser: ArgumentParser) -> None:
    """Declare what is read, and how."""
    parser.add_argument(
        "--data",
        metavar="DATA",
        required=True,
        help="images, each with its caption in <stem>.txt beside it; or metadata.jsonl (captions.jsonl) with lines "
        '{"file_name": "a.png", "text": "a caption", "map": "a_map.png"}, where the map is optional; or a list '
        "(.jsonl, .json, .csv); or the original tutorial's prompt.json; or a dataset of Hugging Face (.arrow, "
        '.parquet, or their folder); or shards ("data/{0000..0099}.tar", or their folder). Or scenes: the drawn '
        "scenes of the embedded model; scenes:8000: the first 8000 of them",
    )
    parser.add_argument(
        "--map",
        metavar="TEXT",
        required=True,
        help="preprocessor that makes the maps, such as canny,low=50; or none,kind=depth where all maps are given",
    )
    parser.add_argument("--maps", metavar="FOLDER", type=Path, help="maps of the images in --data, of the same stems")
    parser.add_argument(
        "--columns",
        metavar="TEXT",
        help="columns of a list, table or shard that are called otherwise: image=a,map=b,text=c, or some of them",
    )
    parser.add_argument(
        "--validation",
        metavar="V",
        help=f"held-out images: a share of the different ones, or data like --data (default: {VALIDATION_SHARE})",
    )
    _add_sampling_flags(parser)
    _add_loading_flags(parser)


def _add_sampling_flags(parser: ArgumentParser) -> None:
    """Declare how images become examples."""
    parser.add_argument(
        "--size", metavar="WxH", help="size in pixels to which all images are cropped (default: that of the model)"
    )
    parser.add_argument(
        "--buckets",
        action="store_true",
        help="crop each image to the nearest of several shapes with the area of --size",
    )
    parser.add_argument(
        "--crop", choices=CROPS, default=CROPS[0], help=f"part of an image that a crop keeps (default: {CROPS[0]})"
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="mirror half of the images, with their maps; those whose captions say left or right stay",
    )
    for what, to, default in (("caption", "empty", CAPTION_DROPOUT), ("map", "black", 0.0)):
        parser.add_argument(
            f"--{what}-dropout",
            metavar="P",
            type=float,
            default=default,
            help=f"share of {what}s that are {to} (default: {default:g})",
        )


def _add_loading_flags(parser: ArgumentParser) -> None:
    """Declare how examples are read and kept."""
    parser.add_argument(
        "--tolerate",
        metavar="P",
        type=float,
        default=TOLERANCE,
        help=f"share of images that may be broken; they are named, and left out (default: {TOLERANCE:g})",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="processes that read ahead (default: up to 4 with a GPU, else 0: reading would slow down the training)",
    )
    parser.add_argument(
        "--cache",
        choices=CACHES,
        default=CACHES[0],
        help="where latents and text states are kept: up to 2 GiB in memory, or in --work on disk (default: "
        f"{CACHES[0]})",
    )


def list_data_settings(options: Namespace) -> dict[str, Any]:
    """Return the settings that change what is learnt and are not the default."""
    flags = list_changed_flags(options, add_data_flags, NOT_OF_THE_WORK)
    return {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}


@dataclass(frozen=True, eq=False)
class MapSource:
    """The value of --map: the kind of the maps, how they are mirrored, and what makes them, None where all are given.
    `column` is the column of a list that holds such maps too, the name of a preprocessor without parameters. `fidelity`
    is what its maps are measured by."""

    kind: str
    mirroring: Mirroring
    make_map: PreprocessorMaps | None
    column: str | None = None
    fidelity: Measure | NoMeasure | None = None

    @property
    def preprocess(self) -> Callable[[np.ndarray], ControlMap] | None:
        """The function that makes the map of an image (H, W, 3) uint8 RGB."""
        return None if self.make_map is None else self.make_map.preprocess

    def make_maker(self, folder: Path | None) -> MapMaker:
        """Return what gives maps to examples, which are kept in the folder if there is one."""
        from ..training.data import MapMaker
        from ..training.data.map_cache import CachedMapMaker

        if self.make_map is None or folder is None:
            return MapMaker(self.make_map, self.mirroring)
        return CachedMapMaker(self.make_map, self.mirroring, self.make_map.identity, folder)


def parse_map(text: str) -> MapSource:
    """Return the maps of --map. Raises ValueError or TypeError on an unknown preprocessor, parameter or kind."""
    from ..training.data.map_cache import PreprocessorMaps

    name, values = split_unit_text(text)
    spec = find_unless_none(name)
    if spec is None:
        kind = values.pop("kind", "other")
        if values or kind not in MAP_KINDS:
            raise ValueError(f"--map {text!r}: expected none,kind=K, K one of {', '.join(MAP_KINDS)}")
        return MapSource(kind, get_mirroring_of_kind(kind), None)
    if spec.needs_mask:
        raise ValueError(f"--map {text!r}: {spec.name} needs a mask of each image, which training data has not")
    maps = PreprocessorMaps(spec.name, spec.parse(values))
    return MapSource(spec.makes, spec.mirroring, maps, None if values else spec.name, spec.fidelity)


def check_data_names(options: Namespace) -> None:
    """Raise FileNotFoundError or ValueError where a file or folder that is named is not there: it takes long to read
    those that are."""
    from ..training.data import check_data_source
    from ..training.data.reading import SCENES_PATTERN, parse_share

    if not SCENES_PATTERN.fullmatch(options.data):
        check_data_source(options.data)
    if options.validation is not None and parse_share(options.validation) is None:
        check_data_source(options.validation)
    if options.maps is not None and not options.maps.is_dir():
        raise FileNotFoundError(f"--maps {str(options.maps)!r} is not a folder")


def read_data(options: Namespace, maps: MapSource, size: tuple[int, int], step: int, work: Path) -> TrainingData:
    """Read all examples but their pixels, of shards the first ones.

    `size` is (height, width) in pixels, `step` the multiple of the sides of buckets. Raises FileNotFoundError or
    ValueError in one line for data that cannot be learnt from.
    """
    from ..training.data import LoadingSettings, Sampling, Tolerance
    from ..training.data.map_cache import remove_stale_files
    from ..training.data.reading import DataRequest, read_training_data
    from ..training.data.rows import Columns

    def report(line: str) -> None:
        print_stderr(f"controlnet-ext: {line}")

    columns = Columns() if options.columns is None else Columns.parse(options.columns)
    request = DataRequest(options.data, options.validation, columns, maps.column, options.maps)
    is_random = options.crop == CROPS[1]
    dropout = options.caption_dropout, options.map_dropout
    sampling = Sampling(size, step, options.buckets, is_random, options.flip, *dropout)
    tolerance = Tolerance(options.tolerate, report)
    loading = LoadingSettings(tolerance, options.workers, options.cache, work / CACHE_FOLDER)
    for folder in (work / MAP_FOLDER, work / CACHE_FOLDER):
        remove_stale_files(folder)
    maker = maps.make_maker(None if options.cache == "none" else work / MAP_FOLDER)
    return read_training_data(request, maker, sampling, loading, report)
