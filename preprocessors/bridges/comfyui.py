"""What the ComfyUI pack comfyui_controlnet_aux has and neither we nor controlnet_aux have. It is a library where its
folder src is on Python's path; no index has it as one. Its optical flow, of two pictures, is no map of one."""

from __future__ import annotations

from ...files.hub import ADDED, LIST, WeightsFile
from .base import Detector, Package, bridged

PACK = Package(
    "custom_controlnet_aux",
    "clone https://github.com/Fannovel16/comfyui_controlnet_aux and put its folder src on PYTHONPATH",
)
_UNKNOWN = "licence unknown: see its page"
METRIC3D = WeightsFile(
    "JUGGHM/Metric3D",
    "metric_depth_vit_small_800k.pth",
    folder="metric3d",
    licence="BSD-2-Clause",
    about=150_000_000,
    source=f"{LIST} 85958a1, where it is in a folder",
)
EDGES = WeightsFile(
    "hr16/Diffusion-Edge",
    "diffusion_edge_indoor.pt",
    folder="diffusion_edge",
    licence=_UNKNOWN,
    size=1192128970,
    sha256="3e6e5a0db1b0b8a8c2422a4472f0d5093f70d25d07002302f07ae8498b515bf6",
    source=f"{ADDED} 4ac306d",
)
_HANDS = "hr16/ControlNet-HandRefiner-pruned"
HANDS = (
    WeightsFile(
        _HANDS,
        "graphormer_hand_state_dict.bin",
        folder="hand_refiner",
        licence=_UNKNOWN,
        about=856_000_000,
        source=f"{LIST} bb4a82b",
    ),
    WeightsFile(
        _HANDS,
        "hrnetv2_w64_imagenet_pretrained.pth",
        folder="hand_refiner",
        licence=_UNKNOWN,
        size=513111608,
        sha256="41ed675bcd1f4f4b62a49bad64901f08f8b67ed744b715da87738f926dae685c",
        source=f"{ADDED} f0917f0",
    ),
)


def _metric3d(part: int) -> Detector:
    return Detector(PACK, "metric3d", "Metric3DDetector", (METRIC3D,), fixed={"depth_and_normal": True}, part=part)


bridged("depth_metric3d", _metric3d(0), makes="depth")
bridged("normal_metric3d", _metric3d(1), makes="normals")
bridged(
    "depth_hand_refiner",
    Detector(PACK, "mesh_graphormer", "MeshGraphormerDetector", HANDS, names=("filename", "hrnet_filename"), part=0),
    makes="depth",
)
bridged("diffusion_edge", Detector(PACK, "diffusion_edge", "DiffusionEdgeDetector", (EDGES,)), makes="soft edges")
bridged("pyracanny", Detector(PACK, "pyracanny", "PyraCannyDetector"), makes="edges")
bridged("scribble", Detector(PACK, "scribble", "ScribbleDetector"), makes="scribble")
bridged("binary", Detector(PACK, "binary", "BinaryDetector"), makes="scribble")
bridged("tile_pyramid", Detector(PACK, "tile", "TileDetector"), makes="tile")

# Defaults of the pack's nodes (node_wrappers/tile.py @ e8b689a513c3)
_BLUR = {"scale_factor": 1.0, "blur_strength": 2.0}
_FILTER = {**_BLUR, "radius": 7, "eps": 0.01}
bridged("ttplanet_tile_simple", Detector(PACK, "tile", "TTPLanet_Tile_Detector_Simple", defaults=_BLUR), makes="tile")
bridged("ttplanet_tile_gf", Detector(PACK, "tile", "TTPlanet_Tile_Detector_GF", defaults=_FILTER), makes="tile")
