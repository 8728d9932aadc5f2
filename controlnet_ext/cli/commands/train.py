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

from ...files.disk import read_json, write_atomically
from ...generation.pipeline_folder import PipelineFolder, quiet
from ...generation.sources import hashed, sha256
from ...generation.unit_text import parts
from ...maps.control_map import KINDS
from ...models.state_dict.location import locate
from ...preprocessors.registry import find
from . import say

if TYPE_CHECKING:
    from ...training.data import MakeMap, Pictures

ARGUMENTS = "arguments.json"
ASKED = ("steps", "batch", "accumulate", "rate", "weighting", "seed", "map")


def arguments(parser: ArgumentParser, words: list[str]) -> None:
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
class Maps:
    """What --map says: the maps' kind, and what makes them; None where all are given."""

    kind: str
    make: MakeMap | None


def run(options: Namespace) -> int:
    """Checks all that can be checked, loads, trains, writes."""
    if options.batch < 1 or options.seed < 0:
        raise ValueError(f"batch {options.batch}, seed {options.seed}: expected at least 1 and 0")
    _check_target(options.output, options.overwrite)
    maps = _maps(options.map)
    with quiet():
        folder = PipelineFolder.find(options.model)
        height, width = _size(options.size, folder)
        to_learn, held_out = _pictures(options, maps.make, height == width)
        from ...training.config import Lesson
        from ...training.loop import Schedule

        schedule = Schedule(
            options.steps, options.rate, options.accumulate, every=options.every, minutes=options.minutes
        )
        hashes = hashed(folder.files())
        first = None if options.control is None else locate(options.control)
        work = options.work or options.output.with_name(f"{options.output.name}.training")
        asked = {
            **{name: getattr(options, name) for name in ASKED},
            "size": f"{width}x{height}",
            "control": None if first is None else sha256(first),
            "model": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
            "data": to_learn.identity,
            "validation": held_out.identity,
        }
        begun = _begun(work, asked)
        size = height, width
        how = options.batch, options.seed, options.weighting
        lesson = Lesson(folder, first, to_learn, held_out, size, *how)
        if not begun:
            work.mkdir(parents=True, exist_ok=True)
            write_atomically(work / ARGUMENTS, (json.dumps(asked, indent=2) + "\n").encode())
        try:
            net, sentence = lesson.learn(schedule, work)
        except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
            say(f"controlnet-ext: {' '.join(str(error).split())[:500]}")
            return 1
    if net is None:
        say(f"controlnet-ext: {options.minutes:g} minutes are over; the same command goes on from {str(work)!r}")
        return 1
    from ...models.state_dict.saving import save_ldm

    own = {name: digest for name, digest in hashes.items() if name.startswith("unet/")}
    more = {"map": maps.kind, "preprocessor": options.map, "steps": str(options.steps), "base": json.dumps(own)}
    save_ldm(net, options.output, options.overwrite, {f"controlnet_ext.{key}": text for key, text in more.items()})
    say(f"{options.output}: {options.steps} steps; {sentence}")
    return 0


def _check_target(path: Path, overwrite: bool) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"{str(path)!r} does not end in .safetensors")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(path.parent)!r} does not exist")
    if os.path.lexists(path) and (path.is_dir() or not overwrite):
        raise FileExistsError(f"{str(path)!r} exists; --overwrite replaces a file")


def _maps(text: str) -> Maps:
    """ValueError or TypeError on an unknown preprocessor, parameter or kind."""
    name, values = parts(text)
    if name.casefold() == "none":
        kind = values.pop("kind", "other")
        if values or kind not in KINDS:
            raise ValueError(f"--map {text!r}: expected none,kind=K, K one of {', '.join(KINDS)}")
        return Maps(kind, None)
    entry = find(name)
    chosen = entry.parse(values)
    ready = entry.ready()

    def make(pixels: np.ndarray) -> np.ndarray:
        return ready(pixels, **chosen).pixels

    return Maps(entry.makes, make)


def _size(text: str | None, folder: PipelineFolder) -> tuple[int, int]:
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


def _pictures(options: Namespace, make: MakeMap | None, square: bool) -> tuple[Pictures, Pictures]:
    """Those to learn, and the held-out ones."""
    from ...embedded.scenes import HELD_OUT, TRAINING
    from ...training.data import Folder, Scenes, apart, examples, split

    if drawn := re.fullmatch(r"scenes(?::(\d{1,8}))?", options.data):
        seeds = TRAINING if drawn[1] is None else TRAINING[: int(drawn[1])]
        if not seeds:
            raise ValueError(f"--data {options.data!r}: expected at least one scene")
        if make is None or options.validation is not None or not square:
            raise ValueError("scenes are square, have held-out ones of their own, and need a preprocessor in --map")
        return Scenes(seeds, make), Scenes(HELD_OUT, make)
    found = examples(Path(options.data))
    validation = options.validation or "0.1"
    try:
        share = float(validation)
    except ValueError:
        held_out = examples(Path(validation))
        apart(found, held_out)
    else:
        found, held_out = split(found, share)
    return Folder(found, make), Folder(held_out, make)


def _begun(work: Path, asked: dict[str, Any]) -> bool:
    """Whether the folder holds a training with these arguments; ValueError where it is one with others, or another
    folder."""
    if (work / ARGUMENTS).exists():
        begun = read_json(work / ARGUMENTS)
        for name, value in asked.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{str(work)!r} holds a training with another {name} ({begun.get(name)}, now {value}): give the "
                    "same arguments to go on, or another --work"
                )
        return True
    if os.path.lexists(work) and (not work.is_dir() or any(work.iterdir())):
        raise ValueError(f"{str(work)!r} exists and is no folder of a training: name another with --work")
    return False
