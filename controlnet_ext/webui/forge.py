"""Integration with Forge and its relatives, which have a ControlNet of their own: our preprocessors in their list,
without our panel.

Their interface: lllyasviel/stable-diffusion-webui-forge, modules_forge/supported_preprocessor.py, the same in reForge
and Forge Classic.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from ..maps.control_map import MODEL_NAME_WORDS
from ..preprocessors.registry import Preprocessor, list_preprocessors
from ..sdwebui.control_types import CONTROL_TYPES
from ..sdwebui.modules import RESOLUTION_SLIDER, describe_sliders, parameters_from_sliders
from . import host


def is_forge() -> bool:
    """Return True if the host is Forge or a relative."""
    return find_spec("modules_forge") is not None


def register() -> None:
    """Register our preprocessors, and the kinds of control model that the host lacks."""
    from modules_forge import shared, supported_preprocessor

    there = {name.casefold() for name in getattr(shared, "supported_preprocessors", {})}
    for entry in list_preprocessors():
        if not {entry.name.casefold(), entry.label.casefold()} & there:
            shared.add_supported_preprocessor(_create_forge_preprocessor(entry, supported_preprocessor))
    try:
        from . import forge_models
    except (ImportError, AttributeError) as error:  # a host of this make whose ControlNet is another
        print(f"ControlNet-ext: control models are left to this host's own ControlNet: {error}")
        return
    forge_models.register_control_models()


def _create_forge_preprocessor(spec: Preprocessor, forge_module: Any) -> Any:
    class SpecPreprocessor(forge_module.Preprocessor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            kind = CONTROL_TYPES.get(spec.makes)
            self.name, self.tags = spec.label, [kind] if kind else []
            self.model_filename_filters = [kind.casefold(), *MODEL_NAME_WORDS[spec.makes]] if kind else []
            sliders = describe_sliders(spec)
            if not sliders or sliders[0]["name"] != RESOLUTION_SLIDER:
                self.slider_resolution = forge_module.PreprocessorParameter(visible=False)
            else:
                sliders = sliders[1:]
            for i, each in enumerate(sliders[:2], 1):
                bounds = {"minimum": each["min"], "maximum": each["max"], "step": each["step"]}
                slider = forge_module.PreprocessorParameter(
                    label=each["name"], value=each["value"], visible=True, **bounds
                )
                setattr(self, f"slider_{i}", slider)

        def __call__(
            self, input_image: Any, resolution: Any, slider_1: Any = None, slider_2: Any = None, **more: Any
        ) -> np.ndarray:
            a, b = (-1 if value is None else value for value in (slider_1, slider_2))
            mask = more.get("input_mask") if spec.needs_mask else None
            return host.get_preprocessor_loader()(spec.name)(
                input_image, mask, **parameters_from_sliders(spec, resolution or -1, a, b)
            ).pixels

    return SpecPreprocessor()
