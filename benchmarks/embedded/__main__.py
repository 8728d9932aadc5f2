"""All figures of the embedded model, on scenes that it has never seen: one command, which goes on where it was stopped.

    python -m benchmarks.embedded [-o docs]            all of them, on 256 scenes: about 2,100 images
    python -m benchmarks.embedded --scenes 32 --only guided --base F --control F      a look at a checkpoint
    python -m benchmarks.embedded --scenes 32 --base F --control none                 at a base without ControlNet

Maps are cv2.Canny(scene, 100, 200). Each image is a scene's caption, drawn by a plain StableDiffusionPipeline with
the model's own scheduler, from noise that is that of the scene's seed in every arm. Images stay in --work, so that
nothing is drawn twice. Tables go to stdout; embedded_figures.json, curves and contact sheet to --output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch

from controlnet_ext import load
from controlnet_ext.files.disk import read_json, write_atomically
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.generation.pipeline_folder import PipelineFolder, silence_libraries
from controlnet_ext.generation.recipe import find_control_files, hash_files

from .arms import GROUPS, Figures, Measurement, examples
from .losses import losses
from .photos import photos, sample_prompts
from .report import curves, report
from .sampling import Sampler
from .scenes import CHOOSING, EVALUATION_SEEDS
from .sheet import sheet

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "controlnet_ext" / "embedded" / "model"
ASSETS = Path(os.environ.get("CONTROLNET_EXT_ASSETS", ROOT.parent / "shared" / "assets"))
BASE_GROUPS = ("truth", "unguided", "losses")  # what needs no ControlNet
ALL = (*GROUPS, "photos", "losses", "sheet")
SHEET_ROWS = 8  # scenes on the sheet


def main(words: list[str] | None = None) -> None:
    options = arguments(words)
    with silence_libraries():
        folder = PipelineFolder.find(str(options.base))
        pipe = folder.load(torch.float32, folder.make_scheduler(None)).to(options.device)
    weights = {"base": hash_files(folder.files())}
    net = None
    if options.control != "none":
        net = load(options.control, options.device, torch.float32)
        weights["control"] = hash_files(find_control_files(options.control))
    sampler = Sampler(pipe, net, options.steps, weights, options.work / "images")
    seeds = CHOOSING[: options.scenes] if options.scenes else EVALUATION_SEEDS
    measurement = Measurement.of(seeds, sampler, options.guidance)
    made_with = {
        **weights,
        "steps": options.steps,
        "guidance": options.guidance,
        "scenes": [seeds.start, seeds.stop],
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {options.device}",
    }
    output = options.output or options.work
    output.mkdir(parents=True, exist_ok=True)
    arms = read_figures(output / "embedded_figures.json", made_with)
    for name, figures in measure_groups(options, measurement, pipe, net):
        arms[name] = figures
        text = json.dumps({"made_with": made_with, "arms": arms}, indent=1) + "\n"
        write_atomically(output / "embedded_figures.json", text.encode(), overwrite=True)
    for name, svg in curves(arms).items():
        write_atomically(output / f"embedded_{name}.svg", svg.encode(), overwrite=True)
    if "sheet" in options.only:
        rows = examples(measurement, SHEET_ROWS) + sample_prompts(sampler, options.guidance)
        write_image(output / "embedded_sheet.png", sheet(rows), overwrite=True)
    settings = f"{options.steps} steps, guidance {options.guidance:g}"
    print(f"{len(measurement.scenes)} scenes from seed {seeds.start}, {settings}\n")
    print(report(arms))


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=MODEL, help="a folder saved by diffusers")
    parser.add_argument("--control", help="a canny ControlNet, or none; by default BASE/controlnet_canny")
    parser.add_argument("--only", help=f"some of: {','.join(ALL)}")
    parser.add_argument("--scenes", type=int, help="so many, of those by which choices are made, not the measured 256")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--guidance", type=float, default=2.0, help="guidance scale; the group `guidance` compares some"
    )
    parser.add_argument("--photos", type=Path, default=ASSETS / "images", help="a folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/figures"))
    parser.add_argument("-o", "--output", type=Path, help="a folder, by default that of --work")
    options = parser.parse_args(words)
    options.control = options.control or str(options.base / "controlnet_canny")
    possible = BASE_GROUPS if options.control == "none" else ALL
    options.only = options.only.split(",") if options.only else list(possible)
    for name in options.only:
        if name not in possible:
            parser.error(f"--only {name}: expected some of {','.join(possible)}")
    if options.scenes is not None and not 2 <= options.scenes <= len(CHOOSING):
        parser.error(f"--scenes {options.scenes}: expected 2..{len(CHOOSING)}")
    return options


def measure_groups(
    options: argparse.Namespace, measurement: Measurement, pipe: Any, net: Any
) -> Iterator[tuple[str, Figures]]:
    """The figures of the groups that are wanted."""
    for name, group in GROUPS.items():
        if name in options.only:
            yield from group(measurement)
    if "photos" in options.only:
        yield from photos(options.photos, measurement.sampler)
    if "losses" in options.only:
        yield from losses(pipe, net)


def read_figures(path: Path, made_with: dict[str, Any]) -> dict[str, Figures]:
    """Figures that an earlier run has left for the same weights and settings."""
    before = read_json(path) if path.exists() else {}
    return before["arms"] if before.get("made_with") == made_with else {}


if __name__ == "__main__":
    main()
