"""In Forge and its like, which have a ControlNet of their own: our preprocessors in their list, and no panel.

Their interface is read off lllyasviel/stable-diffusion-webui-forge, modules_forge/supported_preprocessor.py, and is the
same in reForge and Forge Classic."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from ..maps.control_map import FEEDS
from ..preprocessors.registry import Preprocessor, registered
from ..sdwebui.control_types import TYPES
from ..sdwebui.modules import sliders, values
from . import host


def is_here() -> bool:
    """Whether this host is one of them."""
    return find_spec("modules_forge") is not None


def register() -> None:
    """Add the preprocessors and the kinds of control model that the host has none of."""
    from modules_forge import shared, supported_preprocessor

    there = {name.casefold() for name in getattr(shared, "supported_preprocessors", {})}
    for entry in registered():
        if not {entry.name.casefold(), entry.label.casefold()} & there:
            shared.add_supported_preprocessor(_offered(entry, supported_preprocessor))
    try:
        from . import forge_models
    except (ImportError, AttributeError) as error:  # a host of this make whose ControlNet is another
        print(f"ControlNet-ext: control models are left to this host's own ControlNet: {error}")
        return
    forge_models.register()


def _offered(entry: Preprocessor, theirs: Any) -> Any:
    class Offered(theirs.Preprocessor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            kind, _ = TYPES.get(entry.makes, (None, None))
            self.name, self.tags = entry.label, [kind] if kind else []
            self.model_filename_filters = [kind.casefold(), *FEEDS[entry.makes]] if kind else []
            shown = sliders(entry)
            if not shown or shown[0]["name"] != "Preprocessor Resolution":
                self.slider_resolution = theirs.PreprocessorParameter(visible=False)
            else:
                shown = shown[1:]
            for i, each in enumerate(shown[:2], 1):
                bounds = {"minimum": each["min"], "maximum": each["max"], "step": each["step"]}
                slider = theirs.PreprocessorParameter(label=each["name"], value=each["value"], visible=True, **bounds)
                setattr(self, f"slider_{i}", slider)

        def __call__(
            self, input_image: Any, resolution: Any, slider_1: Any = None, slider_2: Any = None, **more: Any
        ) -> np.ndarray:
            a, b = (-1 if value is None else value for value in (slider_1, slider_2))
            mask = more.get("input_mask") if entry.masked else None
            return host.ready()(entry.name)(input_image, mask, **values(entry, resolution or -1, a, b)).pixels

    return Offered()
