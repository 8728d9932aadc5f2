"""What controlnet_aux 0.0.10 has and we have not ourselves, but for its GrayDetector, which fails for want of an
import, and its Image2MaskShuffleDetector, whose mask is of no use to a control model."""

from __future__ import annotations

from ...files.hub import LIST, WeightsFile
from ..edges.hed import HED
from ..edges.pidinet import PIDINET
from .base import Detector, Package, bridged

AUX = Package("controlnet_aux", "pip install controlnet-aux==0.0.10")
MOBILE_SAM = WeightsFile(
    "dhkim2810/MobileSAM",
    "mobile_sam.pt",
    folder="mobile_sam",
    licence="Apache-2.0",
    about=40_700_000,
    source=f"{LIST} 4e2e524",
)

_SAFE = {"scribble": True, "safe": True}

bridged("scribble_hedsafe", Detector(AUX, "hed", "HEDdetector", (HED,), fixed=_SAFE), makes="scribble")
bridged("scribble_pidsafe", Detector(AUX, "pidi", "PidiNetDetector", (PIDINET,), fixed=_SAFE), makes="scribble")
bridged(
    "mobile_sam",
    Detector(
        AUX,
        "segment_anything",
        "SamDetector",
        (MOBILE_SAM,),
        given={"model_type": "vit_t"},
        network="mask_generator.predictor.model",
        draws=True,  # the colours
    ),
    makes="segmentation",
)
bridged("shuffle_color", Detector(AUX, "shuffle", "ColorShuffleDetector", draws=True), makes="shuffle")
bridged("shuffle_downsample", Detector(AUX, "shuffle", "DownSampleDetector", draws=True), makes="tile")
