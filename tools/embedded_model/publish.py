"""What was trained, as the folder of the embedded model: `python -m tools.embedded_model.publish BASE --control
canny=FILE --control depth=FILE`.

Weights in fp16, for diffusers and any transformers from 4.30; with --fp8 the matrices of UNet and ControlNets in fp8
(e4m3), which diffusers reads too. Each ControlNet lies in `controlnet_<control>`, one for several controls in
`controlnet_<control>+<control>`. `about.json` says which version this is and which words it knows.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import AutoTokenizer

from controlnet_ext.embedded import (
    ABOUT_FILE,
    CONTROL_PREFIX,
    EMBEDDED_FOLDER,
    UNET_WEIGHTS,
    export_ldm,
    get_control_kind,
)
from controlnet_ext.embedded.captions import encode_text_files
from controlnet_ext.files.disk import read_json, write_atomically
from controlnet_ext.files.safetensors import write_weights
from controlnet_ext.generation.recipe import hash_file
from controlnet_ext.models import DIFFUSERS_STEM, ControlFile
from controlnet_ext.models.state_dict.saving import METADATA_PREFIX, save_diffusers
from tools.embedded_model.world_words import DEMO, describe_shapes, describe_styles

CONFIG_FILE = "config.json"
METADATA = {"format": "pt"}  # transformers before 5 refuses a file without it
MAX_BYTES = 40_000_000  # of all files together
MIN_FP8_NUMBERS = 4096  # smaller matrices gain nothing
FP16_LAYERS = re.compile(r"conv_(in|out)\.|controlnet_(down|mid)_block")  # the ends, where a rounding is seen at once


def publish(base: Path, folder: Path, fp8: bool = False) -> None:
    """Write the pipeline that diffusers saved in `base` to `folder`, over what is there."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    for net in (pipe.unet, pipe.vae, pipe.text_encoder):
        net.half()
    words = AutoTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
    earlier = find_earlier_versions(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pipe.scheduler.save_config(folder / "scheduler")
    for part in ("unet", "vae"):
        net = getattr(pipe, part)
        net.save_config(folder / part)
        _copy_settings(folder / part / CONFIG_FILE, folder / part / CONFIG_FILE)
        tensors = store_in_fp8(net.state_dict()) if fp8 and part == "unet" else net.state_dict()
        write_weights(folder / part / f"{DIFFUSERS_STEM}.safetensors", tensors, METADATA, overwrite=True)
    for part in ("text_encoder", "tokenizer"):  # transformers 5 saves both so that earlier ones cannot read them
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir()
    tensors = export_ldm.rename_text_encoder(pipe.text_encoder.state_dict())
    write_weights(folder / "text_encoder" / "model.safetensors", tensors, METADATA)
    pipe.text_encoder.config.dtype = torch.float32  # transformers 5 would compute in fp16
    for name, content in encode_text_files(words, pipe.text_encoder).items():
        _write_text(folder / ("text_encoder" if name == CONFIG_FILE else "tokenizer") / name, content)
    _copy_settings(base / "model_index.json", folder / "model_index.json")
    if "glossy</w>" in words.get_vocab():
        write_about(folder, describe_styles(), earlier, DEMO)
    else:
        write_about(folder, [describe_shapes("")], earlier)


def store_in_fp8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with large matrices in float8_e4m3fn, all others as they are."""
    return {
        name: tensor.to(torch.float8_e4m3fn)
        if tensor.ndim > 1 and tensor.numel() > MIN_FP8_NUMBERS and not FP16_LAYERS.match(name)
        else tensor
        for name, tensor in tensors.items()
    }


def find_earlier_versions(folder: Path) -> dict[str, int]:
    """Return the versions of the embedded model up to the one in a folder, by the sha256 of the UNet's weights."""
    if not (folder / ABOUT_FILE).exists():
        return {}
    about = read_json(folder / ABOUT_FILE)
    return {**about["earlier"], hash_file(folder / UNET_WEIGHTS): about["version"]}


def write_about(
    folder: Path,
    styles: Sequence[Mapping[str, Any]],
    earlier: Mapping[str, int] | None = None,
    demo: Mapping[str, Any] | None = None,
) -> None:
    """Write which version of the model lies in a folder, those before it, what it draws, and what the demo asks it for.
    A UNet that is among the earlier ones keeps its version; another has the next."""
    known = dict(earlier or {})
    version = known.pop(hash_file(folder / UNET_WEIGHTS), None) or max(known.values(), default=0) + 1
    about = {"version": version, "earlier": known, "styles": list(styles)}
    if demo is not None:
        about["demo"] = dict(demo)
    _write_text(folder / ABOUT_FILE, json.dumps(about, indent=1) + "\n")


def _copy_settings(source: Path, target: Path) -> None:
    """What a config says, without where it was."""
    settings = {name: value for name, value in read_json(source).items() if name != "_name_or_path"}
    _write_text(target, json.dumps(settings, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), overwrite=True)


def publish_control(file: Path, folder: Path, fp8: bool = False) -> None:
    """Write a trained ControlNet, and what its file says of it, to `folder`, over what is there."""
    control = ControlFile.read(file)
    net: Any = control.load()
    metadata = {key: text for key, text in control.weights.metadata.items() if key.startswith(METADATA_PREFIX)}
    net = net.half()
    if fp8:
        net.load_state_dict(store_in_fp8(net.state_dict()), assign=True)
    save_diffusers(net, folder, overwrite=True, extra_metadata=metadata)


def remove_controls(folder: Path) -> None:
    """Remove the ControlNets in a folder, which were made for another base."""
    for control in folder.glob(f"{CONTROL_PREFIX}*"):
        shutil.rmtree(control)


def check_size(folder: Path) -> int:
    """Return the bytes of all files in a folder. Raises ValueError where they are more than the package may hold."""
    sizes = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        parts = ", ".join(f"{path.parts[0]} {size / 1e6:.1f}" for path, size in sizes.items() if size > 1e6)
        raise ValueError(f"{total / 1e6:.1f} MB ({parts}), expected at most {MAX_BYTES / 1e6:.0f}: publish with --fp8")
    return total


def parse_control(text: str) -> tuple[str, Path]:
    """Return the controls and the file of `canny=FILE`, or of `pose+depth=FILE`. Raises ValueError for a control whose
    maps no one knows the kind of."""
    names, equals, file = text.partition("=")
    for name in names.split("+"):
        if not equals or get_control_kind(name) is None:
            raise ValueError(
                f"{text!r}: expected CONTROL=FILE, as in canny=canny.safetensors; a control is a kind of map"
            )
    return names, Path(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a folder that train_world_base has written")
    parser.add_argument(
        "--control",
        type=parse_control,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a ControlNet that controlnet-ext train has written; those that are there stay, unless the UNet changes",
    )
    parser.add_argument("--fp8", action="store_true", help="store matrices of UNet and ControlNets in fp8")
    parser.add_argument("-o", "--output", type=Path, default=EMBEDDED_FOLDER)
    options = parser.parse_args()
    before = find_earlier_versions(options.output)
    publish(options.base, options.output, options.fp8)
    if before and hash_file(options.output / UNET_WEIGHTS) not in before:
        remove_controls(options.output)
    for names, file in options.control:
        publish_control(file, options.output / f"{CONTROL_PREFIX}{names}", options.fp8)
    print(f"{check_size(options.output) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
