"""Maps: an RGB picture in, a ControlMap out. One file here is one family of preprocessors."""

import annotators  # noqa: F401  webui takes the extension's root off sys.path after loading: keep the package found
from preprocessors.maps import ControlMap
from preprocessors.parameters import Range
from preprocessors.registry import find, preprocess, preprocessor, registered

__all__ = ["ControlMap", "Range", "find", "preprocess", "preprocessor", "registered"]
