"""Control types, by which clients group preprocessors and control models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..maps.control_map import MODEL_NAME_WORDS
from ..preprocessors.registry import Preprocessor, list_preprocessors

CONTROL_TYPES = {  # kind of map, type, and its default module, as sd-webui-controlnet @ 56cec5b has them
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
UNION_CONTROL_TYPES = (
    "OpenPose",
    "Depth",
    "SoftEdge",
    "Scribble",
    "Canny",
    "Lineart",
    "MLSD",
    "NormalMap",
    "Segmentation",
    "Tile",
)


def list_control_types(model_names: Sequence[str]) -> dict[str, Any]:
    """By type: labels of modules, names of models, and the default of each; first "All"."""
    entries, listed = list_preprocessors(), ["None", *model_names]
    found = {"All": _describe_type([entry.label for entry in entries], listed, "none", "None")}
    for kind, (name, default) in CONTROL_TYPES.items():
        own = [entry for entry in entries if entry.makes == kind]
        own = [e for e in own if e.name == default] + [e for e in own if e.name != default]
        fitting = [model for model in model_names if _does_model_name_fit(model.casefold(), kind, name)]
        best = next((m for m in fitting if "11" in m.rpartition(" [")[0]), fitting[0] if fitting else "None")
        found[name] = _describe_type([entry.label for entry in own], ["None", *fitting], _default_label(own), best)
    return found


def _does_model_name_fit(model: str, kind: str, type_name: str) -> bool:
    words = (type_name.casefold(), *MODEL_NAME_WORDS[kind], *(["union"] if type_name in UNION_CONTROL_TYPES else []))
    return any(word in model for word in words)


def _default_label(specs: Sequence[Preprocessor]) -> str:
    return specs[0].label if specs else "none"


def _describe_type(modules: list[str], models: list[str], module: str, model: str) -> dict[str, Any]:
    return {
        "module_list": ["none", *modules],
        "model_list": models,
        "default_option": module,
        "default_model": model,
    }
