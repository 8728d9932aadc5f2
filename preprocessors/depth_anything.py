"""Depth Anything (Yang et al., arXiv 2401.10891 and 2406.09414): inverse depth, of the networks called indoor and
outdoor depth in metres, by transformers 4.38 or later. The names without a size are of the largest, as
sd-webui-controlnet's are."""

from __future__ import annotations

from preprocessors.registry import preprocessor
from preprocessors.transformers_depth import depth_by
from preprocessors.transformers_network import model_files

_OPEN, _CLOSED = "Apache-2.0", "CC-BY-NC-4.0, non-commercial"
_MODELS = {
    "depth_anything": ("LiheYoung/depth-anything-large-hf", _OPEN),
    "depth_anything_base": ("LiheYoung/depth-anything-base-hf", _OPEN),
    "depth_anything_small": ("LiheYoung/depth-anything-small-hf", _OPEN),
    "depth_anything_v2": ("depth-anything/Depth-Anything-V2-Large-hf", _CLOSED),
    "depth_anything_v2_base": ("depth-anything/Depth-Anything-V2-Base-hf", _CLOSED),
    "depth_anything_v2_small": ("depth-anything/Depth-Anything-V2-Small-hf", _OPEN),
    "depth_anything_v2_indoor": ("depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf", _CLOSED),
    "depth_anything_v2_outdoor": ("depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf", _CLOSED),
}

for _name, (_repo, _licence) in _MODELS.items():
    _files = model_files(_repo, _licence)
    preprocessor(_name, makes="depth", weights=_files, stacks=True)(depth_by(_files))
