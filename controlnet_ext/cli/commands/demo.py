"""Make a sheet of guided and unguided images with the embedded model, offline, on a CPU.

The canny map of a photo guides an image for each prompt; an unguided image from the same noise stands beside it. The
sheet shows the map over the guided images and F1 scores, 0..1: how well the edges of an image agree with the map. If
the model has a control for depth, the depth of a landscape guides images of several seasons and times of day below.
`controlnet-ext generate PROMPT --image IMG --control canny,resolution=match --guidance 2 --seed N --steps N` makes the
same guided images.

Exit code 0: done; 1: it failed during work; 2: refused, nothing is written; 130: interrupted.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...embedded import (
    EMBEDDED_NAME,
    SAMPLE_DEPTH,
    SAMPLE_PHOTO,
    list_controls,
    read_demo_choices,
    resolve_embedded,
)
from ...embedded.contact_sheet import (
    Column,
    compute_jump_share,
    find_depth_jumps,
    make_depth_section,
    render_sheet,
)
from ...errors import one_line
from ...files.image_reader import read_image
from ...files.image_writer import encode_image
from ...generation.pipeline_folder import PipelineFolder, silence_libraries
from ...generation.prepare import fit_unit
from ...generation.recipe import NUMBER_FIELDS, GenerationRequest, ModelRef, UnitSpec, check_text
from ...guidance.contract import ControlModel
from ...maps.control_map import ControlMap
from ...maps.fidelity import EdgeScore, canny_f1
from ...maps.resize import fit
from ..common import (
    add_output_options,
    print_stderr,
    resolve_output_path,
    resume_garbage_collection,
    write_output,
)

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

EDGE_CONTROL, DEPTH_CONTROL = f"{EMBEDDED_NAME}/canny", f"{EMBEDDED_NAME}/depth"
PROMPTS = (
    "a blue blob, an orange star and a yellow curve on a dotted red ground",
    "a green blob, a purple person and a white curve on a wavy yellow ground",
    "a red triangle, a cyan square and a blue person on a mottled brown ground",
)
MAX_PROMPTS = 6
GUIDANCE_SCALE = 2.0  # as in the figures of docs/evidence/embedded.md
STEPS, STEPS_WITH_DEPTH = 20, 12  # the second where twice as many images are drawn, larger ones


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags; values stay text."""
    add_output_options(parser, ".png to write; a folder, for sheet.png in it; or - for stdout", default="sheet.png")
    parser.add_argument(
        "--image",
        metavar="IMG",
        default=str(SAMPLE_PHOTO),
        help="photo, of which the middle is used (default: the one in this package)",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help=f"prompt for the photo's edges, up to {MAX_PROMPTS} times (default: some of the model's own, such as "
        f'"{PROMPTS[0]}")',
    )
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the noise")
    parser.add_argument(
        "--steps",
        metavar="N",
        help=f"denoising steps, {NUMBER_FIELDS['steps'].range} (default: {STEPS}, or {STEPS_WITH_DEPTH} if the model "
        "has a control for depth)",
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """The images of one map: the name of its control model, the map in the model's size, and the prompts."""

    control: str
    control_map: ControlMap
    prompts: tuple[str, ...]


def run(options: Namespace) -> int:
    """Check, load, generate all images of a map at once, write the sheet. Raises ValueError for a photo without
    edges."""
    folder = PipelineFolder.find(EMBEDDED_NAME)
    choices = read_demo_choices(folder.path)
    photo = read_image(options.image)
    parts = _plan_parts(options, folder, photo, choices)
    texts = {"seed": options.seed, "steps": options.steps or str(STEPS if len(parts) == 1 else STEPS_WITH_DEPTH)}
    numbers = {name: NUMBER_FIELDS[name].parse(text) for name, text in texts.items()}
    guidance = float(choices.get("guidance", GUIDANCE_SCALE))
    out = resolve_output_path(options.output, "sheet.png", options.overwrite)
    if remark := folder.describe_unknown_words(*(prompt for part in parts for prompt in part.prompts)):
        print_stderr(f"controlnet-ext: {remark}")
    start = time.perf_counter()
    pipe, nets = _load_models(folder, [part.control for part in parts])
    resume_garbage_collection()
    load_end = time.perf_counter()
    try:
        columns = [_generate_columns(pipe, nets, part, guidance, **numbers) for part in parts]
        render_end = time.perf_counter()
        times = (
            f"{2 * sum(map(len, columns))} images in {render_end - load_end:.1f} s, loaded in {load_end - start:.1f} s"
        )
        words = f"seed {numbers['seed']}, {numbers['steps']} steps, guidance {guidance:g}; {times}"
        more = [
            make_depth_section(part.control_map.pixels, some) for part, some in zip(parts[1:], columns[1:], strict=True)
        ]
        footer = f"controlnet-ext's embedded model: {words}"
        whole = render_sheet(photo, parts[0].control_map.pixels, columns[0], footer, more)
        write_output(out, encode_image("sheet.png", whole), options.overwrite)
    except BrokenPipeError:
        raise
    except (RuntimeError, OSError) as error:
        print_stderr(f"controlnet-ext: {one_line(error, 500)}")
        return 1
    for column in (column for some in columns for column in some):
        print_stderr(_describe_scores(column))
    print_stderr(f"{out or 'stdout'}: {words}")
    return 0


def _plan_parts(
    options: Namespace, folder: PipelineFolder, photo: np.ndarray, choices: Mapping[str, Any]
) -> list[_Part]:
    """The part of the photo's edges and, if the model has a control for it, that of a landscape's depth. Raises
    FileNotFoundError or ValueError in one line."""
    resolve_embedded(EDGE_CONTROL)
    prompts = _check_prompts(options.prompt or choices.get("edges", PROMPTS))
    spec = UnitSpec(model=ModelRef(EDGE_CONTROL), image=photo, preprocessor="canny", parameters={"resolution": "match"})
    edge_map = fit_unit(spec, *folder.size).control_map
    if not edge_map.pixels.any():
        raise ValueError(f"{options.image!r} has no edges, an image cannot obey them: name another photo with --image")
    parts = [_Part(EDGE_CONTROL, edge_map, tuple(prompts))]
    if DEPTH_CONTROL in list_controls(EMBEDDED_NAME).values() and "depth" in choices:
        depth = fit(read_image(SAMPLE_DEPTH), *folder.size)
        parts.append(_Part(DEPTH_CONTROL, ControlMap(depth, "depth"), tuple(choices["depth"])))
    return parts


def _check_prompts(prompts: Sequence[str]) -> Sequence[str]:
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts, expected up to {MAX_PROMPTS}")
    for prompt in prompts:
        check_text("prompt", prompt)
    return prompts


def _load_models(folder: PipelineFolder, controls: Sequence[str]) -> tuple[Any, dict[str, ControlModel]]:
    """Return the pipeline and the control models by name."""
    import torch

    from ...models import load

    with silence_libraries():
        pipe = folder.load(torch.float32, folder.make_scheduler(None))
    pipe.set_progress_bar_config(disable=None)  # shown on terminals
    return pipe, {name: load(resolve_embedded(name), dtype=torch.float32) for name in controls}


def _generate_columns(
    pipe: DiffusionPipeline, nets: Mapping[str, ControlModel], part: _Part, guidance: float, seed: int, steps: int
) -> list[Column]:
    from ...generation.pairs import generate_pairs

    height, width, _ = part.control_map.pixels.shape
    request = GenerationRequest(
        prompt=part.prompts,
        negative_prompt="",
        seed=seed,
        steps=steps,
        width=width,
        height=height,
        guidance_scale=guidance,
    )
    images = generate_pairs(pipe, nets[part.control], part.control_map, request)
    if part.control == DEPTH_CONTROL:
        jumps = find_depth_jumps(part.control_map.pixels)
        return [
            Column(prompt, a, b, compute_jump_share(jumps, a), compute_jump_share(jumps, b))
            for prompt, a, b in zip(part.prompts, *images, strict=True)
        ]
    edges = part.control_map.pixels
    return [
        Column(prompt, a, b, canny_f1(edges, a), canny_f1(edges, b))
        for prompt, a, b in zip(part.prompts, *images, strict=True)
    ]


def _describe_scores(column: Column) -> str:
    score, plain_score = column.guided_score, column.unguided_score
    if isinstance(score, EdgeScore) and isinstance(plain_score, EdgeScore):
        return (
            f"{column.prompt}: F1 within 1 px {score.within_1px:.2f}, unguided {plain_score.within_1px:.2f}; "
            f"exact {score.exact:.2f}, unguided {plain_score.exact:.2f}"
        )
    return f"{column.prompt}: {score:.2f} of the depth map's jumps within 1 px, unguided {plain_score:.2f}"
