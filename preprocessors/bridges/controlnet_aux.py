"""What controlnet_aux 0.0.10 has and we have not ourselves, but for its GrayDetector, which fails for want of an
import, and its Image2MaskShuffleDetector, whose mask is of no use to a control model."""

from __future__ import annotations

from ...files.hub import HUB_FILE_LIST, WeightsFile
from ..edges.hed import HED_WEIGHTS
from ..edges.pidinet import PIDINET_WEIGHTS
from .base import Detector, Package, bridge_detector

CONTROLNET_AUX_PACKAGE = Package("controlnet_aux", "pip install controlnet-aux==0.0.10")
MOBILE_SAM_WEIGHTS = WeightsFile(
    "dhkim2810/MobileSAM",
    "mobile_sam.pt",
    webui_folder="mobile_sam",
    license="Apache-2.0",
    approx_size=40_700_000,
    source=f"{HUB_FILE_LIST} 4e2e524",
)

_SAFE_SCRIBBLE = {"scribble": True, "safe": True}

bridge_detector(
    "scribble_hedsafe",
    Detector(CONTROLNET_AUX_PACKAGE, "hed", "HEDdetector", (HED_WEIGHTS,), call_arguments=_SAFE_SCRIBBLE),
    makes="scribble",
)
bridge_detector(
    "scribble_pidsafe",
    Detector(CONTROLNET_AUX_PACKAGE, "pidi", "PidiNetDetector", (PIDINET_WEIGHTS,), call_arguments=_SAFE_SCRIBBLE),
    makes="scribble",
)
bridge_detector(
    "mobile_sam",
    Detector(
        CONTROLNET_AUX_PACKAGE,
        "segment_anything",
        "SamDetector",
        (MOBILE_SAM_WEIGHTS,),
        load_arguments={"model_type": "vit_t"},
        network_attribute="mask_generator.predictor.model",
        is_random=True,  # the colours
    ),
    makes="segmentation",
    fidelity="objects",  # of no class
)
bridge_detector(
    "shuffle_color",
    Detector(CONTROLNET_AUX_PACKAGE, "shuffle", "ColorShuffleDetector", is_random=True),
    makes="shuffle",
    fidelity="image",  # colors change, places stay
)
bridge_detector(
    "shuffle_downsample",
    Detector(CONTROLNET_AUX_PACKAGE, "shuffle", "DownSampleDetector", is_random=True),
    makes="tile",
)
