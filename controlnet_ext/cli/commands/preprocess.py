"""Make control maps of images.

`controlnet-ext preprocessors` lists the names; `controlnet-ext preprocess NAME --help` lists the parameters of NAME as
flags. --PARAMETER is for every named preprocessor that has it, --NAME.PARAMETER for one.

Of several images, failures are listed in OUT.job/errors.jsonl, and the others are done. The same command continues
after any interruption, repeats nothing, and retries what failed. Two results of one name are refused before any work.

Exit code 0: done; 1: some images failed, or the disk is full; 2: refused, nothing is written; 130: interrupted.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...batch.inputs import InputFile, find_inputs, is_container
from ...batch.request import MapRequest
from ...files.image_formats import MAX_PIXELS, set_pixel_limit
from ...preprocessors.registry import (
    RESOLUTION_PARAMETER,
    Preprocessor,
    find,
    get_loaded_files,
    list_preprocessors,
    register_file,
)
from .. import weights_options
from ..common import add_load_option, print_stderr

if TYPE_CHECKING:
    from ...batch.engines import StageEngine
    from ...batch.stages import NetworkStage


MAX_JOBS_PER_CORE = 4  # processes; more only take memory
MAX_CLUSTER_JOBS = 4096
MAX_PIXEL_LIMIT = 2**30  # of OpenCV


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags, among them one for each parameter of the named preprocessors, plain and with NAME."""
    parser.add_argument("names", metavar="NAME", help="preprocessor, or several joined by commas")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="image, folder of images, or quoted glob such as 'in/**/*.jpg'; or a video, a WebDataset shard (.tar), a "
        "list (.jsonl) or table (.parquet), whose maps become one of the same kind",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="file (.png, .jpg, .webp); folder, if it ends in / or there are several results, which are then called "
        "<stem>_<name>.png; or - for a PNG on stdout",
    )
    parser.add_argument("--json", action="store_true", help="write key points beside each map, for the command draw")
    parser.add_argument("--sixteen-bit", action="store_true", help="write depth as a gray PNG of 16 bits")
    parser.add_argument(
        "--mask",
        metavar="MASK",
        help="image as large as INPUT, white where inpaint_only+lama fills; or a folder of masks with the names of the "
        "images",
    )
    parser.add_argument("--recursive", action="store_true", help="include folders in a folder, with their paths in OUT")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that exist; start anew where another job has begun"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="processes for reading, writing and maps without weights"
    )
    parser.add_argument(
        "--max-pixels",
        metavar="N",
        help="largest image that is read, in pixels or as 200M; each million takes 3 MB and more (default: 64 x 2^20). "
        "With --resolution a larger JPEG is read at a fraction of its size instead",
    )
    parser.add_argument("--shard", metavar="I/N", help="do the I-th of N parts, for N machines")
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="where --jobs run; ray: on workers of a Ray cluster, networks too",
    )
    add_load_option(parser, argv)
    weights_options.add_options(parser)
    is_named = bool(argv) and not argv[0].startswith("-")
    specs = _find_specs(argv[0]) if is_named else list_preprocessors()
    group = parser.add_argument_group(f"parameters of {argv[0]}") if is_named else parser
    # a parameter of one's own may be called as a flag: --NAME.PARAMETER is left
    own_flags = parser._option_string_actions
    for word in argv if is_named else ():
        if word.startswith("--threshold"):  # as sd-webui-controlnet numbers them
            _check_flag(word, specs)
    for flag in {flag: None for spec in specs for flag in _list_flags(spec) if f"--{flag}" not in own_flags}:
        help = _describe_flag(flag, specs) if is_named and "." not in flag else SUPPRESS
        group.add_argument(f"--{flag}", dest=f"--{flag}", metavar="VALUE", default=SUPPRESS, help=help)


def run(options: Namespace) -> int:
    """Plan the whole job, which may refuse it, then do it."""
    set_pixel_limit(MAX_PIXELS if options.max_pixels is None else _parse_pixels(options.max_pixels))
    specs = _find_specs(options.names)
    values = _parse_parameters(specs, {flag[2:]: text for flag, text in vars(options).items() if flag.startswith("--")})
    request = MapRequest(
        tuple(specs), tuple(values), options.json, options.sixteen_bit, options.output, options.overwrite
    )
    shard, jobs = _parse_shard(options.shard), _check_jobs(options.jobs, options.engine)
    files = _assign_masks(request, _find_images(options), options.mask)
    if len(files) == 1 and shard is None and not is_container(files[0].path):
        from ...batch import single

        paths = single.output_paths(request, files[0])
        ready = weights_options.load_preprocessors(specs, options)
        return single.run_single(request, files[0], ready, paths, print_stderr)
    return _run_many(request, files, shard, jobs, options)


