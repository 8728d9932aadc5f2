"""The embedded model in ldm's layout, for stable-diffusion-webui:
`python -m controlnet_ext.embedded.export_ldm FOLDER`.

Writes shapes.safetensors and shapes.yaml, the folder shapes_text (tokenizer and text encoder) that the yaml names, and
shapes_<map>.safetensors with its yaml for each ControlNet. ldm's code has 32 groups written into it and the embedded
networks have 8, so they are laid into ones four times as wide (`wide`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import AutoTokenizer

from .. import models
from ..files.disk import write_atomically
from ..files.safetensors import write_weights
from ..models.state_dict.ldm_keys import PREFIX, to_ldm
from . import NAME as EMBEDDED
from . import ldm, place
from .captions import text_files
from .ldm_settings import control_settings, settings, width_and_heads
from .wide import GROUPS, factor, widened

NAME = "shapes"
METADATA = {"format": "pt"}  # transformers before 5 refuses a file without it


def checkpoint(unet: Any, vae: Any, text_encoder: Any) -> dict[str, Tensor]:
    """The tensors of one file in ldm's layout, from the parts of a diffusers pipeline of SD1.5's topology. ValueError
    when the UNet's levels differ in width or heads, or 32 is not a multiple of the groups."""
    _, heads = width_and_heads(unet)
    wide = widened(unet.state_dict(), factor(unet.config["norm_num_groups"]), heads)
    wide_vae = widened(vae.state_dict(), factor(vae.config["norm_num_groups"]))
    text = ldm.text_encoder(text_encoder.state_dict())
    return {
        **ldm.unet(wide, len(unet.config["block_out_channels"]), unet.config["layers_per_block"]),
        **ldm.vae(wide_vae, len(vae.config["block_out_channels"])),
        **{ldm.TEXT + name: tensor for name, tensor in text.items()},
    }


def control(net: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a ControlNet's file in ldm's layout, for the UNet of `checkpoint`."""
    times = factor(net.plan.groups)
    tensors = to_ldm(widened(net.state_dict(), times, net.plan.heads[0]))
    plan = replace(net.plan, widths=tuple(times * width for width in net.plan.widths), groups=GROUPS)
    return {PREFIX + name: t for name, t in tensors.items()}, {**METADATA, models.CONFIG: json.dumps(plan.unseen())}


def export(model: Path, out: Path, dtype: torch.dtype = torch.float16, overwrite: bool = False) -> list[Path]:
    """Write all files of the diffusers folder `model` and of each `controlnet_<map>` in it, weights in `dtype`. Gives
    the files for a host's folders of models. FileExistsError when one exists that is not to be overwritten."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    text = out.resolve() / f"{NAME}_text"
    text.mkdir(parents=True, exist_ok=True)
    words = AutoTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    for name, content in text_files(words, pipe.text_encoder).items():
        write_atomically(text / name, content.encode(), overwrite)
    encoder = ldm.text_encoder(pipe.text_encoder.state_dict())
    write_weights(text / "model.safetensors", _as(dtype, encoder), METADATA, overwrite)

    def write(name: str, tensors: dict[str, Tensor], metadata: dict[str, str], stated: dict[str, Any]) -> Path:
        path = out / f"{name}.safetensors"
        write_atomically(path.with_suffix(".yaml"), yaml.safe_dump(stated, sort_keys=False).encode(), overwrite)
        write_weights(path, _as(dtype, tensors), metadata, overwrite)
        return path

    base = settings(pipe.unet, pipe.vae, pipe.scheduler, text)
    written = [write(NAME, checkpoint(pipe.unet, pipe.vae, pipe.text_encoder), METADATA, base)]
    for folder in sorted(model.glob("controlnet_*")):
        net: Any = models.load(folder)
        net.settle(pipe.unet)
        name = f"{NAME}_{folder.name.removeprefix('controlnet_')}"
        written.append(write(name, *control(net), control_settings(base, net.plan.hint[0])))
    return written


def _as(dtype: torch.dtype, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default=EMBEDDED, help="a diffusers folder (default: %(default)s)")
    parser.add_argument("--fp32", action="store_true", help="fp16 otherwise")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    dtype = torch.float32 if options.fp32 else torch.float16
    for path in export(Path(place(options.model)), options.out, dtype, options.overwrite):
        print(path)


if __name__ == "__main__":
    main()
