"""What the ComfyUI pack comfyui_controlnet_aux has and neither we nor controlnet_aux have. It is a library where its
folder src is on Python's path; no index has it as one. Its optical flow, of two images, is no map of one."""

from __future__ import annotations

from ...files.hub import HUB_COMMIT_PAGE, HUB_FILE_LIST, WeightsFile
from .base import Detector, Package, bridge_detector

COMFYUI_AUX_PACKAGE = Package(
    "custom_controlnet_aux",
    "clone https://github.com/Fannovel16/comfyui_controlnet_aux and put its folder src on PYTHONPATH",
)
_UNKNOWN_LICENSE = "licence unknown: see its page"
METRIC3D_WEIGHTS = WeightsFile(
    "JUGGHM/Metric3D",
    "metric_depth_vit_small_800k.pth",
    webui_folder="metric3d",
    license="BSD-2-Clause",
    approx_size=150_000_000,
    source=f"{HUB_FILE_LIST} 85958a1, where it is in a folder",
)
DIFFUSION_EDGE_WEIGHTS = WeightsFile(
    "hr16/Diffusion-Edge",
    "diffusion_edge_indoor.pt",
    webui_folder="diffusion_edge",
    license=_UNKNOWN_LICENSE,
    size=1192128970,
    sha256="3e6e5a0db1b0b8a8c2422a4472f0d5093f70d25d07002302f07ae8498b515bf6",
    source=f"{HUB_COMMIT_PAGE} 4ac306d",
)
_HAND_REFINER_REPO = "hr16/ControlNet-HandRefiner-pruned"
HAND_REFINER_FILES = (
    WeightsFile(
        _HAND_REFINER_REPO,
        "graphormer_hand_state_dict.bin",
        webui_folder="hand_refiner",
        license=_UNKNOWN_LICENSE,
        approx_size=856_000_000,
        source=f"{HUB_FILE_LIST} bb4a82b",
    ),
    WeightsFile(
        _HAND_REFINER_REPO,
        "hrnetv2_w64_imagenet_pretrained.pth",
        webui_folder="hand_refiner",
        license=_UNKNOWN_LICENSE,
        size=513111608,
        sha256="41ed675bcd1f4f4b62a49bad64901f08f8b67ed744b715da87738f926dae685c",
        source=f"{HUB_COMMIT_PAGE} f0917f0",
    ),
)


def _make_metric3d_detector(map_index: int) -> Detector:
    return Detector(
        COMFYUI_AUX_PACKAGE,
        "metric3d",
        "Metric3DDetector",
        (METRIC3D_WEIGHTS,),
        call_arguments={"depth_and_normal": True},
        map_index=map_index,
    )


bridge_detector("depth_metric3d", _make_metric3d_detector(0), makes="depth")
bridge_detector("normal_metric3d", _make_metric3d_detector(1), makes="normals")
bridge_detector(
    "depth_hand_refiner",
    Detector(
        COMFYUI_AUX_PACKAGE,
        "mesh_graphormer",
        "MeshGraphormerDetector",
        HAND_REFINER_FILES,
        file_arguments=("filename", "hrnet_filename"),
        map_index=0,
    ),
    makes="depth",
)
bridge_detector(
    "diffusion_edge",
    Detector(COMFYUI_AUX_PACKAGE, "diffusion_edge", "DiffusionEdgeDetector", (DIFFUSION_EDGE_WEIGHTS,)),
    makes="soft edges",
)
bridge_detector("pyracanny", Detector(COMFYUI_AUX_PACKAGE, "pyracanny", "PyraCannyDetector"), makes="edges")
bridge_detector("scribble", Detector(COMFYUI_AUX_PACKAGE, "scribble", "ScribbleDetector"), makes="scribble")
bridge_detector("binary", Detector(COMFYUI_AUX_PACKAGE, "binary", "BinaryDetector"), makes="scribble")
bridge_detector("tile_pyramid", Detector(COMFYUI_AUX_PACKAGE, "tile", "TileDetector"), makes="tile")

# Defaults of the pack's nodes (node_wrappers/tile.py @ e8b689a513c3)
_TILE_BLUR_DEFAULTS = {"scale_factor": 1.0, "blur_strength": 2.0}
_TILE_FILTER_DEFAULTS = {**_TILE_BLUR_DEFAULTS, "radius": 7, "eps": 0.01}
bridge_detector(
    "ttplanet_tile_simple",
    Detector(COMFYUI_AUX_PACKAGE, "tile", "TTPLanet_Tile_Detector_Simple", extra_defaults=_TILE_BLUR_DEFAULTS),
    makes="tile",
)
bridge_detector(
    "ttplanet_tile_gf",
    Detector(COMFYUI_AUX_PACKAGE, "tile", "TTPlanet_Tile_Detector_GF", extra_defaults=_TILE_FILTER_DEFAULTS),
    makes="tile",
)
