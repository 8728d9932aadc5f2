"""A job of one image: its maps are made and written one after the other, without state beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..files.disk import STDOUT, write_atomically, write_stdout
from ..files.image_reader import read_image
from ..files.image_writer import encode_image
from ..preprocessors.registry import LoadedPreprocessor
from .inputs import InputFile
from .request import MapRequest, check_targets, result_path
from .stages import encode_pose_json, format_error, select_output_pixels


def output_paths(request: MapRequest, file: InputFile) -> list[str]:
    """Return the path of the map of each preprocessor, or STDOUT. Raises what `check_targets` raises."""
    single = request.resolve_single_output(len(request.specs))
    if single == STDOUT:
        return [single]
    maps = [single] if single else [result_path(request.out, file.key, f"{spec.name}.png") for spec in request.specs]
    texts = [str(Path(path).with_suffix(".json")) for path in maps if request.json]
    check_targets([(file.path, [*maps, *texts], request.overwrite)], may_replace_source=True)
    return maps


def run_single(
    request: MapRequest,
    file: InputFile,
    preprocessors: Sequence[LoadedPreprocessor],
    paths: Sequence[str],
    log: Callable[[str], None],
) -> int:
    """Write the maps to these paths, log each, and return the exit code.

    Raises what the first map raises, when nothing is written yet and the image is the reason.
    """
    count = 0
    try:
        pixels = read_image(file.path, request.min_side)
        for make, values, path in zip(preprocessors, request.parameters, paths, strict=True):
            result = make(pixels, file.mask if make.spec.needs_mask else None, **values)
            if request.json:
                _write_output(str(Path(path).with_suffix(".json")), encode_pose_json(result), request.overwrite, log)
            _write_output(
                path,
                encode_image(_encoder_name(path), select_output_pixels(result, request.sixteen_bit)),
                request.overwrite,
                log,
            )
            count += 1
    except BrokenPipeError:
        raise
    except Exception as error:  # of a preprocessor of the user's own it may be anything
        if not count and isinstance(error, (ValueError, FileNotFoundError)):
            raise
        log(f"controlnet-ext: {error if isinstance(error, (ValueError, OSError)) else format_error(error, file.path)}")
        return 1
    return 0


def _encoder_name(path: str) -> str:
    return "stdout.png" if path == STDOUT else path


def _write_output(path: str, content: bytes, overwrite: bool, log: Callable[[str], None]) -> None:
    if path == STDOUT:
        write_stdout(content)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if overwrite and os.path.lexists(path):
        from .results import forget_result  # 10 ms

        forget_result(path)
    write_atomically(path, content, overwrite)
    log(path)
