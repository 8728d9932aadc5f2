"""controlnet-ext preprocess NAME[,NAME...] INPUT... -o OUT [--PARAMETER VALUE | --NAME.PARAMETER VALUE]...

Make control maps of pictures. `controlnet-ext preprocessors` lists the names and their parameters.

    INPUT             a picture, a folder: all pictures in it, or a glob in quotes: 'in/**/*.jpg'; or a video, a
                      WebDataset shard (.tar), a list (.jsonl) or table (.parquet), which become one of their kind
    -o, --output OUT  a file (.png, .jpg, .webp); a folder, if it ends in / or there are several results, which are
                      then called <stem>_<name>.png; or - for a PNG on stdout
    --PARAMETER       for every named preprocessor that has it; --NAME.PARAMETER for one
    --resolution N    the short side in pixels to work at, 64..2048, by default the picture's own
    --json            the key points of people or animals too, beside each map, with the suffix .json: see `draw`
    --sixteen-bit     depth as a grey PNG of 16 bits
    --mask MASK       a picture as large as the one INPUT, white where inpaint_only+lama is to paint; or a folder of
                      them, called as the pictures are
    --recursive       the folders in a folder too, kept in OUT
    --overwrite       replace files that exist; start anew where another job has begun
    --jobs N          so many processes, for reading, writing and maps without weights
    --shard I/N       the I-th of N parts, for as many machines
    --engine ray      on a Ray cluster, N of its workers for --jobs N, where networks run too

Of preprocessors with weights:

    --library FOLDER  where weights are, several times if need be, by default those in CONTROLNET_EXT_MODELS; then the
                      Hugging Face cache is looked into; what is nowhere is downloaded, to the first folder
    --no-download     only say which file to put where
    --weights FILE    the file itself, where one is needed; or the folder of a model of transformers
    --device D        where networks compute: cpu (by default), cuda, cuda:1, mps, ...
    --dtype T         in which numbers: float32 (by default), float16, bfloat16
    --batch N         so many pictures at once, of those that are alike in size

Of several pictures, what failed is in OUT.job/errors.jsonl, and the others are done. The same command goes on with what
was interrupted, in whatever way, does nothing twice, and tries again what failed.

Two results of one name are refused before any work. Exit code 0: done; 1: some failed, or the disk is full; 2: refused,
nothing is written; 130: interrupted.
"""

from __future__ import annotations

import os
from argparse import SUPPRESS, ArgumentParser, Namespace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...batch.inputs import InputFile, find_inputs, is_container
from ...batch.request import MapRequest
from ...preprocessors.registry import RESOLUTION_PARAMETER, Preprocessor, find, list_preprocessors
from .. import weights_options
from . import print_stderr

