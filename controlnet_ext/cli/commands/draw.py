"""Draw poses from JSON as the map that a pose control model reads.

Reads the JSON of `preprocess --json`, edited or not, and the files of sd-webui-controlnet, of the ComfyUI pack and,
with --canvas, of OpenPose.

Exit code 0: done; 2: refused, nothing is written.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...files.disk import check_target_folder, is_folder_name
from ...files.image_formats import compute_working_size
from ...files.image_writer import write_image
from ...preprocessors.poses.drawing import render_pose
from ...preprocessors.poses.json import read_poses
from ...preprocessors.poses.key_points import Poses
from ..common import print_stderr


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    parser.add_argument(
        "inputs", metavar="POSES", nargs="+", help="JSON file of people or animals in one image, or an array of several"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="file (.png, .jpg, .webp); folder, if it ends in / or there are several images, which are then called "
        "<stem>.png, those of an array <stem>_1.png, <stem>_2.png ...",
    )
    parser.add_argument(
        "--canvas",
        metavar="WIDTHxHEIGHT",
        help="size in pixels of the image that files belong to which state none, as OpenPose's own",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--resolution", metavar="N", type=int, help="short side in pixels (default: that of the file's canvas)"
    )
    for part in ("body", "hands", "face"):
        parser.add_argument(f"--no-{part}", dest=part, action="store_false", help=f"leave out the {part}")
    parser.add_argument(
        "--scale-sticks", action="store_true", help="draw sticks that grow with the image, for the models of xinsir"
    )


def run(options: Namespace) -> int:
    """Read all files, then draw and write. Raises FileExistsError for an output that exists."""
    canvas = None if options.canvas is None else _parse_canvas(options.canvas)
    targets = _output_paths(options.output, {path: read_poses(path, canvas) for path in options.inputs})
    for target in targets:
        check_target_folder(target.parent)
        if os.path.lexists(target) and not options.overwrite:
            raise FileExistsError(f"{str(target)!r} exists; --overwrite replaces it")
    parts = {name: getattr(options, name) for name in ("body", "hands", "face", "scale_sticks")}
    for target, poses in targets.items():
        height, width = poses.height, poses.width
        if options.resolution is not None:
            height, width = compute_working_size(height, width, options.resolution)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, render_pose(poses, height, width, **parts), overwrite=options.overwrite)
        print_stderr(target)
    return 0


def _parse_canvas(text: str) -> tuple[int, int]:
    """Return height and width. Raises ValueError."""
    sides = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text)
    if sides is None:
        raise ValueError(f"--canvas {text!r}: expected WIDTHxHEIGHT in pixels, such as 512x768")
    return int(sides[2]), int(sides[1])


def _output_paths(out: str, poses_by_file: dict[str, tuple[Poses, ...]]) -> dict[Path, Poses]:
    """Return the poses by output path. Raises ValueError when two would have one name."""
    paths = [
        (Path(path).stem + (f"_{i}" if len(several) > 1 else ""), poses)
        for path, several in poses_by_file.items()
        for i, poses in enumerate(several, start=1)
    ]
    folder = Path(out)
    if len(paths) == 1 and not is_folder_name(out):
        return {folder: paths[0][1]}
    targets = {folder / f"{name}.png": poses for name, poses in paths}
    if len(targets) < len(paths):
        raise ValueError(f"two of {len(paths)} images would have one name in {out!r}")
    return targets
