"""Score how well images obey the maps that guided them.

Each PNG of `generate` is scored by the units in its recipe. Of other images say what is compared:

  score out.png --map edges.png --kind edges        the image's own map is found by the kind's default preprocessor
  score out.png --map edges.png --control canny,low=50                          by this one, with these parameters
  score out.png --image photo.jpg --control canny,resolution=match              the map is made of the photo
  score pairs/ --control canny    folders pairs/images and pairs/maps with equal stems; sources, unguided if there are
  score list.jsonl --control canny     rows with an image and its map, as `preprocess` and `train` write and read them

--control TEXT is a preprocessor, then, joined by commas, its parameters and map=PATH, image=PATH, fit=crop or
region=IMG; or none,kind=KIND. Several score several units. PNGs of stable-diffusion-webui name their preprocessors, but
hold no map: give --image or --map.

The floor is the score of an unguided image, the ceiling that of the image of which the map was made, the share how far
an image has come from one to the other. Intervals hold 95 % of 2000 bootstrap samples of the images. --map, --image
and --unguided are files, or folders with files of equal stems.

Exit code 0: done; 1: some images have no score; 2: refused, nothing is scored; 130: interrupted.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import error_prefix
from ...files.disk import check_stdout, check_target_folder, write_atomically
from ...files.image_writer import encode_image, read_png_text
from ...maps.control_map import MAP_KINDS
from ...maps.fidelity import require_measure
from ...preprocessors.parameters import Parameter, Range
from ...preprocessors.registry import LoadedPreprocessor, Preprocessor
from .. import weights_options
from ..common import MODEL_HELP, add_load_option, print_stderr

if TYPE_CHECKING:
    from ...scoring.clip import ClipScorer
    from ...scoring.inputs import ScoreInput, StatedUnit
    from ...scoring.results import ScorePanels, ScoreResult

REPORT_SUFFIXES = (".html", ".png")
REPORT_KEYWORD = "controlnet-ext report"  # of a text in the PNG of a report
WORST = Parameter("worst", int, 100, Range(1, 10_000))
MAX_LOADED = 4  # preprocessors that stay loaded


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags; values stay text."""
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="image, folder of images, quoted glob, folder with images/ and maps/, or list (.jsonl)",
    )
    parser.add_argument(
        "--map",
        metavar="MAP",
        action="append",
        default=[],
        help="map that guided; one for each unit, in their order",
    )
    parser.add_argument("--kind", metavar="KIND", help=f"kind of the map: {', '.join(MAP_KINDS)}")
    parser.add_argument(
        "--control", metavar="TEXT", action="append", default=[], help="one unit, see above; may be given several times"
    )
    parser.add_argument("--image", metavar="IMG", help="image of which the maps were made, for the ceiling")
    parser.add_argument("--unguided", metavar="IMG", help="image of the same prompt and noise, unguided, for the floor")
    parser.add_argument(
        "--floor",
        action="store_true",
        help="draw the unguided image of each recipe, which takes as long as that image",
    )
    parser.add_argument("--model", metavar="M", help=f"with --floor, where the recipes' model lies now: {MODEL_HELP}")
    parser.add_argument(
        "--clip",
        metavar="CLIP",
        help="also compare images with their prompts by this CLIP, a folder of transformers or owner/name in the local "
        "Hugging Face cache",
    )
    parser.add_argument("--recursive", action="store_true", help="include folders in a folder")
    parser.add_argument("--json", action="store_true", help="write JSON to stdout instead of a table")
    parser.add_argument(
        "--report", metavar="OUT", help="write a report with the maps, worst first: .html in one file, or .png"
    )
    parser.add_argument(
        "--worst", metavar="N", help=f"scores of each preprocessor that the report shows (default: {WORST.default})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the report if it exists")
    add_load_option(parser, argv)
    weights_options.add_options(parser)


def run(options: Namespace) -> int:
    """Find the images and what guided them, score, and report. Raises ValueError where no image has a score."""
    from ...scoring import inputs, results
    from ...scoring.unguided import UnguidedRenderer
    from ...sdwebui.infotext import read_stated_units

    check_stdout()
    _check_report(options)
    units = _parse_stated_units(options)
    images = inputs.find_score_inputs(options.inputs, options.recursive)
    _check_files(options, images, units)
    images = _leave_out_report(options, images)
    load = _make_loader(options, [unit.spec for unit in units])
    reader = inputs.TargetReader(
        units, load, read_stated_units, options.map, options.image, options.unguided, options.floor
    )
    worst = WORST.default if options.worst is None else WORST.parse(options.worst)
    panels = None if options.report is None else results.ScorePanels(worst)
    renderer = UnguidedRenderer(options.model, options.device) if options.floor else None
    clip = None if options.clip is None else _load_clip(options)
    scores = list(results.score_images(_show_progress(images), reader, load, renderer, panels, clip))
    failure_count = sum(result.error is not None for result in scores)
    if failure_count == len(scores) == 1:
        raise ValueError(f"{scores[0].path!r}: {scores[0].error}")
    for result in scores:
        _report_problems(result)
    if failure_count == len(scores):
        raise ValueError(f"none of {failure_count} images has a score")
    if options.json:
        print(json.dumps(results.encode_results(scores)))
    else:
        print(results.format_table(scores))
    if panels is not None:
        try:
            _write_report(options, scores, panels)
        except OSError as error:
            print_stderr(f"controlnet-ext: {error}")
            return 1
    if failure_count:
        print_stderr(f"controlnet-ext: {failure_count} of {len(scores)} images have no score")
    return 1 if failure_count else 0