def _find_images(options: Namespace) -> list[InputFile]:
    """Return the input files, of folders and globs without the maps that earlier jobs laid among the images."""
    files = []
    for word in options.inputs:
        inputs = find_inputs([word], options.recursive)
        if os.path.isdir(word) or len(inputs) > 1:
            from ...batch.results import RECORD_NAME, exclude_recorded_maps

            folder = (
                word if os.path.isdir(word) else os.path.commonpath([os.path.dirname(f.path) or "." for f in inputs])
            )
            others = exclude_recorded_maps(inputs, folder)
            if len(others) < len(inputs):
                print_stderr(
                    f"controlnet-ext: {len(inputs) - len(others)} maps of earlier jobs in {word!r} are left out"
                )
            elif os.path.realpath(options.output) == os.path.realpath(folder):
                print_stderr(
                    f"controlnet-ext: maps go among the images of {word!r}; by the file {RECORD_NAME} there later jobs "
                    "tell them from images"
                )
            inputs = others
        files += inputs
    return files


def _assign_masks(request: MapRequest, files: list[InputFile], mask: str | None) -> list[InputFile]:
    """Return the files, each with its mask. Files that hold several images hold their masks too."""
    images = [file for file in files if not is_container(file.path)]
    if mask is None:
        if request.needs_mask and images:
            name = next(spec.name for spec in request.specs if spec.needs_mask)
            raise ValueError(f"{name} needs --mask FILE, or of several images --mask FOLDER, white where to paint")
        return files
    if not request.needs_mask:
        raise ValueError(f"{request.specs[0].name} takes no --mask")
    if not images:
        raise ValueError(f"--mask is for images; {files[0].path!r} has masks of its own")
    if os.path.isdir(mask):
        from ...batch.inputs import attach_masks

        return attach_masks(files, mask)
    if len(files) > 1:
        raise ValueError(f"--mask {mask!r} is for one image; for several give a folder")
    return [files[0]._replace(mask=mask)]


def _run_many(
    request: MapRequest, files: list[InputFile], shard: tuple[int, int] | None, jobs: int, options: Namespace
) -> int:
    from ...batch import engines, job, plan  # 20 ms, which a single image need not wait for
    from ...batch.stages import LazyNetworks

    engines.keep_heap()
    inputs = [os.path.abspath(word) for word in options.inputs]
    places = {name: getattr(options, name) for name in ("recursive", *weights_options.OPTION_NAMES)}
    if options.load:
        places["load"] = list(get_loaded_files().items())
    size = plan.choose_chunk_size(request, options.batch)
    masks = None if options.mask is None else os.path.abspath(options.mask)
    job_plan = plan.plan_job(request, files, shard, size, {"inputs": inputs, "mask": masks, "shard": shard, **places})
    engine = _make_engine(options.engine, jobs, (options.device or "cpu").startswith("cuda"))
    load = partial(_load_networks, options.names, request.parameters, options)
    networks = LazyNetworks(load) if engine.runs_networks and request.needs_networks else load()
    recipe = plan.build_recipe(request, networks, size)
    try:
        overwrite = request.overwrite
        failures = job.run_job(job_plan.streams, recipe, engine, job_plan.record, print_stderr, not overwrite)
        if job_plan.unchanged_count:
            print_stderr(f"{job_plan.unchanged_count} unchanged since an earlier job, left as they are")
    except OSError as error:
        print_stderr(f"controlnet-ext: {error}; the same command goes on from here")
        return 1
    return 1 if failures else 0


def _make_engine(name: str, jobs: int, use_gpu: bool) -> StageEngine:
    if name == "ray":
        from ...batch.ray_engine import RayEngine

        return RayEngine(jobs, use_gpu)
    if jobs > 1:
        from ...batch.engines import ProcessEngine  # 30 ms

        return ProcessEngine(jobs)
    from ...batch.engines import InProcessEngine

    return InProcessEngine()


def _load_networks(names: str, parameters: tuple[dict[str, Any], ...], options: Namespace) -> NetworkStage | None:
    """Load the networks of the named preprocessors, in the process that calls this."""
    from ...batch.plan import build_network_stage

    for file in options.load:
        register_file(file)
    return build_network_stage(weights_options.load_preprocessors(_find_specs(names), options), parameters)


