"""MiDaS (Ranftl et al., arXiv 1907.01341) as DPT (arXiv 2103.13413): inverse depth, by transformers. The names without
a size are of the hybrid network, as sd-webui-controlnet's are."""

from __future__ import annotations

from ...files.weights_file import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .transformers_depth import depth_by

MIDAS = model_files("Intel/dpt-hybrid-midas", "Apache-2.0", "pytorch_model.bin", 490_000_000, f"{LIST} 11eaf7a")
LARGE = model_files("Intel/dpt-large", "Apache-2.0", about=1_370_000_000, source=f"{LIST} bc15f29")

# "depth" is what sd-webui-controlnet calls it within
preprocessor("depth_midas", makes="depth", weights=MIDAS, stacks=True, aliases=("depth",))(depth_by(MIDAS))
preprocessor("depth_midas_large", makes="depth", weights=LARGE, stacks=True)(depth_by(LARGE))
