"""Maps: an RGB image in, a ControlMap out. One file here is one family of preprocessors."""

from ..maps.control_map import ControlMap
from .parameters import Range
from .registry import find, list_preprocessors, preprocess, preprocessor

__all__ = ["ControlMap", "Range", "find", "list_preprocessors", "preprocess", "preprocessor"]
