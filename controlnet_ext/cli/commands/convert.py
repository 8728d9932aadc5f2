"""Write a control model in the layout of diffusers or ldm, number for number, in its own dtype.

The diffusers layout is a folder with config.json and the weights; the ldm layout is a .safetensors file for
stable-diffusion-webui and ComfyUI.

Exit code 0: done; 2: refused: IN cannot be read, its kind has no such layout, or OUT exists.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ...errors import check_choice
from ...files.disk import check_target_folder
from ...maps.control_map import MAP_KINDS
from ..common import print_stderr

LAYOUTS = ("diffusers", "ldm")


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declare the flags."""
    parser.add_argument("source", metavar="IN", help="file, folder, or owner/name in the local Hugging Face cache")
    parser.add_argument("target", metavar="OUT", help="folder (diffusers) or .safetensors file (ldm) to write")
    parser.add_argument("--to", metavar="LAYOUT", required=True, help=f"one of: {', '.join(LAYOUTS)}")
    parser.add_argument(
        "--map",
        metavar="KIND",
        help=f"map kind that the model reads, for the metadata, one of: {', '.join(MAP_KINDS)} "
        "(default: from the metadata or the published hash of IN)",
    )
    parser.add_argument(
        "--pooled",
        action="store_true",
        help="mark the residuals as averages over the image, as those of the published shuffle ControlNet",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(options: Namespace) -> int:
    """Read, rename the tensors, write. Raises FileExistsError where OUT is there already."""
    if options.map is not None:
        check_choice("--map", options.map, MAP_KINDS)
    check_target_folder(Path(options.target).parent)
    if options.to == "ldm" and os.path.lexists(options.target) and not options.overwrite:
        raise FileExistsError(f"{options.target!r} exists; --overwrite replaces it")
    from ...models.state_dict.saving import convert_model

    convert_model(options.source, options.target, options.to, options.map, options.pooled, options.overwrite)
    print_stderr(f"{options.target}: {options.to} layout")
    return 0
