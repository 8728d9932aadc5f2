"""Control types, by which clients group preprocessors and control models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..maps.control_map import MODEL_NAME_WORDS
from ..preprocessors.registry import Preprocessor, list_preprocessors
from .modules import UNSUPPORTED_CONTROL_TYPES

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
FURTHER_CONTROL_TYPES = {  # without a kind of map of their own: the kind of map that their models read, words of names
    "InstructP2P": (None, ("ip2p", "instructp2p")),  # reads the image itself, without a preprocessor
    "SparseCtrl": ("scribble", ("sparsectrl",)),
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
    "All" is first. Types of `UNSUPPORTED_CONTROL_TYPES`, for which clients look, have nothing but "none"."""
    entries = list_preprocessors()
    types = {"All": _describe_type([entry.label for entry in entries], model_names, "none", "None")}
    for kind, name in CONTROL_TYPES.items():
        words = [name.casefold(), *MODEL_NAME_WORDS[kind], *(["union"] if name in UNION_CONTROL_TYPES else [])]
        types[name] = _describe_type_of(_list_labels(entries, kind), model_names, words)
    for name, (read_kind, words_) in FURTHER_CONTROL_TYPES.items():
        types[name] = _describe_type_of(_list_labels(entries, read_kind), model_names, words_)
    return types | {name: _describe_type([], [], "none", "None") for name in UNSUPPORTED_CONTROL_TYPES}


def _list_labels(entries: Iterable[Preprocessor], kind: str | None) -> list[str]:
    """Labels of the preprocessors of a kind of map, the default one first."""
    own = sorted((e for e in entries if e.makes == kind), key=lambda e: not e.traits.is_default_for_kind)
    return [entry.label for entry in own]


def _describe_type_of(labels: list[str], model_names: Sequence[str], words: Iterable[str]) -> dict[str, Any]:
    """The preprocessors of these labels, and the models that have one of the words in their names."""
    fitting = [model for model in model_names if any(word in model.casefold() for word in words)]
    best = next((m for m in fitting if "11" in m.rpartition(" [")[0]), fitting[0] if fitting else "None")
    return _describe_type(labels, fitting, labels[0] if labels else "none", best)


def _describe_type(modules: list[str], models: Sequence[str], module: str, model: str) -> dict[str, Any]:
    return {
        "module_list": ["none", *modules],
        "model_list": ["None", *models],
        "default_option": module,
        "default_model": model,
    }