if TYPE_CHECKING:
    from ...batch.engines import StageEngine
    from ...batch.stages import NetworkStage


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declares a flag for every parameter of the named preprocessors, plain and with its preprocessor's name."""
    parser.add_argument("names", metavar="NAME")
    parser.add_argument("inputs", metavar="INPUT", nargs="+")
    parser.add_argument("-o", "--output", metavar="OUT", required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sixteen-bit", action="store_true")
    parser.add_argument("--mask", metavar="MASK")
    parser.add_argument("--recursive", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--jobs", metavar="N", type=int, default=1)
    parser.add_argument("--shard", metavar="I/N")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    weights_options.add_options(parser)
    named = _find_specs(argv[0]) if argv and not argv[0].startswith("-") else list_preprocessors()
    for flag in {flag: None for entry in named for flag in _list_flags(entry)}:
        parser.add_argument(f"--{flag}", dest=f"--{flag}", default=SUPPRESS)


def run(options: Namespace) -> int:
    """Plans all of the work, which may refuse it, then does it."""
    entries = _find_specs(options.names)
    values = _parse_parameters(
        entries, {flag[2:]: text for flag, text in vars(options).items() if flag.startswith("--")}
    )
    order = MapRequest(
        tuple(entries), tuple(values), options.json, options.sixteen_bit, options.output, options.overwrite
    )
    shard, jobs = _parse_shard(options.shard), _check_jobs(options.jobs)
    files = _assign_masks(order, find_inputs(options.inputs, options.recursive), options.mask)
    if len(files) == 1 and shard is None and not is_container(files[0].path):
        from ...batch import single

        paths = single.output_paths(order, files[0])
        ready = weights_options.load_preprocessors(entries, options)
        return single.run_single(order, files[0], ready, paths, print_stderr)
    return _run_many(order, files, shard, jobs, options)


def _assign_masks(request: MapRequest, files: list[InputFile], mask: str | None) -> list[InputFile]:
    """The files, each with its mask. Those that hold pictures hold masks too."""
    pictures = [file for file in files if not is_container(file.path)]
    if mask is None:
        if request.needs_mask and pictures:
            name = next(entry.name for entry in request.specs if entry.needs_mask)
            raise ValueError(f"{name} needs --mask FILE, or of several pictures --mask FOLDER, white where to paint")
        return files
    if not request.needs_mask:
        raise ValueError(f"{request.specs[0].name} takes no --mask")
    if not pictures:
        raise ValueError(f"--mask is for pictures; {files[0].path!r} has masks of its own")
    if os.path.isdir(mask):
        from ...batch.inputs import attach_masks

        return attach_masks(files, mask)
    if len(files) > 1:
        raise ValueError(f"--mask {mask!r} is for one picture, of several it is a folder")
    return [files[0]._replace(mask=mask)]


def _run_many(
    request: MapRequest, files: list[InputFile], shard: tuple[int, int] | None, jobs: int, options: Namespace
) -> int:
    from ...batch import engines, job, plan  # 20 ms, which one picture need not wait for
    from ...batch.stages import LazyNetworks

    engines.keep_heap()
    inputs = [os.path.abspath(word) for word in options.inputs]
    places = {name: getattr(options, name) for name in ("recursive", *weights_options.OPTION_NAMES)}
    size = plan.choose_chunk_size(request, options.batch)
    masks = None if options.mask is None else os.path.abspath(options.mask)
    planned = plan.plan_job(request, files, shard, size, {"inputs": inputs, "mask": masks, "shard": shard, **places})
    engine = _make_engine(options.engine, jobs, (options.device or "cpu").startswith("cuda"))
    load = partial(_load_networks, options.names, request.parameters, options)
    networks = LazyNetworks(load) if engine.runs_networks and request.needs_networks else load()
    recipe = plan.build_recipe(request, networks, size)
    try:
        failed = job.run_job(planned.streams, recipe, engine, planned.record, print_stderr, not request.overwrite)
    except OSError as error:
        print_stderr(f"controlnet-ext: {error}; the same command goes on from here")
        return 1
    return 1 if failed else 0


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
    """The networks of the preprocessors named, loaded in the process that calls this."""
    from ...batch.plan import build_network_stage

    return build_network_stage(weights_options.load_preprocessors(_find_specs(names), options), parameters)


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    """i and n of "i/n", i counted from 0 or from 1: the n-th of n is the 0-th."""
    if text is None:
        return None
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(n) >= 1 and int(i) <= int(n)):
        raise ValueError(f"--shard {text!r:.40}: expected i/n, such as 1/8 to 8/8")
    return int(i) % int(n), int(n)


def _check_jobs(jobs: int) -> int:
    if jobs < 1:
        raise ValueError(f"--jobs {jobs} is below 1")
    return jobs


def _find_specs(names: str) -> list[Preprocessor]:
    return [find(name.strip()) for name in names.split(",")]


def _list_flags(spec: Preprocessor) -> dict[str, str]:
    """The flags that are for an entry and the parameters they give, the particular after the plain."""
    names = [parameter.name for parameter in (*spec.parameters, RESOLUTION_PARAMETER)]
    return {name: name for name in names} | {f"{spec.name}.{name}": name for name in names}


def _parse_parameters(specs: list[Preprocessor], texts_by_flag: dict[str, str]) -> list[dict[str, Any]]:
    """For each entry the values of the flags that are for it. A flag for none of them is refused."""
    if idle := texts_by_flag.keys() - {flag for entry in specs for flag in _list_flags(entry)}:
        raise ValueError(f"--{min(idle)} is for none of the preprocessors named: {', '.join(e.name for e in specs)}")
    texts = [
        {name: texts_by_flag[flag] for flag, name in _list_flags(entry).items() if flag in texts_by_flag}
        for entry in specs
    ]
    return [entry.parse(chosen) for entry, chosen in zip(specs, texts, strict=True)]
