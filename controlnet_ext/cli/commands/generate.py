"""Generate an image that follows control maps. The PNG holds its recipe; --from PNG repeats it to the bit.

--control TEXT is one unit: first a preprocessor (see `controlnet-ext preprocessors`) or a control of the embedded
model, or none for an image that is a map already; then, joined by commas,

  model=PATH     control model: a file, a folder, or owner/name in the cache; by default that of the embedded model for
                 such maps; none for a preprocessor that acts only after each step (inpaint_only, tile_colorfix)
  image=IMG      image of the unit, if not that of --image
  map=IMG        the finished map instead, if not that of --map: nothing is preprocessed
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

How well the image obeys each map is printed and stored in the PNG (see `controlnet-ext score`). --best-of N draws N
images, of the seed and those after it, and keeps the one that obeys best.

Exit code 0: done; 1: it failed during work; 2: refused, nothing is written; 130: interrupted.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...embedded import EMBEDDED_NAME
from ...errors import one_line
from ...files.disk import is_folder_name
from ...files.image_writer import encode_image
from ...generation.options import recipe_from_options, recipe_from_png
from ...generation.pipeline_folder import SCHEDULER_CLASSES
from ...generation.prepare import LoadedRecipe, load_recipe
from ...generation.recipe import NUMBER_FIELDS, GenerationRecipe
from ...generation.render import render_recipe
from ...preprocessors.parameters import Parameter, Range
from ..common import (
    DEVICE_HELP,
    DTYPE_HELP,
    MODEL_HELP,
    add_load_option,
    add_output_options,
    print_stderr,
    resolve_output_path,
    resume_garbage_collection,
    write_output,
)

if TYPE_CHECKING:
    from ...scoring.scores import RecipeScorer, UnitScore

BEST_OF = Parameter("best-of", int, 1, Range(2, 64))


@dataclass(frozen=True, eq=False)
class _DrawnImage:
    """An image as the bytes of its PNG, with its seed and the scores of its units."""

    seed: int
    content: bytes
    scores: tuple[UnitScore, ...]


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
    parser.add_argument("--map", metavar="IMG", help="finished map of all units that name neither a map nor an image")
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
    parser.add_argument(
        "--best-of",
        metavar="N",
        help=f"draw N images, {BEST_OF.range}, from the seed on, and keep the one that obeys its maps best",
    )
    parser.add_argument("--keep-all", action="store_true", help="with --best-of, write all images to the folder OUT")
    parser.add_argument("--no-score", action="store_true", help="store no score in the PNG")
    add_load_option(parser, argv)


def run(options: Namespace) -> int:
    """Checks all that can be checked, loads, draws, writes."""
    count = _check_best_of(options)
    resolve_output_path(options.output, f"{options.seed}.png", options.overwrite)  # before maps are made
    make_recipe = recipe_from_options if options.recipe is None else recipe_from_png
    recipe, device, folder = make_recipe(options)
    seeds = [NUMBER_FIELDS["seed"].check(recipe.seed + i) for i in range(count)]
    outs = {seed: resolve_output_path(options.output, f"{seed}.png", options.overwrite) for seed in seeds}
    scorer = _make_scorer(options, recipe, count)
    times = [time.perf_counter()]
    try:
        loaded_recipe = load_recipe(recipe, device, folder)
        resume_garbage_collection()
        for remark in loaded_recipe.warnings:
            print_stderr(f"controlnet-ext: {remark}")
        times.append(time.perf_counter())
        images = [_draw_image(loaded_recipe, seed, scorer, not options.no_score) for seed in seeds]
        times.append(time.perf_counter())
        best = images[0]
        if scorer is not None and count > 1:
            index, words = scorer.choose_best([image.scores for image in images])
            best = images[index]
            print_stderr(f"controlnet-ext: seed {best.seed} is the best of {count}: {words}")
        for image in images if options.keep_all else [best]:
            write_output(outs[image.seed], image.content, options.overwrite)
    except BrokenPipeError:
        raise
    except (RuntimeError, OSError) as error:
        if len(times) == 1 and isinstance(error, OSError):
            raise
        print_stderr(f"controlnet-ext: {one_line(error, 500)}")
        return 1
    start, load_end, render_end = times
    words = f"seed {best.seed}, loaded in {load_end - start:.1f} s, drawn in {render_end - load_end:.1f} s"
    figures = scorer.describe(best.scores) if scorer else []
    print_stderr("; ".join([f"{outs[best.seed] or 'stdout'}: {words}", *figures]))
    return 0


def _check_best_of(options: Namespace) -> int:
    """Return the number of images to draw. Raises ValueError for flags that mean nothing together."""
    if options.best_of is None:
        if options.keep_all:
            raise ValueError("--keep-all without --best-of: there is one image")
        return 1
    if options.keep_all and not is_folder_name(options.output):
        raise ValueError(f"--keep-all writes several images, and {options.output!r} is not a folder: end it in /")
    if options.recipe is None and not options.control:
        raise ValueError("--best-of chooses the image that obeys its maps best, and there is no --control")
    return int(BEST_OF.parse(options.best_of))


def _make_scorer(options: Namespace, recipe: GenerationRecipe, count: int) -> RecipeScorer | None:
    """Return what scores the images, or None where they are to have no score. With --from they have one if the image
    has, so that its bytes are repeated. Raises ValueError where --best-of has nothing to choose by."""
    if count == 1 and (options.no_score or not recipe.units):
        return None
    from ...scoring.scores import RecipeScorer, ScoredImage  # 40 ms

    scored_image = None if options.recipe is None else ScoredImage.read(options.recipe)
    if count == 1 and scored_image is not None and not scored_image.scores:
        return None
    scorer = RecipeScorer(recipe, scored_image)
    if count > 1:
        scorer.check_ranks()
    return scorer


def _draw_image(loaded_recipe: LoadedRecipe, seed: int, scorer: RecipeScorer | None, is_stored: bool) -> _DrawnImage:
    recipe_of_seed = loaded_recipe if seed == loaded_recipe.recipe.seed else loaded_recipe.with_seed(seed)
    pixels = render_recipe(recipe_of_seed)
    scores = () if scorer is None else scorer.score(pixels)
    texts = dict(recipe_of_seed.png_texts)
    if scores and is_stored:
        from ...scoring.scores import encode_scores

        texts |= encode_scores(scores)
    return _DrawnImage(seed, encode_image("image.png", pixels, texts), scores)
