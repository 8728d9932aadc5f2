"""Control types, by which clients group preprocessors and control models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..maps.control_map import FEEDS
from ..preprocessors.registry import Preprocessor, registered

TYPES = {  # kind of map, type, and its default module, as sd-webui-controlnet @ 56cec5b has them
    "edges": ("Canny", "canny"),
    "depth": ("Depth", "depth_midas"),
    "inpaint": ("Inpaint", "inpaint_only"),
    "lines": ("Lineart", "lineart_standard"),
    "straight lines": ("MLSD", "mlsd"),
    "normals": ("NormalMap", "normal_bae"),
    "pose": ("OpenPose", "openpose_full"),
    "luminance": ("Recolor", "recolor_luminance"),
    "scribble": ("Scribble", "pidinet_scribble"),
    "segmentation": ("Segmentation", "oneformer_ade20k"),
    "shuffle": ("Shuffle", "shuffle"),
    "soft edges": ("SoftEdge", "pidinet"),
    "colour": ("T2I-Adapter", "color"),
    "tile": ("Tile", "tile_resample"),
}
UNION = ("OpenPose", "Depth", "SoftEdge", "Scribble", "Canny", "Lineart", "MLSD", "NormalMap", "Segmentation", "Tile")


def control_types(models: Sequence[str]) -> dict[str, Any]:
    """By type: labels of modules, names of models, and the default of each; first "All"."""
    entries, listed = registered(), ["None", *models]
    found = {"All": _type([entry.label for entry in entries], listed, "none", "None")}
    for kind, (name, default) in TYPES.items():
        own = [entry for entry in entries if entry.makes == kind]
        own = [e for e in own if e.name == default] + [e for e in own if e.name != default]
        fitting = [model for model in models if _fits(model.casefold(), kind, name)]
        best = next((m for m in fitting if "11" in m.rpartition(" [")[0]), fitting[0] if fitting else "None")
        found[name] = _type([entry.label for entry in own], ["None", *fitting], _label(own), best)
    return found


def _fits(model: str, kind: str, name: str) -> bool:
    words = (name.casefold(), *FEEDS[kind], *(["union"] if name in UNION else []))
    return any(word in model for word in words)


def _label(own: Sequence[Preprocessor]) -> str:
    return own[0].label if own else "none"


def _type(modules: list[str], models: list[str], module: str, model: str) -> dict[str, Any]:
    return {
        "module_list": ["none", *modules],
        "model_list": models,
        "default_option": module,
        "default_model": model,
    }
