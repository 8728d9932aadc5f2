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
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...embedded import resolve_embedded
from ...errors import one_line
from ...files.disk import read_json
from ...generation.pipeline_folder import INPAINTING_CLASSES, PIPELINE_CLASSES, PipelineFolder, silence_libraries
from ...generation.recipe import hash_files, hash_weights
from ...models import locate_weights
from ...training.config import RewardSettings, TrainingSchedule
from ...training.output import TrainingOutput
from ...training.processes import check_launch, count_processes, is_first_on_machine, read_rank
from ...training.report.card import build_model_card
from ...training.targets import DEFAULT_RANK, DEFAULT_TARGET, TargetSettings, TrainingTarget, find_target, list_targets
from ...training.work_folder import check_work_folder, open_work_folder, remove_output_leftovers, write_run_facts
from ..common import add_load_option, print_stderr
from ..evaluation_options import add_evaluation_flags, draw_report, is_report_only, read_monitor_settings
from ..training_data import MapSource, add_data_flags, check_data_names, list_data_settings, parse_map, read_data
from ..training_options import (
    add_loss_flags,
    add_run_flags,
    list_changed_settings,
    read_execution,
    read_loss_settings,
    read_schedule,
)

if TYPE_CHECKING:
    from ...training.data import TrainingSource
    from ...training.job import TrainingJob, TrainingResult
    from ...training.monitoring import MonitorSettings

EVALUATION_KEYS = ("draws", "fidelity_images")  # where they are given
RESUME_KEYS = ("rank", "steps", "batch", "accumulate", "weighting", "seed", "map")


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--model",
        metavar="M",
        required=True,
        help="folder saved by diffusers (SD1.5, SD2.1, SDXL, and for inpainting), or owner/name in the local Hugging "
        "Face cache",
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
    for add_flags in (_add_target_flags, add_data_flags, add_loss_flags, add_run_flags, add_evaluation_flags):
        add_flags(parser)
    add_load_option(parser, argv)
    if is_report_only(argv):
        for action in parser._actions:
            action.required = False
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
    if options.report_only is not None:
        return draw_report(options.report_only)
    is_first = read_rank() == 0
    check_launch()
    if options.batch < 1 or options.seed < 0:
        raise ValueError(f"batch {options.batch}, seed {options.seed}: expected at least 1 and 0")
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError('train needs accelerate: pip install "controlnet-ext[train]"')
    loss, schedule, execution = read_loss_settings(options), read_schedule(options), read_execution(options)
    output = TrainingOutput.parse(options.output)
    work = options.work or output.work_folder
    if is_first:
        remove_output_leftovers(work, output.path, output.temp_prefix)
    check_data_names(options)
    target, target_settings = _find_target(options)
    if is_first:
        output.check(target, options.overwrite, is_resumed=work.is_dir())
    maps = parse_map(options.map)
    with silence_libraries():
        folder = PipelineFolder.find(options.model, (*PIPELINE_CLASSES, *INPAINTING_CLASSES))
        is_inpainting = _check_base(folder, target, target_settings, loss.reward)
        (height, width), step = _parse_size(options.size, folder)
        monitor = read_monitor_settings(options, maps.kind, maps.preprocess, maps.fidelity, is_inpainting)
        data = read_data(options, maps, (height, width), step, work)
        from ...training.job import TrainingJob

        hashes = hash_files(folder.files())
        settings = {
            "target": None if target.name == DEFAULT_TARGET else target.name,
            **{name: getattr(options, name) for name in RESUME_KEYS},
            "rate": schedule.learning_rate,
            **list_changed_settings(options),
            **list_data_settings(options),
            **{name: getattr(options, name) for name in EVALUATION_KEYS if getattr(options, name) is not None},
            **({"processes": count} if (count := count_processes()) > 1 else {}),
            "size": f"{width}x{height}",
            "control": None if target_settings.control is None else hash_weights(target_settings.control),
            "model": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
            "data": data.source.identity,
            "validation": data.held_out.identity,
        }
        if is_first:
            check_work_folder(work, settings)
        data = replace(data, loading=replace(data.loading, identity=settings["model"]))
        job = TrainingJob(
            folder,
            target,
            target_settings,
            data,
            options.batch,
            options.seed,
            loss,
            execution,
        )
        with open_work_folder(work, settings) if is_first else nullcontext():
            if is_first:
                write_run_facts(work, _collect_facts(options, maps, data.source, len(data.held_out)))
            metadata = {"map": maps.kind, "base": json.dumps(_filter_unet(hashes))}
            return _train(options, output, job, schedule, work, metadata, monitor)


def _filter_unet(hashes: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in hashes.items() if name.startswith("unet/")}


def _check_base(
    folder: PipelineFolder, target: TrainingTarget, settings: TargetSettings, reward: RewardSettings | None
) -> bool:
    """Return True for an inpainting model.

    Raises ValueError where nothing, or not this, can be trained beside it, FileNotFoundError without the reward's file.
    """
    from ...training.bases import reads_masked_image
    from ...training.reward import check_reward

    unet = folder.make_meta_unet()
    is_inpainting = reads_masked_image(unet.config, read_json(folder.path / "vae" / "config.json"))
    target.check(unet, settings)
    check_reward(reward, is_inpainting)
    return is_inpainting


def _collect_facts(options: Namespace, maps: MapSource, source: TrainingSource, held_out_count: int) -> dict[str, Any]:
    """Return what the report states of a training beside its arguments and figures."""
    return {
        "command": options.command_line,
        "version": __version__,
        "output": Path(options.output).name,
        "model": options.model,
        "license": options.license,
        "kind": maps.kind,
        **({"training_shards": source.shard_count} if source.total is None else {"training_images": source.total}),
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
        if result is not None and read_rank() == 0:
            _write(options, output, result, work, metadata)
    except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
        if read_rank() == 0:
            print_stderr(f"controlnet-ext: {one_line(error, 500)}")
        return 1
    if result is None and read_rank() == 0:
        print_stderr(
            f"controlnet-ext: {options.minutes:g} minutes are over; the same command goes on from {str(work)!r}"
        )
    return 1 if result is None else 0


def _write(
    options: Namespace, output: TrainingOutput, result: TrainingResult, work: Path, metadata: dict[str, str]
) -> None:
    settings = {
        **metadata,
        "preprocessor": options.map,
        "steps": str(result.step),
        "weights": "best" if result.is_best else "last",
    }
    more = {f"controlnet_ext.{key}": text for key, text in settings.items()}
    output.write(result.network, more, card=build_model_card(work), overwrite=options.overwrite)
    print_stderr(f"{options.output}: {result.sentence}")


def _find_target(options: Namespace) -> tuple[TrainingTarget, TargetSettings]:
    """Return what is trained. Raises FileNotFoundError or ValueError for an unknown target or a missing --control."""
    control = None if options.control is None else locate_weights(resolve_embedded(options.control))
    return find_target(options.target, control), TargetSettings(control, options.rank, options.compile)


def _parse_size(text: str | None, folder: PipelineFolder) -> tuple[tuple[int, int], int]:
    """Return height and width, divisible by the total downscaling of VAE and UNet, and that."""
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
    return (height, width), least
