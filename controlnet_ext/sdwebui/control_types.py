"""Control types, by which clients group preprocessors and control models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..maps.control_map import MODEL_NAME_WORDS
from ..preprocessors.registry import Preprocessor, list_preprocessors

CONTROL_TYPES = {  # by kind of map, as sd-webui-controlnet @ 56cec5b has them
    "edges": "Canny",
    "depth": "Depth",
    "inpaint": "Inpaint",
    "lines": "Lineart",
    "straight lines": "MLSD",
    "normals": "NormalMap",
    "pose": "OpenPose",
    "luminance": "Recolor",
    "scribble": "Scribble",
    "segmentation": "Segmentation",
    "shuffle": "Shuffle",
    "soft edges": "SoftEdge",
    "color": "T2I-Adapter",
    "tile": "Tile",
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
    """Return, by control type, the labels of its preprocessors, the names of its models, and the default of each;
    "All" is first."""
    entries, listed = list_preprocessors(), ["None", *model_names]
    found = {"All": _describe_type([entry.label for entry in entries], listed, "none", "None")}
    for kind, name in CONTROL_TYPES.items():
        own = sorted((e for e in entries if e.makes == kind), key=lambda e: not e.traits.is_default_for_kind)
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