def _check_flag(word: str, specs: Sequence[Preprocessor]) -> None:
    """Raise ValueError for --threshold_a and --threshold_b, with the parameter's own name."""
    flag = word.partition("=")[0]
    if flag[2:] not in {name for spec in specs for name in _list_flags(spec)}:
        raise ValueError(specs[0].suggest_parameter(f"unknown argument {word!r:.80}", flag))


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return (i, n) of "i/n" with i counted from 1 to n; n becomes 0."""
    if text is None:
        return None
    i, slash, n = text.partition("/")
    if not (slash and re.fullmatch("[0-9]{1,9}", i) and re.fullmatch("[0-9]{1,9}", n) and 1 <= int(i) <= int(n)):
        raise ValueError(f"--shard {text!r:.40}: expected i/n with i from 1 to n, such as 1/8 to 8/8")
    return int(i) % int(n), int(n)


def _parse_pixels(text: str) -> int:
    """Return the number of pixels that "200M", "2e8" or "200000000" means. Raises ValueError."""
    number, unit = (text[:-1], 1e6) if text[-1:] in ("M", "m") else (text, 1)
    try:
        count = float(number) * unit
    except ValueError:
        count = math.nan
    if not 1 <= count <= MAX_PIXEL_LIMIT:
        raise ValueError(
            f"--max-pixels {text!r:.40}: expected a number of pixels up to {MAX_PIXEL_LIMIT:,}, such as 200M"
        )
    return int(count)


def _check_jobs(jobs: int, engine: str) -> int:
    """Return the number of jobs. Raises ValueError for one that this machine, or a cluster, cannot mean."""
    cores = os.cpu_count() or 1
    most = MAX_CLUSTER_JOBS if engine == "ray" else max(MAX_JOBS_PER_CORE * cores, 16)
    if not 1 <= jobs <= most:
        where = "" if engine == "ray" else f"; this machine has {cores} cores"
        raise ValueError(f"--jobs {jobs} is outside 1..{most}{where}")
    return jobs


def _find_specs(names: str) -> list[Preprocessor]:
    """Return the named preprocessors. Raises ValueError, also for an input in their place."""
    try:
        return [find(name.strip()) for name in names.split(",")]
    except ValueError:
        if os.path.exists(names):
            kind = "folder" if os.path.isdir(names) else "file"
            raise ValueError(
                f"{names!r} is a {kind}, and the name of a preprocessor comes first: "
                f"controlnet-ext preprocess NAME {shlex.quote(names)} -o OUT"
            ) from None
        raise


def _describe_flag(flag: str, specs: Sequence[Preprocessor]) -> str:
    """Return the help of --PARAMETER: the range and default for each preprocessor that has it."""
    if flag == RESOLUTION_PARAMETER.name:
        return f"short side to work at, in pixels, {RESOLUTION_PARAMETER.range} (default: that of the image)"
    owners = [(spec.name, parameter) for spec in specs for parameter in spec.parameters if parameter.name == flag]
    texts = [f"{parameter.expected} (default: {str(parameter.default).lower()})" for _, parameter in owners]
    if len(owners) == 1:
        return texts[0]
    return "; ".join(f"{name}: {text}" for (name, _), text in zip(owners, texts, strict=True))


def _list_flags(spec: Preprocessor) -> dict[str, str]:
    """Return the parameter by flag, --PARAMETER before --NAME.PARAMETER."""
    names = [parameter.name for parameter in (*spec.parameters, RESOLUTION_PARAMETER)]
    return {name: name for name in names} | {f"{spec.name}.{name}": name for name in names}


def _parse_parameters(specs: list[Preprocessor], texts_by_flag: dict[str, str]) -> list[dict[str, Any]]:
    """Return the parameters of each preprocessor. Raises ValueError for a flag that none of them has."""
    if idle := texts_by_flag.keys() - {flag for spec in specs for flag in _list_flags(spec)}:
        raise ValueError(
            f"--{min(idle)} is for none of the preprocessors named: {', '.join(spec.name for spec in specs)}"
        )
    texts = [
        {name: texts_by_flag[flag] for flag, name in _list_flags(spec).items() if flag in texts_by_flag}
        for spec in specs
    ]
    return [spec.parse(values) for spec, values in zip(specs, texts, strict=True)]
