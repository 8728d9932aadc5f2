"""controlnet-ext convert IN OUT --to diffusers|ldm [--map KIND]

Write a control model in another layout, number for number, in its own dtype.

    --to diffusers   OUT is a folder with config.json and the weights, as diffusers loads it
    --to ldm         OUT is a .safetensors file for stable-diffusion-webui and ComfyUI
    --map KIND       the kind of map it reads, for the metadata; by default what IN says, or is known of its hash
    --pooled         its residuals are averages over the picture, as those of the published shuffle ControlNet
    --overwrite      replace OUT if it exists

Exit code 0: done; 2: refused: IN cannot be read or is of no kind that has this layout, OUT exists.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ...errors import check_choice
from ...maps.control_map import MAP_KINDS
from . import print_stderr


def arguments(parser: ArgumentParser, argv: list[str]) -> None:
    """Declares what the docstring says."""
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--to", required=True)
    parser.add_argument("--map")
    parser.add_argument("--pooled", action="store_true")
    parser.add_argument("--overwrite", action="store_true")


def run(options: Namespace) -> int:
    """Reads, renames, writes."""
    if options.map is not None:
        check_choice("--map", options.map, MAP_KINDS)
    from ...models.state_dict.saving import convert_model

    convert_model(options.source, options.target, options.to, options.map, options.pooled, options.overwrite)
    print_stderr(f"{options.target}: {options.to} layout")
    return 0
