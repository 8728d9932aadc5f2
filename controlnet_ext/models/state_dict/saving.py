"""A control model into files: a diffusers folder, or one .safetensors in ldm's layout for webui and ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files.disk import Content, write_atomically, write_together
from ...files.safetensors import serialize_weights
from .. import CONFIG_METADATA_KEY, MAP_METADATA_KEY, WEIGHTS_FILE, ControlFile
from ..inspection import find_map_type
from ..nn.execution import CompilableBlocks

METADATA_PREFIX = "controlnet_ext."  # what of a file's metadata goes along when it is converted


def build_diffusers_files(net: Any, extra_metadata: Mapping[str, str] | None = None) -> dict[str, Content]:
    """Return the content of config.json and of the weights of the folder that diffusers loads, by name.

    It is in the network's dtype, with `extra_metadata` in the metadata of the weights. Raises ValueError when diffusers
    has no such network.
    """
    settings = json.dumps(net.config(), indent=2) + "\n"
    tensors = net.LAYOUTS["diffusers"](net.state_dict())
    weights = serialize_weights(tensors, {**(extra_metadata or {}), **build_metadata(net)})
    return {"config.json": settings.encode(), WEIGHTS_FILE: weights}


def build_ldm_file(net: Any, extra_metadata: Mapping[str, str] | None = None) -> Content:
    """Return the bytes of one .safetensors file under ldm's names without a prefix, in the network's dtype.

    What tensors do not show is in its metadata, under `controlnet_ext.config`, with `extra_metadata` beside it.
    """
    tensors = net.LAYOUTS["ldm"](net.state_dict())
    return serialize_weights(tensors, {**(extra_metadata or {}), **build_metadata(net)})


def save_diffusers(
    net: Any, folder: str | os.PathLike[str], overwrite: bool = False, extra_metadata: Mapping[str, str] | None = None
) -> None:
    """Write the folder that diffusers loads with `from_pretrained`, as `build_diffusers_files`. An existing file raises
    FileExistsError unless `overwrite`; ValueError when diffusers has no such network."""
    files = {Path(folder) / name: content for name, content in build_diffusers_files(net, extra_metadata).items()}
    if not overwrite and any(map(os.path.lexists, files)):
        raise FileExistsError(f"{os.fspath(folder)!r} holds a model already; it is only replaced when asked for")
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_together(files, old_files=files if overwrite else ())


def save_ldm(
    net: Any, path: str | os.PathLike[str], overwrite: bool = False, extra_metadata: Mapping[str, str] | None = None
) -> None:
    """Write the file of `build_ldm_file`. An existing file raises FileExistsError unless `overwrite`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, build_ldm_file(net, extra_metadata), overwrite)


def convert_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    layout: str,
    map_type: str | None = None,
    global_average_pooling: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the control model in `source` in the layout `to`, "diffusers" or "ldm". `reads` is the kind of map it
    reads, None what the file says or is known of it; `pooled` states that its residuals are averages over the image.
    ValueError when the model's kind has no such layout."""
    file = ControlFile.read(source)
    net: Any = file.load()
    if layout not in net.LAYOUTS:
        some = f"of {', '.join(net.LAYOUTS)}" if net.LAYOUTS else "no other layout"
        raise ValueError(f"--to {layout!r:.40}: {str(file.path)!r} is a {net.architecture} file, which can be {some}")
    if global_average_pooling:
        if not isinstance(net, CompilableBlocks):
            raise ValueError(f"a {net.architecture} has no residuals that could be pooled")
        net.global_average_pooling = True
    kind_in_file, _ = find_map_type(file)
    more = {key: text for key, text in file.weights.metadata.items() if key.startswith(METADATA_PREFIX)}
    if map_type or kind_in_file != "unknown":
        more[MAP_METADATA_KEY] = map_type or kind_in_file
    if layout == "ldm" and Path(target).suffix != ".safetensors":
        raise ValueError(f"{os.fspath(target)!r} does not end in .safetensors")
    (save_diffusers if layout == "diffusers" else save_ldm)(net, target, overwrite, more)


def build_metadata(net: Any) -> dict[str, str]:
    """Build the safetensors metadata that state what the tensors of a file do not show."""
    return {"format": "pt", CONFIG_METADATA_KEY: json.dumps(net.unstored_config())}
