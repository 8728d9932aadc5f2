"""OneFormer (Jain et al., arXiv 2211.06220) on Swin-L, by transformers 4.26 or later: what sd-webui-controlnet's two
preprocessors run, whose file is another layout of the same weights."""

from __future__ import annotations

from ...files.weights_file import LIST
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
