"""Generate an image that follows control maps. The PNG holds its recipe; --from PNG repeats it to the bit.

--control TEXT is one unit: first a preprocessor (see `controlnet-ext preprocessors`), or none for an image that is a
map already; then, joined by commas,

  model=PATH     control model: a file, a folder, or owner/name in the cache; by default that of the embedded model for
                 the preprocessor; none for a preprocessor that acts only after each step (inpaint_only, tile_colorfix)
  image=IMG      image of the unit, if not that of --image
  kind=KIND      after none: map kind, such as depth, for models that read several
  weight=1       -2..2, or weights at fractions of the run: "0.2@0, 1@0.3"
  window=0..1    part of the run in which the unit acts
  mode=balanced  or prompt, control: whether the prompt or the map prevails
  layers=        factors for the skip connections and the middle block, "1,1,.5,..."
  mask=IMG       where to inpaint: opaque if any pixel is transparent, else white; as large as the image
  region=IMG     where the unit acts: read as mask; stretched over the generated image
  fit=crop       or stretch, fill: how the map is brought to the generated size

and parameters of the preprocessor. A value with commas stands in quotes. With --from, --control N,KEY=VALUE changes
model, weight, window, mode or layers of unit N; a model must have the sha256 in the recipe, wherever it lies.

Exit code 0: done; 1: it failed during work; 2: refused, nothing is written; 130: interrupted.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace

from ...embedded import EMBEDDED_NAME
from ...errors import one_line
from ...files.image_writer import encode_image
from ...generation.options import recipe_from_options, recipe_from_png
from ...generation.pipeline_folder import SCHEDULER_CLASSES
from ...generation.prepare import load_recipe
from ...generation.recipe import NUMBER_FIELDS
from ...generation.render import render_recipe
from ..common import (
    DEVICE_HELP,
    DTYPE_HELP,
    MODEL_HELP,
    add_load_option,
    add_output_options,
    print_stderr,
    resolve_output_path,
    write_output,
)


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags; values stay text."""
    steps, guidance, side = (NUMBER_FIELDS[name] for name in ("steps", "guidance", "width"))
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="description of the image")
    add_output_options(parser, ".png to write; a folder, for <seed>.png in it; or - for stdout")
    parser.add_argument("--model", metavar="M", help=f"{MODEL_HELP} (default: {EMBEDDED_NAME})")
    parser.add_argument(
        "--control", metavar="TEXT", action="append", default=[], help="one unit, see above; may be given several times"
    )
    parser.add_argument("--image", metavar="IMG", help="image of all units that name none")
    parser.add_argument(
        "--mask",
        metavar="IMG",
        help="mask of all units that inpaint and name none; outside of it the image keeps its pixels",
    )
    parser.add_argument("--negative", metavar="TEXT", help="negative prompt")
    parser.add_argument("--seed", metavar="N", help="seed of the noise (default: random, printed on stderr)")
    parser.add_argument("--steps", metavar="N", help=f"denoising steps, {steps.range} (default: {steps.default})")
    parser.add_argument(
        "--size",
        metavar="WxH",
        help=f"size in pixels, multiples of 8, sides {side.range} (default: the size that the model was trained for)",
    )
    parser.add_argument(
        "--guidance", metavar="G", help=f"guidance scale, {guidance.range} (default: {guidance.default})"
    )
    parser.add_argument(
        "--scheduler",
        metavar="NAME",
        help=f"one of: {', '.join(SCHEDULER_CLASSES)} (default: the model's own)",
    )
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    parser.add_argument("--dtype", metavar="T", help=DTYPE_HELP)
    parser.add_argument("--from", metavar="PNG", dest="recipe", help="image whose recipe is repeated; flags change it")
    add_load_option(parser, argv)


def run(options: Namespace) -> int:
    """Checks all that can be checked, loads, draws, writes."""
    resolve_output_path(options.output, f"{options.seed}.png", options.overwrite)  # before maps are made
    make_recipe = recipe_from_options if options.recipe is None else recipe_from_png
    recipe, device, folder = make_recipe(options)
    out = resolve_output_path(options.output, f"{recipe.seed}.png", options.overwrite)
    times = [time.perf_counter()]
    try:
        prepared = load_recipe(recipe, device, folder)
        for remark in prepared.warnings:
            print_stderr(f"controlnet-ext: {remark}")
        times.append(time.perf_counter())
        pixels = render_recipe(prepared)
        times.append(time.perf_counter())
        write_output(out, encode_image("image.png", pixels, prepared.png_texts), options.overwrite)
    except BrokenPipeError:
        raise
    except (RuntimeError, OSError) as error:
        if len(times) == 1 and isinstance(error, OSError):
            raise
        print_stderr(f"controlnet-ext: {one_line(error, 500)}")
        return 1
    start, loaded, drawn = times
    print_stderr(
        f"{out or 'stdout'}: seed {recipe.seed}, loaded in {loaded - start:.1f} s, drawn in {drawn - loaded:.1f} s"
    )
    return 0
