"""OneFormer (Jain et al., arXiv 2211.06220) on Swin-L, by transformers 4.26 or later: what sd-webui-controlnet's two
preprocessors run, whose file is another layout of the same weights.

SegFormer (Xie et al., arXiv 2105.15203), by transformers: its largest network and its smallest.

UperNet (Xiao et al., arXiv 1807.10221) on ConvNeXt, by transformers 4.26 or later: what diffusers' documents of
ControlNet take for segmentation.
"""

from __future__ import annotations

from ...files.hub import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .palettes import ADE20K, COCO
from .transformers_segmentation import segmentation_by

ONEFORMER_ADE20K = model_files(
    "shi-labs/oneformer_ade20k_swin_large", "MIT", "pytorch_model.bin", 880_000_000, f"{LIST} bbad99a"
)
ONEFORMER_COCO = model_files(
    "shi-labs/oneformer_coco_swin_large", "MIT", "pytorch_model.bin", 879_000_000, f"{LIST} 3a79bee"
)

preprocessor("oneformer_ade20k", makes="segmentation", label="seg_ofade20k", weights=ONEFORMER_ADE20K, stacks=True)(
    segmentation_by(ONEFORMER_ADE20K, ADE20K)
)
preprocessor("oneformer_coco", makes="segmentation", label="seg_ofcoco", weights=ONEFORMER_COCO, stacks=True)(
    segmentation_by(ONEFORMER_COCO, COCO)
)


_LICENCE = "NVIDIA Source Code License, non-commercial"
B5 = model_files(
    "nvidia/segformer-b5-finetuned-ade-640-640", _LICENCE, "pytorch_model.bin", 339_000_000, f"{LIST} 739f5d4"
)
B0 = model_files(
    "nvidia/segformer-b0-finetuned-ade-512-512", _LICENCE, "pytorch_model.bin", 15_100_000, f"{LIST} 8092da5"
)

preprocessor("segformer_ade20k", makes="segmentation", weights=B5, stacks=True)(segmentation_by(B5, ADE20K))
preprocessor("segformer_ade20k_small", makes="segmentation", weights=B0, stacks=True)(segmentation_by(B0, ADE20K))


UPERNET = model_files("openmmlab/upernet-convnext-small", "MIT", "pytorch_model.bin", 328_000_000, f"{LIST} 550b68d")

preprocessor("upernet_ade20k", makes="segmentation", weights=UPERNET, stacks=True)(segmentation_by(UPERNET, ADE20K))