def _parse_stated_units(options: Namespace) -> list[StatedUnit]:
    """Return the units that --kind or --control state, none where each image says its own. Raises ValueError."""
    from ...scoring.inputs import parse_stated_unit

    if options.kind is not None and options.control:
        raise ValueError("--kind with --control: the preprocessor in --control says the kind; leave --kind out")
    texts = options.control if options.kind is None else [f'none,kind="{options.kind}"']
    units = []
    for i, text in enumerate(texts, 1):
        with error_prefix(f"unit {i}"):
            units.append(parse_stated_unit(text))
            require_measure(units[-1].spec.fidelity)
    if units and len(options.map) > len(units):
        raise ValueError(f"{len(options.map)} maps (--map) of {len(units)} units: each needs its --control")
    return units


def _check_files(options: Namespace, images: Sequence[ScoreInput], units: Sequence[StatedUnit]) -> None:
    """Raise FileNotFoundError or ValueError where a path cannot be that of what it is for."""
    paths = [("--map", path) for path in options.map]
    paths += [(flag, path) for flag, path in (("--image", options.image), ("--unguided", options.unguided)) if path]
    paths += [(f"unit {i}", path) for i, unit in enumerate(units, 1) for path in (unit.map, unit.source) if path]
    for flag, path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{flag}: {path!r} does not exist")
        if len(images) > 1 and not os.path.isdir(path):
            raise ValueError(f"{flag} {path!r} is for one image, and there are {len(images)}: give a folder")
    if not units and (pair := next((each for each in images if each.maps), None)):
        raise ValueError(
            f"{pair.path!r} has a map of which nobody says how it was made: name its preprocessor with --control, or "
            "its --kind"
        )
    if options.floor and options.unguided:
        raise ValueError("--floor draws unguided images, and --unguided names them: give one of the two")
    if options.model is not None and not (options.floor or options.clip):
        raise ValueError("--model is for --floor, which draws unguided images")


def _leave_out_report(options: Namespace, images: list[ScoreInput]) -> list[ScoreInput]:
    """Return the inputs without an earlier report in their folder. Raises ValueError where the report would replace
    an image."""
    if options.report is None or not os.path.exists(options.report):
        return images
    others = [each for each in images if not os.path.samefile(each.path, options.report)]
    if len(others) < len(images) and REPORT_KEYWORD not in read_png_text(options.report):
        raise ValueError(f"--report {options.report!r} would replace an image that is scored")
    return others


def _check_report(options: Namespace) -> None:
    """Raise ValueError or FileExistsError where no report can be written."""
    if options.report is None:
        if options.worst is not None or options.overwrite:
            raise ValueError(f"--{'overwrite' if options.worst is None else 'worst'} is for --report")
        return
    path = Path(options.report)
    if path.suffix.lower() not in REPORT_SUFFIXES:
        raise ValueError(f"--report {options.report!r} ends in none of: {', '.join(REPORT_SUFFIXES)}")
    check_target_folder(path.parent)
    if os.path.lexists(path) and not options.overwrite:
        raise FileExistsError(f"{options.report!r} exists; --overwrite replaces it")


def _make_loader(options: Namespace, specs: Sequence[Preprocessor]) -> Callable[[Preprocessor], LoadedPreprocessor]:
    """Return a function that loads each preprocessor once. Those that are stated are loaded at once, so that missing
    weights are refused before any work; for those that images name nothing is downloaded."""
    from ...preprocessors.cache import LRUCache

    cache = LRUCache[LoadedPreprocessor](MAX_LOADED)
    plain = Namespace(**dict.fromkeys(weights_options.OPTION_NAMES))
    offline = Namespace(**{**vars(options), "no_download": True})

    def load(spec: Preprocessor) -> LoadedPreprocessor:
        source = plain if not spec.weights else options if spec in specs else offline
        return cache.get_or_create(spec.name, lambda: weights_options.load_preprocessors([spec], source)[0])

    if specs and not any(spec.weights for spec in specs) and not (options.floor or options.clip):
        weights_options.load_preprocessors(specs, options)  # which refuses flags for networks
    for spec in specs:
        load(spec)
    return load


def _load_clip(options: Namespace) -> ClipScorer:
    from ...scoring.clip import ClipScorer  # and torch

    return ClipScorer(options.clip, options.device or weights_options.DEVICE)


def _show_progress(images: Sequence[ScoreInput]) -> Iterable[ScoreInput]:
    """Return the inputs, with a bar on a terminal while they are taken."""
    from tqdm import tqdm

    return tqdm(images, "scored", disable=True if len(images) == 1 else None)


def _report_problems(result: ScoreResult) -> None:
    if result.error is not None:
        print_stderr(f"controlnet-ext: {result.path!r}: {result.error}")
        return
    for number, reason in sorted(result.unscored.items()):
        print_stderr(f"controlnet-ext: {result.path!r}: unit {number} has no score: {reason}")


def _write_report(options: Namespace, scores: Sequence[ScoreResult], panels: ScorePanels) -> None:
    """Write the report, whole or not at all."""
    path = Path(options.report)
    if path.suffix.lower() == ".png":
        from ...scoring.report_png import render_report_image

        content = encode_image("report.png", render_report_image(scores, panels), {REPORT_KEYWORD: "score"})
    else:
        from ...scoring.report_html import render_report

        content = render_report(scores, panels).encode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content, options.overwrite)
    print_stderr(path)
