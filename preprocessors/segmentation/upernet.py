"""UperNet (Xiao et al., arXiv 1807.10221) on ConvNeXt, by transformers 4.26 or later: what diffusers' documents of
ControlNet take for segmentation."""

from __future__ import annotations

from ...files.weights_file import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .palettes import ADE20K
from .transformers_segmentation import segmentation_by

UPERNET = model_files("openmmlab/upernet-convnext-small", "MIT", "pytorch_model.bin", 328_000_000, f"{LIST} 550b68d")

preprocessor("upernet_ade20k", makes="segmentation", weights=UPERNET, stacks=True)(segmentation_by(UPERNET, ADE20K))
