"""Depth Anything (Yang et al., arXiv 2401.10891 and 2406.09414): inverse depth, of the networks called indoor and
outdoor depth in metres, by transformers 4.38 or later. The names without a size are of the largest, as
sd-webui-controlnet's are.

MiDaS (Ranftl et al., arXiv 1907.01341) as DPT (arXiv 2103.13413): inverse depth, by transformers. The names without
a size are of the hybrid network, as sd-webui-controlnet's are.

Depth Pro (Bochkovskii et al., arXiv 2410.02073): depth in metres with sharp borders, by transformers 4.49 or
later.

ZoeDepth (Bhat et al., arXiv 2302.12288): depth in metres, of rooms, by transformers 4.44 or later.
"""

from __future__ import annotations

from ...files.hub import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .transformers_depth import depth_by

MIDAS = model_files("Intel/dpt-hybrid-midas", "Apache-2.0", "pytorch_model.bin", 490_000_000, f"{LIST} 11eaf7a")
LARGE = model_files("Intel/dpt-large", "Apache-2.0", about=1_370_000_000, source=f"{LIST} bc15f29")

# "depth" is what sd-webui-controlnet calls it within
preprocessor("depth_midas", makes="depth", weights=MIDAS, stacks=True, aliases=("depth",))(depth_by(MIDAS))
preprocessor("depth_midas_large", makes="depth", weights=LARGE, stacks=True)(depth_by(LARGE))


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


_LICENCE = "apple-amlr, research only, non-commercial"
DEPTH_PRO = model_files("apple/DepthPro-hf", _LICENCE, about=1_900_000_000, source=f"{LIST} 0e6b119")

preprocessor("depth_pro", makes="depth", weights=DEPTH_PRO, stacks=True)(depth_by(DEPTH_PRO))


ZOE = model_files("Intel/zoedepth-nyu", "MIT", about=1_380_000_000, source=f"{LIST} 52ae69c")
BOTH = model_files("Intel/zoedepth-nyu-kitti", "MIT", about=1_380_000_000, source=f"{LIST} f364d4c")

preprocessor("depth_zoe", makes="depth", weights=ZOE, stacks=True)(depth_by(ZOE))
preprocessor("depth_zoe_outdoor", makes="depth", weights=BOTH, stacks=True)(depth_by(BOTH))
