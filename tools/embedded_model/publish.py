"""What was trained, as the folder of the embedded model: `python -m tools.embedded_model.publish BASE [--canny FILE]`.

Weights in fp16, for diffusers and any transformers from 4.30; the ControlNet beside it in `controlnet_canny`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import AutoTokenizer

from controlnet_ext.embedded import EMBEDDED_FOLDER, export_ldm
from controlnet_ext.embedded.captions import encode_text_files
from controlnet_ext.files.disk import read_json, write_atomically
from controlnet_ext.files.safetensors import write_weights
from controlnet_ext.models import DIFFUSERS_STEM, ControlFile
from controlnet_ext.models.state_dict.saving import METADATA_PREFIX, save_diffusers

CONFIG_FILE = "config.json"
METADATA = {"format": "pt"}  # transformers before 5 refuses a file without it


def publish(base: Path, folder: Path) -> None:
    """Write the pipeline that diffusers saved in `base` to `folder`, over what is there."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    for net in (pipe.unet, pipe.vae, pipe.text_encoder):
        net.half()
    words = AutoTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    pipe.scheduler.save_config(folder / "scheduler")
    for part in ("unet", "vae"):
        net = getattr(pipe, part)
        net.save_config(folder / part)
        _copy_settings(folder / part / CONFIG_FILE, folder / part / CONFIG_FILE)
        write_weights(folder / part / f"{DIFFUSERS_STEM}.safetensors", net.state_dict(), METADATA, overwrite=True)
    for part in ("text_encoder", "tokenizer"):  # transformers 5 saves both so that earlier ones cannot read them
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir()
    tensors = export_ldm.rename_text_encoder(pipe.text_encoder.state_dict())
    write_weights(folder / "text_encoder" / "model.safetensors", tensors, METADATA)
    pipe.text_encoder.config.dtype = torch.float32  # transformers 5 would compute in fp16
    for name, content in encode_text_files(words, pipe.text_encoder).items():
        _write_text(folder / ("text_encoder" if name == CONFIG_FILE else "tokenizer") / name, content)
    _copy_settings(base / "model_index.json", folder / "model_index.json")


def _copy_settings(source: Path, target: Path) -> None:
    """What a config says, without where it was."""
    settings = {name: value for name, value in read_json(source).items() if name != "_name_or_path"}
    _write_text(target, json.dumps(settings, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), overwrite=True)


def publish_control(file: Path, folder: Path) -> None:
    """Write a trained ControlNet, and what its file says of it, to `folder`, over what is there."""
    control = ControlFile.read(file)
    net: Any = control.load()
    metadata = {key: text for key, text in control.weights.metadata.items() if key.startswith(METADATA_PREFIX)}
    save_diffusers(net.half(), folder, overwrite=True, extra_metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="a folder that train_base has written")
    parser.add_argument("--canny", type=Path, help="the ControlNet that controlnet-ext train has written")
    parser.add_argument("-o", "--output", type=Path, default=EMBEDDED_FOLDER)
    options = parser.parse_args()
    publish(options.base, options.output)
    if options.canny is not None:
        publish_control(options.canny, options.output / "controlnet_canny")


if __name__ == "__main__":
    main()
