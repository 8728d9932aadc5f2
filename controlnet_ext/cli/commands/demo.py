"""Make a sheet of guided and unguided images with the embedded model, offline, on a CPU.

The canny map of a photo guides an image for each prompt; an unguided image from the same noise stands beside it. The
sheet shows the map over the guided images and F1 scores, 0..1: how well the edges of an image agree with the map.
`controlnet-ext generate PROMPT --image IMG --control canny,resolution=match --guidance 2 --seed N --steps N` makes the
same guided images.

Exit code 0: done; 1: it failed during work; 2: refused, nothing is written; 130: interrupted.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...embedded import EMBEDDED_NAME, SAMPLE_PHOTO, resolve_embedded
from ...embedded.contact_sheet import Column, render_sheet
from ...errors import one_line
from ...files.image_reader import read_image
from ...files.image_writer import encode_image
from ...generation.pipeline_folder import PipelineFolder, silence_libraries
from ...generation.prepare import fit_unit
from ...generation.recipe import NUMBER_FIELDS, GenerationRequest, ModelRef, UnitSpec, check_text
from ...guidance.contract import ControlModel
from ...maps.control_map import ControlMap
from ...maps.fidelity import canny_f1
from ..common import add_output_options, print_stderr, resolve_output_path, write_output

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

CONTROL_NAME = f"{EMBEDDED_NAME}/canny"
PROMPTS = (
    "a blue blob, an orange star and a yellow curve on a dotted red ground",
    "a green blob, a purple person and a white curve on a wavy yellow ground",
    "a red triangle, a cyan square and a blue person on a mottled brown ground",
)
MAX_PROMPTS = 6
GUIDANCE_SCALE = 2.0  # as in the figures of docs/evidence/embedded.md


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
        help=f"prompt, up to {MAX_PROMPTS} times (default: {len(PROMPTS)} prompts). The model knows the colors and "
        f'things of captions such as "{PROMPTS[0]}"',
    )
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the noise")
    parser.add_argument("--steps", metavar="N", default="20", help=f"denoising steps, {NUMBER_FIELDS['steps'].range}")


def run(options: Namespace) -> int:
    """Check, load, generate all images at once, write the sheet. Raises ValueError for a photo without edges."""
    seed, steps = (NUMBER_FIELDS[name].parse(getattr(options, name)) for name in ("seed", "steps"))
    prompts = _check_prompts(options.prompt or PROMPTS)
    folder, control = PipelineFolder.find(EMBEDDED_NAME), resolve_embedded(CONTROL_NAME)
    photo = read_image(options.image)
    spec = UnitSpec(model=ModelRef(CONTROL_NAME), image=photo, preprocessor="canny", parameters={"resolution": "match"})
    control_map = fit_unit(spec, *folder.size).control_map
    if not control_map.pixels.any():
        raise ValueError(f"{options.image!r} has no edges, an image cannot obey them: name another photo with --image")
    height, width, _ = control_map.pixels.shape
    request = GenerationRequest(
        prompt=tuple(prompts),
        negative_prompt="",
        seed=seed,
        steps=steps,
        width=width,
        height=height,
        guidance_scale=GUIDANCE_SCALE,
    )
    out = resolve_output_path(options.output, "sheet.png", options.overwrite)
    if remark := folder.describe_unknown_words(*prompts):
        print_stderr(f"controlnet-ext: {remark}")
    start = time.perf_counter()
    pipe, net = _load_models(folder, control)
    load_end = time.perf_counter()
    try:
        columns = _generate_columns(pipe, net, control_map, request)
        render_end = time.perf_counter()
        times = f"{2 * len(prompts)} images in {render_end - load_end:.1f} s, loaded in {load_end - start:.1f} s"
        words = f"seed {seed}, {steps} steps, guidance {GUIDANCE_SCALE:g}; {times}"
        whole = render_sheet(photo, control_map.pixels, columns, f"controlnet-ext's embedded model: {words}")
        write_output(out, encode_image("sheet.png", whole), options.overwrite)
    except BrokenPipeError:
        raise
    except (RuntimeError, OSError) as error:
        print_stderr(f"controlnet-ext: {one_line(error, 500)}")
        return 1
    for column in columns:
        guided_score, unguided_score = column.guided_score, column.unguided_score
        print_stderr(
            f"{column.prompt}: F1 within 1 px {guided_score.within_1px:.2f}, unguided {unguided_score.within_1px:.2f}; "
            f"exact {guided_score.exact:.2f}, unguided {unguided_score.exact:.2f}"
        )
    print_stderr(f"{out or 'stdout'}: {words}")
    return 0


def _check_prompts(prompts: Sequence[str]) -> Sequence[str]:
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts, expected up to {MAX_PROMPTS}")
    for prompt in prompts:
        check_text("prompt", prompt)
    return prompts


def _load_models(folder: PipelineFolder, control: str) -> tuple[Any, ControlModel]:
    import torch

    from ...models import load

    with silence_libraries():
        pipe = folder.load(torch.float32, folder.make_scheduler(None))
    pipe.set_progress_bar_config(disable=None)  # shown on terminals
    return pipe, load(control, dtype=torch.float32)


def _generate_columns(
    pipe: DiffusionPipeline, model: ControlModel, control_map: ControlMap, request: GenerationRequest
) -> list[Column]:
    from ...generation.pairs import generate_pairs

    unguided_images, guided_images = generate_pairs(pipe, model, control_map, request)
    return [
        Column(prompt, a, b, canny_f1(control_map.pixels, a), canny_f1(control_map.pixels, b))
        for prompt, a, b in zip(request.prompts, unguided_images, guided_images, strict=True)
    ]
