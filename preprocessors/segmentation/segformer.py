"""SegFormer (Xie et al., arXiv 2105.15203), by transformers: its largest network and its smallest."""

from __future__ import annotations

from ...files.weights_file import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .palettes import ADE20K
from .transformers_segmentation import segmentation_by

_LICENCE = "NVIDIA Source Code License, non-commercial"
B5 = model_files(
    "nvidia/segformer-b5-finetuned-ade-640-640", _LICENCE, "pytorch_model.bin", 339_000_000, f"{LIST} 739f5d4"
)
B0 = model_files(
    "nvidia/segformer-b0-finetuned-ade-512-512", _LICENCE, "pytorch_model.bin", 15_100_000, f"{LIST} 8092da5"
)

preprocessor("segformer_ade20k", makes="segmentation", weights=B5, stacks=True)(segmentation_by(B5, ADE20K))
preprocessor("segformer_ade20k_small", makes="segmentation", weights=B0, stacks=True)(segmentation_by(B0, ADE20K))
