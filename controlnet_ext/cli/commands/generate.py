"""controlnet-ext generate PROMPT [--control NAME[,KEY=VALUE]]... [--image IMG] [--model M] -o OUT

Make a picture that obeys control maps. The PNG holds its recipe; --from PNG makes it again, to the bit.

    PROMPT             what the picture shows
    --model M          a folder saved by diffusers (SD1.5, SD2.1, SDXL), or owner/name in the local Hugging Face cache;
                       by default the embedded model
    --control TEXT     one unit; may be given several times. First a preprocessor (`controlnet-ext preprocessors`), or
                       none for an image that is a map already; then
                         model=PATH     the control model: a file, a folder, or owner/name in the cache; with the
                                        embedded model by default its own for that preprocessor; none for what
                                        acts after each step (inpaint_only, tile_colorfix) to do nothing else
                         image=IMG      its picture, if not that of --image
                         kind=KIND      after none: what the map shows, such as depth, for models that read several
                         weight=1       -2..2, or weights at fractions of the run: "0.2@0, 1@0.3"
                         window=0..1    the part of the run in which it acts
                         mode=balanced  or prompt, control: whether the prompt or the map prevails
                         layers=        factors for the skips and the middle block, "1,1,.5,..."
                         mask=IMG       where to repaint: white; as large as its image
                         region=IMG     where it acts: white; stretched over the picture
                         fit=crop       or stretch, fill: how the map comes to the picture's size
                       and the preprocessor's parameters. A value with commas stands in quotes.
    --image IMG        the picture for all units that name none
    --mask IMG         the mask for all units that inpaint and name none; the picture keeps the pixels around
    -o, --output OUT   a .png; a folder, for <seed>.png in it; or - for stdout
    --negative TEXT    what the picture does not show
    --seed N           by default drawn, and told on stderr
    --steps N          1..1000, by default 30
    --size WxH         multiples of 8, 64..4096 a side; by default what the model was trained for
    --guidance G       0..100, by default 7.5
    --scheduler NAME   ddim, euler, unipc, ...; by default the model's own
    --device D         cpu, cuda, cuda:1, mps; by default the fastest there is
    --dtype T          float32, bfloat16, float16; by default float32 on a CPU and float16 elsewhere
    --overwrite        replace OUT if it exists
    --from PNG         the recipe; the options above change it. --control N,KEY=VALUE changes model, weight, window,
                       mode or layers of unit N. A model must have the sha256 that the recipe says, wherever it lies.

Exit code 0: done; 1: it failed on the way; 2: refused, nothing is written; 130: interrupted.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace

from ...errors import one_line
from ...files.image_writer import encode_image
from ...generation.options import recipe_from_options, recipe_from_png
from ...generation.prepare import load_recipe
from ...generation.render import render
from ..output import resolve_output_path, write_output
from . import print_stderr


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declares what the docstring says, all as text."""
    parser.add_argument("prompt", nargs="?")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--control", action="append", default=[])
    parser.add_argument("--from", dest="recipe")
    parser.add_argument("--overwrite", action="store_true")
    others = ("negative", "seed", "steps", "size", "guidance", "scheduler", "device", "dtype")
    for name in ("model", "image", "mask", *others):
        parser.add_argument(f"--{name}")


def run(options: Namespace) -> int:
    """Checks all that can be checked, loads, draws, writes."""
    recipe, device = recipe_from_options(options) if options.recipe is None else recipe_from_png(options)
    out = resolve_output_path(options.output, f"{recipe.seed}.png", options.overwrite)
    times = [time.perf_counter()]
    try:
        prepared = load_recipe(recipe, device)
        for remark in prepared.warnings:
            print_stderr(f"controlnet-ext: {remark}")
        times.append(time.perf_counter())
        pixels = render(prepared)
        times.append(time.perf_counter())
        write_output(out, encode_image("picture.png", pixels, prepared.png_texts), options.overwrite)
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
