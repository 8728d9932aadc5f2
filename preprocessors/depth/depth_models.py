"""Depth by networks of transformers: one registration for each published model.

How such a network runs is in `transformers_depth`. A name without a size is the model that sd-webui-controlnet runs
under this name.

- MiDaS (Ranftl et al., arXiv 1907.01341) as DPT (arXiv 2103.13413): inverse depth.
- Depth Anything (Yang et al., arXiv 2401.10891 and 2406.09414), transformers 4.38 or later: inverse depth, and in the
  models called indoor and outdoor depth in meters.
- Depth Pro (Bochkovskii et al., arXiv 2410.02073), transformers 4.49 or later: depth in meters with sharp borders.
- ZoeDepth (Bhat et al., arXiv 2302.12288), transformers 4.44 or later: depth in meters, of rooms.
"""

from __future__ import annotations

from ...files.hub import HUB_FILE_LIST
from ..backends.transformers import make_model_files
from ..registry import Traits, preprocessor
from .transformers_depth import make_depth_preprocessor

MIDAS_FILES = make_model_files(
    "Intel/dpt-hybrid-midas", "Apache-2.0", "pytorch_model.bin", 490_000_000, f"{HUB_FILE_LIST} 11eaf7a"
)
MIDAS_LARGE_FILES = make_model_files(
    "Intel/dpt-large", "Apache-2.0", approx_size=1_370_000_000, source=f"{HUB_FILE_LIST} bc15f29"
)

# "depth" is what sd-webui-controlnet calls it within
preprocessor(
    "depth_midas",
    makes="depth",
    weights=MIDAS_FILES,
    batched=True,
    aliases=("depth",),
    traits=Traits(is_default_for_kind=True),
)(make_depth_preprocessor(MIDAS_FILES))
preprocessor("depth_midas_large", makes="depth", weights=MIDAS_LARGE_FILES, batched=True)(
    make_depth_preprocessor(MIDAS_LARGE_FILES)
)


_OPEN_LICENSE, _NON_COMMERCIAL_LICENSE = "Apache-2.0", "CC-BY-NC-4.0, non-commercial"
_METRIC_REPO = "depth-anything/Depth-Anything-V2-Metric-{}-Large-hf"
_MODELS = {
    "depth_anything": ("LiheYoung/depth-anything-large-hf", _OPEN_LICENSE, 1_340_000_000, "27ccb09"),
    "depth_anything_base": ("LiheYoung/depth-anything-base-hf", _OPEN_LICENSE, 390_000_000, "fbce2ff"),
    "depth_anything_small": ("LiheYoung/depth-anything-small-hf", _OPEN_LICENSE, 99_200_000, "25216a9"),
    "depth_anything_v2": (
        "depth-anything/Depth-Anything-V2-Large-hf",
        _NON_COMMERCIAL_LICENSE,
        1_340_000_000,
        "a09be6a",
    ),
    "depth_anything_v2_base": (
        "depth-anything/Depth-Anything-V2-Base-hf",
        _NON_COMMERCIAL_LICENSE,
        390_000_000,
        "b1958af",
    ),
    "depth_anything_v2_small": ("depth-anything/Depth-Anything-V2-Small-hf", _OPEN_LICENSE, 99_200_000, "5426e4f"),
    "depth_anything_v2_indoor": (_METRIC_REPO.format("Indoor"), _NON_COMMERCIAL_LICENSE, 1_340_000_000, "1a3e399"),
    "depth_anything_v2_outdoor": (_METRIC_REPO.format("Outdoor"), _NON_COMMERCIAL_LICENSE, 1_340_000_000, "fc30733"),
}

for _name, (_repo, _license, _approx_size, _revision) in _MODELS.items():
    _files = make_model_files(_repo, _license, approx_size=_approx_size, source=f"{HUB_FILE_LIST} {_revision}")
    _measure = "metric depth" if "Metric" in _repo else None
    preprocessor(_name, makes="depth", weights=_files, batched=True, fidelity=_measure)(make_depth_preprocessor(_files))


_LICENSE = "apple-amlr, research only, non-commercial"
DEPTH_PRO_FILES = make_model_files(
    "apple/DepthPro-hf", _LICENSE, approx_size=1_900_000_000, source=f"{HUB_FILE_LIST} 0e6b119"
)

preprocessor("depth_pro", makes="depth", weights=DEPTH_PRO_FILES, batched=True, fidelity="metric depth")(
    make_depth_preprocessor(DEPTH_PRO_FILES)
)


ZOE_INDOOR_FILES = make_model_files(
    "Intel/zoedepth-nyu", "MIT", approx_size=1_380_000_000, source=f"{HUB_FILE_LIST} 52ae69c"
)
ZOE_OUTDOOR_FILES = make_model_files(
    "Intel/zoedepth-nyu-kitti", "MIT", approx_size=1_380_000_000, source=f"{HUB_FILE_LIST} f364d4c"
)

preprocessor("depth_zoe", makes="depth", weights=ZOE_INDOOR_FILES, batched=True, fidelity="metric depth")(
    make_depth_preprocessor(ZOE_INDOOR_FILES)
)
preprocessor("depth_zoe_outdoor", makes="depth", weights=ZOE_OUTDOOR_FILES, batched=True, fidelity="metric depth")(
    make_depth_preprocessor(ZOE_OUTDOOR_FILES)
)
