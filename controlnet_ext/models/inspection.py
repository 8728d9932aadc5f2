"""What a file of control weights is, in words and numbers."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from ..maps.control_map import KINDS
from . import ControlFile
from .known import KNOWN
from .state_dict.foreign import what

MAP = "controlnet_ext.map"  # where safetensors' metadata say which kind of map a control model reads


@dataclass(frozen=True)
class Inspection:
    """`what` it is, where it is no control model; else its `architecture`, `family` and `layout`, and `details` that
    are particular to it. `dtype` as in "float16", and where there are several with their numbers of tensors.
    `parameters` counts the numbers in the network. `map` is the kind of map that it reads, or "unknown", and
    `map_source` who says so. `problem` is why it does not load."""

    file: str
    bytes: int
    sha256: str
    format: str
    tensors: int
    dtype: str
    parameters: int
    what: str | None
    architecture: str | None
    family: str | None
    layout: str | None
    details: dict[str, Any]
    map: str
    map_source: str | None
    problem: str | None


def inspect(path_or_repo: str | os.PathLike[str]) -> Inspection:
    """Looks at a file, a folder or a cached repository; nothing in it is executed. ValueError or FileNotFoundError
    when it cannot be read."""
    file = ControlFile.read(path_or_repo)
    weights, tensors = file.weights, file.weights.tensors
    net: Any = None
    problem = None
    if file.kind is not None:
        try:
            net = file.load()
        except ValueError as error:
            problem = str(error).removeprefix(f"{str(file.path)!r}: ")
    own = list(net.parameters()) if hasattr(net, "parameters") else list(tensors.values())
    layout = getattr(file.kind, "layout", None)
    kind, source = map_of(file)
    return Inspection(
        file=str(file.path),
        bytes=file.path.stat().st_size,
        sha256=weights.sha256,
        format=weights.format,
        tensors=len(tensors),
        dtype=_dtypes(own),
        parameters=sum(prod(tensor.shape) for tensor in own),
        what=what(tensors) if file.kind is None else None,
        architecture=None if file.kind is None else getattr(net, "architecture", file.kind.__name__.rpartition(".")[2]),
        family=getattr(net, "family", None),
        layout=layout(tensors) if layout else None,
        details=net.details() if hasattr(net, "details") else {},
        map=kind,
        map_source=source,
        problem=problem,
    )


def map_of(file: ControlFile) -> tuple[str, str | None]:
    """The kind of map that a control model reads and who says so: the file's metadata, or what is known of its hash;
    ("unknown", None) where nobody does."""
    stated = file.weights.metadata.get(MAP)
    if stated in KINDS:
        return stated, "the file's metadata"
    if file.kind is not None and file.weights.sha256 in KNOWN:
        kind, name, source = KNOWN[file.weights.sha256]
        return kind, f"the hash of {name} in {source}"
    return "unknown", None


def _dtypes(tensors: list[Any]) -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{dtype} ({count})" for dtype, count in counts)
