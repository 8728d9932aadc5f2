"""Depth Pro (Bochkovskii et al., arXiv 2410.02073): depth in metres with sharp borders, by transformers 4.49 or
later."""

from __future__ import annotations

from ...files.weights_file import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .transformers_depth import depth_by

_LICENCE = "apple-amlr, research only, non-commercial"
DEPTH_PRO = model_files("apple/DepthPro-hf", _LICENCE, about=1_900_000_000, source=f"{LIST} 0e6b119")

preprocessor("depth_pro", makes="depth", weights=DEPTH_PRO, stacks=True)(depth_by(DEPTH_PRO))
