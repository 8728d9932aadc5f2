"""What the ComfyUI pack comfyui_controlnet_aux has and neither we nor controlnet_aux have. It is a library where its
folder src is on Python's path; no index has it as one. Its optical flow, of two pictures, is no map of one."""

from __future__ import annotations

from preprocessors.bridge import Detector, Package, bridged
from preprocessors.weights_file import WeightsFile

PACK = Package(
    "custom_controlnet_aux",
    "clone https://github.com/Fannovel16/comfyui_controlnet_aux and put its folder src on PYTHONPATH",
)
_UNKNOWN = "licence unknown: see its page"
METRIC3D = WeightsFile("JUGGHM/Metric3D", "metric_depth_vit_small_800k.pth", folder="metric3d", licence="BSD-2-Clause")
EDGES = WeightsFile("hr16/Diffusion-Edge", "diffusion_edge_indoor.pt", folder="diffusion_edge", licence=_UNKNOWN)
_HANDS = "hr16/ControlNet-HandRefiner-pruned"
HANDS = tuple(
    WeightsFile(_HANDS, name, folder="hand_refiner", licence=_UNKNOWN)
    for name in ("graphormer_hand_state_dict.bin", "hrnetv2_w64_imagenet_pretrained.pth")
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
