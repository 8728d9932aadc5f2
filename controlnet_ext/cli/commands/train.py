"""controlnet-ext train --model M --data FOLDER|scenes[:N] --map NAME[,PARAMETER=VALUE]... -o OUT.safetensors

Train a ControlNet beside a model, which stays as it is. The same command again goes on where it was stopped.

    --model M          a folder saved by diffusers (SD1.5, SD2.1), or owner/name in the local Hugging Face cache
    --data FOLDER      pictures, each with its caption in <stem>.txt beside it; or metadata.jsonl (captions.jsonl) with
                       lines {"file_name": "a.png", "text": "a caption", "map": "a_map.png"}, the map may be left out.
                       Or scenes: the embedded model's drawn scenes; scenes:8000: the first 8000 of them
    --map TEXT         the preprocessor that makes the maps, canny,low=50; or none,kind=depth where all are given
    -o, --output OUT   a .safetensors in the layout of webui and ComfyUI
    --control C        a ControlNet that learns further; by default a copy of the model's encoder begins
    --steps N          by default 10000
    --batch B          pictures at once, by default 8
    --accumulate K     batches in each step, by default 1
    --rate R           learning rate, by default 0.0001
    --weighting W      how much noise levels count: min-snr, by default; or layout, which lets much noise count up to
                       20 times as much, for the places of colours are decided there
    --size WxH         by default what the model was trained for; all pictures are cropped to it
    --every N          steps between measurements, each with a checkpoint, by default 250
    --validation V     held-out pictures: a share of the different ones, by default 0.1, or a folder like that of --data
    --minutes M        stop after so long, at a checkpoint
    --work FOLDER      for checkpoint and log, by default OUT.training
    --seed N           by default 0
    --overwrite        replace OUT if it exists

Exit code 0: done; 1: it failed on the way or the minutes ran out, the checkpoint stays; 2: refused before any work;
130: interrupted, at a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import one_line
from ...files.disk import read_json, write_atomically
from ...generation.pipeline_folder import PipelineFolder, silence_libraries
from ...generation.sources import hash_file, hash_files
from ...generation.unit_text import split_unit_text
from ...maps.control_map import MAP_KINDS
from ...models.state_dict.location import locate_weights
from ...preprocessors.registry import find
from . import print_stderr

if TYPE_CHECKING:
    from ...training.data import ControlDataset, MapFunction

ARGUMENTS_FILE = "arguments.json"
RESUME_KEYS = ("steps", "batch", "accumulate", "rate", "weighting", "seed", "map")


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declares what the docstring says."""
    for name in ("model", "data", "map"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("-o", "--output", required=True, type=Path)
    for name, default in {"steps": 10_000, "batch": 8, "accumulate": 1, "every": 250, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--weighting", default="min-snr")
    parser.add_argument("--minutes", type=float, default=math.inf)
    for name in ("control", "size", "validation"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--overwrite", action="store_true")


@dataclass(frozen=True, eq=False)
class MapSource:
    """What --map says: the maps' kind, and what makes them; None where all are given."""

    kind: str
    make_map: MapFunction | None


def run(options: Namespace) -> int:
    """Checks all that can be checked, loads, trains, writes."""
    if options.batch < 1 or options.seed < 0:
        raise ValueError(f"batch {options.batch}, seed {options.seed}: expected at least 1 and 0")
    _check_output(options.output, options.overwrite)
    maps = _parse_map(options.map)
    with silence_libraries():
        folder = PipelineFolder.find(options.model)
        height, width = _parse_size(options.size, folder)
        to_learn, held_out = _load_datasets(options, maps.make_map, height == width)
        from ...training.config import TrainingJob
        from ...training.loop import TrainingSchedule

        schedule = TrainingSchedule(
            options.steps,
            options.rate,
            options.accumulate,
            evaluation_interval=options.every,
            max_minutes=options.minutes,
        )
        hashes = hash_files(folder.files())
        first = None if options.control is None else locate_weights(options.control)
        work = options.work or options.output.with_name(f"{options.output.name}.training")
        asked = {
            **{name: getattr(options, name) for name in RESUME_KEYS},
            "size": f"{width}x{height}",
            "control": None if first is None else hash_file(first),
            "model": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
            "data": to_learn.identity,
            "validation": held_out.identity,
        }
        begun = _is_resumed(work, asked)
        size = height, width
        how = options.batch, options.seed, options.weighting
        lesson = TrainingJob(folder, first, to_learn, held_out, size, *how)
        if not begun:
            work.mkdir(parents=True, exist_ok=True)
            write_atomically(work / ARGUMENTS_FILE, (json.dumps(asked, indent=2) + "\n").encode())
        try:
            net, sentence = lesson.fit(schedule, work)
        except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
            print_stderr(f"controlnet-ext: {one_line(error, 500)}")
            return 1
    if net is None:
        print_stderr(
            f"controlnet-ext: {options.minutes:g} minutes are over; the same command goes on from {str(work)!r}"
        )
        return 1
    from ...models.state_dict.saving import save_ldm

    own = {name: digest for name, digest in hashes.items() if name.startswith("unet/")}
    more = {"map": maps.kind, "preprocessor": options.map, "steps": str(options.steps), "base": json.dumps(own)}
    save_ldm(net, options.output, options.overwrite, {f"controlnet_ext.{key}": text for key, text in more.items()})
    print_stderr(f"{options.output}: {options.steps} steps; {sentence}")
    return 0


def _check_output(path: Path, overwrite: bool) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"{str(path)!r} does not end in .safetensors")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist")
    if os.path.lexists(path) and (path.is_dir() or not overwrite):
        raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces a file")


def _parse_map(text: str) -> MapSource:
    """ValueError or TypeError on an unknown preprocessor, parameter or kind."""
    name, values = split_unit_text(text)
    if name.casefold() == "none":
        kind = values.pop("kind", "other")
        if values or kind not in MAP_KINDS:
            raise ValueError(f"--map {text!r}: expected none,kind=K, K one of {', '.join(MAP_KINDS)}")
        return MapSource(kind, None)
    entry = find(name)
    chosen = entry.parse(values)
    ready = entry.load()

    def make(pixels: np.ndarray) -> np.ndarray:
        return ready(pixels, **chosen).pixels

    return MapSource(entry.makes, make)


def _parse_size(text: str | None, folder: PipelineFolder) -> tuple[int, int]:
    """Height and width, of which the UNet can make all its levels."""
    height, width = folder.size
    if text is not None:
        sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
        if sides is None:
            raise ValueError(f"size {text!r}: expected WIDTHxHEIGHT in pixels, such as 512x768")
        width, height = int(sides[1]), int(sides[2])
    levels = [len(read_json(folder.path / part / "config.json")["block_out_channels"]) - 1 for part in ("vae", "unet")]
    least = 2 ** sum(levels)
    if any(side % least or not least <= side <= 4096 for side in (height, width)):
        raise ValueError(f"size {width}x{height}: both sides must be multiples of {least}, {least}..4096")
    return height, width


def _load_datasets(
    options: Namespace, make_map: MapFunction | None, square: bool
) -> tuple[ControlDataset, ControlDataset]:
    """Those to learn, and the held-out ones."""
    from ...embedded.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS
    from ...training.data import FolderDataset, SceneDataset, check_disjoint, read_examples, split_examples

    if drawn := re.fullmatch(r"scenes(?::(\d{1,8}))?", options.data):
        seeds = TRAINING_SEEDS if drawn[1] is None else TRAINING_SEEDS[: int(drawn[1])]
        if not seeds:
            raise ValueError(f"--data {options.data!r}: expected at least one scene")
        if make_map is None or options.validation is not None or not square:
            raise ValueError("scenes are square, have held-out ones of their own, and need a preprocessor in --map")
        return SceneDataset(seeds, make_map), SceneDataset(HELD_OUT_SEEDS, make_map)
    found = read_examples(Path(options.data))
    validation = options.validation or "0.1"
    try:
        share = float(validation)
    except ValueError:
        held_out = read_examples(Path(validation))
        check_disjoint(found, held_out)
    else:
        found, held_out = split_examples(found, share)
    return FolderDataset(found, make_map), FolderDataset(held_out, make_map)


def _is_resumed(work_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds a training with these arguments; ValueError where it is one with others, or another
    folder."""
    if (work_dir / ARGUMENTS_FILE).exists():
        begun = read_json(work_dir / ARGUMENTS_FILE)
        for name, value in settings.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{str(work_dir)!r} holds a training with another {name} ({begun.get(name)}, now {value}): give "
                    "the "
                    "same arguments to go on, or another --work"
                )
        return True
    if os.path.lexists(work_dir) and (not work_dir.is_dir() or any(work_dir.iterdir())):
        raise ValueError(f"{str(work_dir)!r} exists and is no folder of a training: name another with --work")
    return False
