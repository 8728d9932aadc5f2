"""Depth Anything (Yang et al., arXiv 2401.10891 and 2406.09414): inverse depth, of the networks called indoor and
outdoor depth in metres, by transformers 4.38 or later. The names without a size are of the largest, as
sd-webui-controlnet's are."""

from __future__ import annotations

from ...files.weights_file import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .transformers_depth import depth_by

_OPEN, _CLOSED = "Apache-2.0", "CC-BY-NC-4.0, non-commercial"
_METRIC = "depth-anything/Depth-Anything-V2-Metric-{}-Large-hf"
_MODELS = {
    "depth_anything": ("LiheYoung/depth-anything-large-hf", _OPEN, 1_340_000_000, "27ccb09"),
    "depth_anything_base": ("LiheYoung/depth-anything-base-hf", _OPEN, 390_000_000, "fbce2ff"),
    "depth_anything_small": ("LiheYoung/depth-anything-small-hf", _OPEN, 99_200_000, "25216a9"),
    "depth_anything_v2": ("depth-anything/Depth-Anything-V2-Large-hf", _CLOSED, 1_340_000_000, "a09be6a"),
    "depth_anything_v2_base": ("depth-anything/Depth-Anything-V2-Base-hf", _CLOSED, 390_000_000, "b1958af"),
    "depth_anything_v2_small": ("depth-anything/Depth-Anything-V2-Small-hf", _OPEN, 99_200_000, "5426e4f"),
    "depth_anything_v2_indoor": (_METRIC.format("Indoor"), _CLOSED, 1_340_000_000, "1a3e399"),
    "depth_anything_v2_outdoor": (_METRIC.format("Outdoor"), _CLOSED, 1_340_000_000, "fc30733"),
}

for _name, (_repo, _licence, _about, _at) in _MODELS.items():
    _files = model_files(_repo, _licence, about=_about, source=f"{LIST} {_at}")
    preprocessor(_name, makes="depth", weights=_files, stacks=True)(depth_by(_files))
