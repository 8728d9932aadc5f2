"""Train a ControlNet or its like for a frozen model. The same command again continues an interrupted training.

Exit code 0: done; 1: it failed during work or --minutes ran out, the checkpoint stays; 2: refused before any work; 130:
interrupted, at a checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import __version__
from ...errors import one_line
from ...files.disk import read_json
from ...generation.options import split_unit_text
from ...generation.pipeline_folder import INPAINTING_CLASSES, PIPELINE_CLASSES, PipelineFolder, silence_libraries
from ...generation.recipe import hash_files, hash_weights
from ...maps.control_map import MAP_KINDS
from ...models import locate_weights
from ...preprocessors.registry import find_unless_none
from ...training.config import TrainingSchedule
from ...training.output import TrainingOutput
from ...training.processes import check_launch, count_processes, is_first_on_machine, read_rank
from ...training.targets import DEFAULT_RANK, DEFAULT_TARGET, TargetSettings, find_target, list_targets
from ...training.work_folder import check_work_folder, open_work_folder, remove_output_leftovers, write_run_facts
from ..common import add_load_option, print_stderr
from ..evaluation_options import add_evaluation_flags, read_monitor_settings
from ..training_options import (
    add_loss_flags,
    add_run_flags,
    list_changed_settings,
    read_execution,
    read_loss_settings,
    read_schedule,
)

if TYPE_CHECKING:
    from ...maps.control_map import ControlMap
    from ...maps.fidelity import Measure, NoMeasure
    from ...training.data import ControlDataset, MapFunction
    from ...training.job import TrainingJob
    from ...training.monitoring import MonitorSettings

VALIDATION_SHARE = "0.1"
SCENES_PATTERN = re.compile(r"scenes(?::(\d{1,8}))?")
EVALUATION_KEYS = ("draws", "fidelity_images")  # where they are given
RESUME_KEYS = ("target", "rank", "steps", "batch", "accumulate", "weighting", "seed", "map")


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--model",
        metavar="M",
        required=True,
        help="folder saved by diffusers (SD1.5, SD2.1), or owner/name in the local Hugging Face cache",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        required=True,
        help="images, each with its caption in <stem>.txt beside it; or metadata.jsonl (captions.jsonl) with lines "
        '{"file_name": "a.png", "text": "a caption", "map": "a_map.png"}, where the map is optional; or a list '
        "(.jsonl) that preprocess wrote. Or scenes: the drawn scenes of the embedded model; "
        "scenes:8000: the first 8000 of them",
    )
    parser.add_argument(
        "--map",
        metavar="TEXT",
        required=True,
        help="preprocessor that makes the maps, such as canny,low=50; or none,kind=depth where all maps are given",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="what to write: a .safetensors file in the layout of webui and ComfyUI, or a folder that diffusers reads, "
        "which ends in /",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    for add_flags in (_add_target_flags, _add_data_flags, add_loss_flags, add_run_flags, add_evaluation_flags):
        add_flags(parser)
    add_load_option(parser, argv)
    parser.set_defaults(command_line=shlex.join(["controlnet-ext", "train", *argv]))


def _add_target_flags(parser: ArgumentParser) -> None:
    """Declare what is trained."""
    parser.add_argument(
        "--target",
        metavar="T",
        help=f"what is trained: {', '.join(list_targets())} (default: what --control is, else {DEFAULT_TARGET})",
    )
    parser.add_argument("--control", metavar="C", help="file or folder to train further (default: a fresh network)")
    parser.add_argument("--rank", metavar="N", type=int, help=f"of a control-lora's factors (default: {DEFAULT_RANK})")


def _add_data_flags(parser: ArgumentParser) -> None:
    """Declare how images and maps are read."""
    parser.add_argument(
        "--size", metavar="WxH", help="size in pixels to which all images are cropped (default: that of the model)"
    )
    parser.add_argument(
        "--validation",
        metavar="V",
        help=f"held-out images: a share of the different ones, or a folder like --data (default: {VALIDATION_SHARE})",
    )


@dataclass(frozen=True, eq=False)
class MapSource:
    """The value of --map: the kind of the maps, and the function that makes them, None where all are given. `column`
    is the column of a list that holds such maps too, the name of a preprocessor without parameters. `fidelity` is what
    its maps are measured by."""

    kind: str
    preprocess: Callable[[np.ndarray], ControlMap] | None
    column: str | None = None
    fidelity: Measure | NoMeasure | None = None

    @property
    def make_map(self) -> MapFunction | None:
        """The function that makes the pixels of maps."""
        preprocess = self.preprocess
        return None if preprocess is None else lambda pixels: preprocess(pixels).pixels


def run(options: Namespace) -> int:
    """Check all that can be checked, load, train, write. Raises ValueError for what is refused before any work.

    Of the processes that a launcher started, the first works on files and prints, and the first of each machine says
    what is refused.
    """
    try:
        return _run(options)
    except (ValueError, TypeError, OSError):
        if is_first_on_machine():
            raise
        return 2
    except KeyboardInterrupt:
        if read_rank() == 0:
            raise
        return 130


def _run(options: Namespace) -> int:
    is_first = read_rank() == 0
    check_launch()
    if options.batch < 1 or options.seed < 0:
        raise ValueError(f"batch {options.batch}, seed {options.seed}: expected at least 1 and 0")
    loss, schedule = read_loss_settings(options), read_schedule(options)
    output = TrainingOutput.parse(options.output)
    work = options.work or output.work_folder
    if is_first:
        remove_output_leftovers(work, output.path, output.temp_prefix)
    init_from = _check_names(options)
    target, target_settings = find_target(options.target, init_from), TargetSettings(init_from, options.rank)
    if is_first:
        output.check(target, options.overwrite, is_resumed=work.is_dir())
    maps = _parse_map(options.map)
    with silence_libraries():
        folder = PipelineFolder.find(options.model, (*PIPELINE_CLASSES, *INPAINTING_CLASSES))
        target.check(folder.make_meta_unet(), target_settings)
        height, width = _parse_size(options.size, folder)
        monitor = read_monitor_settings(options, maps.kind, maps.preprocess, maps.fidelity, _is_inpainting(folder))
        train_set, held_out = _load_datasets(options, maps, height == width)
        if importlib.util.find_spec("accelerate") is None:
            raise ValueError('train needs accelerate: pip install "controlnet-ext[train]"')
        from ...training.job import TrainingJob

        execution = read_execution(options)
        hashes = hash_files(folder.files())
        settings = {
            **{name: getattr(options, name) for name in RESUME_KEYS},
            "rate": schedule.learning_rate,
            **list_changed_settings(options),
            **{name: getattr(options, name) for name in EVALUATION_KEYS if getattr(options, name) is not None},
            **({"processes": count} if (count := count_processes()) > 1 else {}),
            "size": f"{width}x{height}",
            "control": None if init_from is None else hash_weights(init_from),
            "model": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
            "data": train_set.identity,
            "validation": held_out.identity,
        }
        if is_first:
            check_work_folder(work, settings)
        size = height, width
        job = TrainingJob(
            folder,
            target,
            target_settings,
            train_set,
            held_out,
            size,
            options.batch,
            options.seed,
            loss,
            execution,
        )
        with open_work_folder(work, settings) if is_first else nullcontext():
            if is_first:
                write_run_facts(work, _collect_facts(options, maps, len(train_set), len(held_out)))
            metadata = {"map": maps.kind, "base": json.dumps(_filter_unet(hashes))}
            return _train(options, output, job, schedule, work, metadata, monitor)


def _filter_unet(hashes: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in hashes.items() if name.startswith("unet/")}


def _is_inpainting(folder: PipelineFolder) -> bool:
    channels = read_json(folder.path / "unet" / "config.json").get("in_channels")
    return channels != read_json(folder.path / "vae" / "config.json").get("latent_channels", channels)


def _collect_facts(options: Namespace, maps: MapSource, train_count: int, held_out_count: int) -> dict[str, Any]:
    """Return what the report states of a training beside its arguments and figures."""
    return {
        "command": options.command_line,
        "version": __version__,
        "output": Path(options.output).name,
        "kind": maps.kind,
        "training_images": train_count,
        "held_out_images": held_out_count,
        "stop": options.stop,
        "publishes_last": options.last,
    }


def _train(
    options: Namespace,
    output: TrainingOutput,
    job: TrainingJob,
    schedule: TrainingSchedule,
    work: Path,
    metadata: dict[str, str],
    monitor: MonitorSettings,
) -> int:
    """Train and write OUT with these metadata; return the exit code."""
    try:
        result = job.fit(schedule, work, monitor)
    except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
        if read_rank() == 0:
            print_stderr(f"controlnet-ext: {one_line(error, 500)}")
        return 1
    if read_rank() != 0:
        return 0 if result is not None else 1
    if result is None:
        print_stderr(
            f"controlnet-ext: {options.minutes:g} minutes are over; the same command goes on from {str(work)!r}"
        )
        return 1
    stated = {
        **metadata,
        "preprocessor": options.map,
        "steps": str(result.step),
        "weights": "best" if result.is_best else "last",
    }
    more = {f"controlnet_ext.{key}": text for key, text in stated.items()}
    output.write(result.network, more, card="", overwrite=options.overwrite)
    print_stderr(f"{options.output}: {result.sentence}")
    return 0


def _check_names(options: Namespace) -> Path | None:
    """Return the file of --control, None without one.

    Raises FileNotFoundError or ValueError where a file or folder that is named is not there: it takes long to read
    those that are.
    """
    from ...training.data import check_data_folder

    if not SCENES_PATTERN.fullmatch(options.data):
        check_data_folder(Path(options.data))
    if options.validation is not None and _parse_share(options.validation) is None:
        check_data_folder(Path(options.validation))
    return None if options.control is None else locate_weights(options.control)


def _parse_share(text: str) -> float | None:
    """Return the number of a text, None where it is no number."""
    try:
        return float(text)
    except ValueError:
        return None


def _parse_map(text: str) -> MapSource:
    """Raises ValueError or TypeError on an unknown preprocessor, parameter or kind."""
    name, values = split_unit_text(text)
    spec = find_unless_none(name)
    if spec is None:
        kind = values.pop("kind", "other")
        if values or kind not in MAP_KINDS:
            raise ValueError(f"--map {text!r}: expected none,kind=K, K one of {', '.join(MAP_KINDS)}")
        return MapSource(kind, None)
    parameters = spec.parse(values)
    preprocessor = spec.load()

    def make(pixels: np.ndarray) -> ControlMap:
        return preprocessor(pixels, **parameters)

    return MapSource(spec.makes, make, None if values else spec.name, spec.fidelity)


def _parse_size(text: str | None, folder: PipelineFolder) -> tuple[int, int]:
    """Return height and width, divisible by the total downscaling of VAE and UNet."""
    height, width = folder.size
    if text is not None:
        sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
        if sides is None:
            raise ValueError(f"size {text!r}: expected WIDTHxHEIGHT in pixels, such as 512x768")
        width, height = int(sides[1]), int(sides[2])
    levels = len(read_json(folder.path / "unet" / "config.json")["block_out_channels"])
    least = folder.vae_scale_factor * 2 ** (levels - 1)
    if any(side % least or not least <= side <= 4096 for side in (height, width)):
        raise ValueError(f"size {width}x{height}: both sides must be multiples of {least}, {least}..4096")
    return height, width


def _load_datasets(options: Namespace, maps: MapSource, square: bool) -> tuple[ControlDataset, ControlDataset]:
    """Return the training set and the held-out set."""
    from ...embedded.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS
    from ...training.data import FolderDataset, SceneDataset, check_disjoint, read_examples, split_examples

    if match := SCENES_PATTERN.fullmatch(options.data):
        seeds = TRAINING_SEEDS if match[1] is None else TRAINING_SEEDS[: int(match[1])]
        if not seeds:
            raise ValueError(f"--data {options.data!r}: expected at least one scene")
        if maps.make_map is None or options.validation is not None or not square:
            raise ValueError("scenes are square, have held-out ones of their own, and need a preprocessor in --map")
        return SceneDataset(seeds, maps.make_map), SceneDataset(HELD_OUT_SEEDS, maps.make_map)
    examples = read_examples(Path(options.data), maps.column)
    validation = options.validation or VALIDATION_SHARE
    share = _parse_share(validation)
    if share is None:
        held_out = read_examples(Path(validation), maps.column)
        check_disjoint(examples, held_out)
    else:
        examples, held_out = split_examples(examples, share)
    return FolderDataset(examples, maps.make_map), FolderDataset(held_out, maps.make_map)
