"""A ControlNet into files: a diffusers folder, or one .safetensors in ldm's layout for webui and ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessors.files import write_atomically, write_weights

from . import CONFIG
from .keys import to_ldm
from .location import STEM

if TYPE_CHECKING:
    from .controlnet import ControlNet
    from .plan import Plan


def save_diffusers(net: ControlNet, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the folder that `diffusers.ControlNetModel.from_pretrained` loads, in the network's dtype. An existing
    file raises FileExistsError unless `overwrite`; ValueError when diffusers has no such network."""
    settings = json.dumps(_plan(net).config(), indent=2) + "\n"
    config, weights = Path(folder) / "config.json", Path(folder) / f"{STEM}.safetensors"
    if not overwrite and any(map(os.path.lexists, (config, weights))):
        raise FileExistsError(f"{os.fspath(folder)!r} holds a model already; it is only replaced when asked for")
    config.parent.mkdir(parents=True, exist_ok=True)
    write_weights(weights, net.state_dict(), metadata(net), overwrite=overwrite)
    write_atomically(config, settings.encode(), overwrite=overwrite)


def save_ldm(
    net: ControlNet, path: str | os.PathLike[str], overwrite: bool = False, more: Mapping[str, str] | None = None
) -> None:
    """Write one .safetensors file under ldm's names without a prefix, in the network's dtype. What tensors do not
    show is in its metadata, under `controlnet_ext.config`, with `more` beside it. An existing file raises
    FileExistsError unless `overwrite`."""
    write_weights(path, to_ldm(net.state_dict()), {**(more or {}), **metadata(net)}, overwrite=overwrite)


def metadata(net: ControlNet) -> dict[str, str]:
    """What the tensors of a file do not show, as safetensors metadata."""
    return {"format": "pt", CONFIG: json.dumps(_plan(net).unseen())}


def _plan(net: ControlNet) -> Plan:
    """The network's plan with the one setting that may be changed on it."""
    return replace(net.plan, pooled=net.global_average_pooling)
