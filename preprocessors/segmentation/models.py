"""Segmentation by networks of transformers: one registration for each published model.

How such a network runs is in `transformers_segmentation`. OneFormer (Jain et al., arXiv 2211.06220) on Swin-L,
transformers 4.26 or later, is the network of sd-webui-controlnet's two preprocessors, whose file is another layout of
the same weights. Of SegFormer (Xie et al., arXiv 2105.15203) there are the largest and the smallest. UperNet (Xiao et
al., arXiv 1807.10221) on ConvNeXt, transformers 4.26 or later, is the one that diffusers' documents use.
"""

from __future__ import annotations

from ...files.hub import HUB_FILE_LIST
from ..backends.transformers import make_model_files
from ..registry import Traits, preprocessor
from .palettes import ADE20K_PALETTE, COCO_PALETTE
from .transformers_segmentation import make_segmentation_preprocessor

ONEFORMER_ADE20K_FILES = make_model_files(
    "shi-labs/oneformer_ade20k_swin_large", "MIT", "pytorch_model.bin", 880_000_000, f"{HUB_FILE_LIST} bbad99a"
)
ONEFORMER_COCO_FILES = make_model_files(
    "shi-labs/oneformer_coco_swin_large", "MIT", "pytorch_model.bin", 879_000_000, f"{HUB_FILE_LIST} 3a79bee"
)

preprocessor(
    "oneformer_ade20k",
    makes="segmentation",
    label="seg_ofade20k",
    weights=ONEFORMER_ADE20K_FILES,
    batched=True,
    traits=Traits(is_default_for_kind=True),
)(make_segmentation_preprocessor(ONEFORMER_ADE20K_FILES, ADE20K_PALETTE))
preprocessor("oneformer_coco", makes="segmentation", label="seg_ofcoco", weights=ONEFORMER_COCO_FILES, batched=True)(
    make_segmentation_preprocessor(ONEFORMER_COCO_FILES, COCO_PALETTE)
)


_LICENSE = "NVIDIA Source Code License, non-commercial"
SEGFORMER_B5_FILES = make_model_files(
    "nvidia/segformer-b5-finetuned-ade-640-640", _LICENSE, "pytorch_model.bin", 339_000_000, f"{HUB_FILE_LIST} 739f5d4"
)
SEGFORMER_B0_FILES = make_model_files(
    "nvidia/segformer-b0-finetuned-ade-512-512", _LICENSE, "pytorch_model.bin", 15_100_000, f"{HUB_FILE_LIST} 8092da5"
)

preprocessor("segformer_ade20k", makes="segmentation", weights=SEGFORMER_B5_FILES, batched=True)(
    make_segmentation_preprocessor(SEGFORMER_B5_FILES, ADE20K_PALETTE)
)
preprocessor("segformer_ade20k_small", makes="segmentation", weights=SEGFORMER_B0_FILES, batched=True)(
    make_segmentation_preprocessor(SEGFORMER_B0_FILES, ADE20K_PALETTE)
)


UPERNET_FILES = make_model_files(
    "openmmlab/upernet-convnext-small", "MIT", "pytorch_model.bin", 328_000_000, f"{HUB_FILE_LIST} 550b68d"
)

preprocessor("upernet_ade20k", makes="segmentation", weights=UPERNET_FILES, batched=True)(
    make_segmentation_preprocessor(UPERNET_FILES, ADE20K_PALETTE)
)
