"""All figures of an embedded model of the three worlds; one command, which goes on where it was stopped.

    python -m benchmarks.embedded.worlds MODEL WORLDS JUDGES -o OUT
    python -m benchmarks.embedded.worlds MODEL WORLDS JUDGES -o OUT --control canny=runs/canny.safetensors
    python -m benchmarks.embedded.worlds MODEL WORLDS JUDGES -o look --scenes 32 --domains things --controls none

WORLDS are held-out scenes, of `tools.embedded_model.render_worlds`; JUDGES the networks of
`tools.embedded_model.judges`. Each image is a scene's caption, drawn by a plain StableDiffusionPipeline with the
model's own scheduler, from noise that is that of the scene's seed in every arm. Images stay in OUT/images, so that
nothing is drawn twice, and figures of arms that are not measured this time in OUT/worlds_figures.json: two processes
may measure two domains at once. The table goes to stdout and OUT/worlds.md, contact sheets of the first scenes to OUT.
Settings are chosen with `--split choosing`, on scenes that no figure is taken on.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import diffusers
import torch

from controlnet_ext import load
from controlnet_ext.files.disk import read_json, write_atomically
from controlnet_ext.generation.pipeline_folder import PipelineFolder, silence_libraries
from controlnet_ext.generation.recipe import find_control_files, hash_files
from tools.embedded_model.world_sets import DOMAINS, RENDERED

from ..__main__ import ASSETS
from ..sampling import Sampler
from .arms import Figures, Measurement, check_judges
from .report import draw_contact_sheet, draw_report
from .scenes import CONTROLS, OBJECT_SEEDS, check_set
from .scores import Judges

SHEET_IMAGES = 64


def main(words: list[str] | None = None) -> None:
    options = parse_options(words)
    for domain in options.domains:
        check_set(options.worlds, domain, options.split, options.scenes)
    weights = {name: hash_files(find_control_files(path)) for name, path in options.control.items()}
    measurement, made_with = prepare(options, weights)
    check_judges(measurement.judges, options.judges)
    path = options.output / "worlds_figures.json"
    arms = read_arms(path, made_with, weights)
    for name, figures in iter_arms(options, measurement):
        control = find_control_of_arm(name)
        arms = read_arms(path, made_with, weights)  # again: another process may measure other domains
        arms[name] = {**figures, "control": weights[control]} if control in weights else figures
        text = json.dumps({"made_with": made_with, "arms": arms}, indent=1) + "\n"
        write_atomically(path, text.encode(), overwrite=True)
    for name in (None, *options.control) if options.sheets else ():
        domains = [domain for domain in options.domains if domain in (DOMAINS if name is None else CONTROLS[name])]
        if domains:
            write_sheet(options.output / f"worlds_{name or 'unguided'}.jpg", measurement, name, domains)
    report = draw_report(arms)
    write_atomically(options.output / "worlds.md", report.encode(), overwrite=True)
    print(f"{options.scenes} scenes a domain, {options.split}, {options.steps} steps, guidance {options.guidance:g}\n")
    print(report)


def prepare(options: argparse.Namespace, weights: dict[str, Any]) -> tuple[Measurement, dict[str, Any]]:
    """Load all networks; return what measures, and what its figures are made with but the controls."""
    with silence_libraries():
        folder = PipelineFolder.find(str(options.model))
        pipe = folder.load(torch.float32, folder.make_scheduler(None)).to(options.device)
    settings = {"base": hash_files(folder.files()), "precision": options.precision}
    samplers: dict[str | None, Sampler] = {}
    for name in (None, *options.control):
        net = None if name is None else load(options.control[name], options.device, torch.float32)
        made_with = settings if name is None else {**settings, "control": weights[name]}
        is_bfloat16 = options.precision == "bf16"
        samplers[name] = Sampler(pipe, net, options.steps, made_with, options.output / "images", is_bfloat16)
    judges = Judges.load(options.judges)
    side = pipe.unet.config["sample_size"] * folder.vae_scale_factor
    judge_files = {name: options.judges / name / "judge.safetensors" for name in judges.networks}
    return Measurement(samplers, judges, options.worlds, options.split, options.scenes, side, options.guidance), {
        **settings,
        "size": side,
        "steps": options.steps,
        "guidance": options.guidance,
        "scenes": f"the first {options.scenes}, {options.split}",
        "judges": hash_files(judge_files),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {options.device}",
    }


def parse_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        type=Path,
        help="a folder saved by diffusers, perhaps with folders controlnet_NAME or controlnet_NAME+NAME",
    )
    parser.add_argument("worlds", type=Path)
    parser.add_argument("judges", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    parser.add_argument("--scenes", type=int, default=256, help="of each domain")
    parser.add_argument("--split", choices=OBJECT_SEEDS, default="held_out")
    parser.add_argument("--domains", default=",".join(RENDERED))
    parser.add_argument("--controls", help=f"some of {','.join(CONTROLS)}, or none; by default those that are there")
    parser.add_argument(
        "--control",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="a control beside the model's own",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="of sampling")
    parser.add_argument("--photos", type=Path, default=ASSETS / "images", help="a folder")
    parser.add_argument("--no-sheets", dest="sheets", action="store_false")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(words)
    options.domains = options.domains.split(",")
    for domain in options.domains:
        if domain not in RENDERED:
            parser.error(f"--domains {domain}: expected some of {','.join(RENDERED)}")
    if options.scenes < 2:
        parser.error(f"--scenes {options.scenes}: at least 2 are needed, as maps of another scene are compared")
    options.control = find_controls(options, parser)
    return options


def find_controls(options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the files of the controls that are measured, by name."""
    given = {
        name: str(path)
        for path in sorted(options.model.glob("controlnet_*"))
        for name in path.name.removeprefix("controlnet_").split("+")
        if name in CONTROLS
    }
    for text in options.control:
        name, _, path = text.partition("=")
        if name not in CONTROLS or not path:
            parser.error(f"--control {text}: expected NAME=FILE, NAME one of {','.join(CONTROLS)}")
        given[name] = path
    if options.controls is None:
        return given
    wanted = [] if options.controls == "none" else options.controls.split(",")
    for name in wanted:
        if name not in given:
            parser.error(f"--controls {name}: {options.model} has none; name a file with --control {name}=FILE")
    return {name: given[name] for name in wanted}


def iter_arms(options: argparse.Namespace, measurement: Measurement) -> Iterator[tuple[str, Figures]]:
    """Yield the arms that are wanted."""
    yield from measurement.iter_arms(options.domains)
    if "canny" in options.control:
        yield from measurement.measure_photos(options.photos)


def write_sheet(path: Path, measurement: Measurement, control: str | None, domains: list[str]) -> None:
    """Write the contact sheet of a control, or of unguided images."""
    sheet = draw_contact_sheet(*measurement.list_examples(control, SHEET_IMAGES, domains))
    cv2.imwrite(str(path), sheet[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 88))


def find_control_of_arm(name: str) -> str:
    """Return the control that the name of an arm says, or another word."""
    return "canny" if name.startswith("photo") else name.rpartition(", ")[2]


def read_arms(path: Path, made_with: dict[str, Any], weights: dict[str, Any]) -> dict[str, Figures]:
    """Return the arms that an earlier run has left for the same settings, but those of controls that have changed."""
    before = read_json(path) if path.exists() else {}
    if before.get("made_with") != made_with:
        return {}
    current = {name: weights.get(find_control_of_arm(name)) for name in before["arms"]}
    return {name: each for name, each in before["arms"].items() if current[name] in (None, each.get("control"))}


if __name__ == "__main__":
    main()
