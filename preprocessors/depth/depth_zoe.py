"""ZoeDepth (Bhat et al., arXiv 2302.12288): depth in metres, of rooms, by transformers 4.44 or later."""

from __future__ import annotations

from ...files.weights_file import LIST
from ..backends.transformers import model_files
from ..registry import preprocessor
from .transformers_depth import depth_by

ZOE = model_files("Intel/zoedepth-nyu", "MIT", about=1_380_000_000, source=f"{LIST} 52ae69c")
BOTH = model_files("Intel/zoedepth-nyu-kitti", "MIT", about=1_380_000_000, source=f"{LIST} f364d4c")

preprocessor("depth_zoe", makes="depth", weights=ZOE, stacks=True)(depth_by(ZOE))
preprocessor("depth_zoe_outdoor", makes="depth", weights=BOTH, stacks=True)(depth_by(BOTH))
