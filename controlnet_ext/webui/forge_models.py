"""Control models that Forge's own ControlNet takes for something else, read by ours: unions, which it loads as plain
ControlNets, and differences to a UNet, to which it does not add the UNet. All other kinds are left to it.

Its interface is read off lllyasviel/stable-diffusion-webui-forge @ dfdcbab, modules_forge/supported_controlnet.py and
backend/patcher/controlnet.py; reForge (Panchovix/stable-diffusion-webui-reForge @ 3b56b26) and Forge Classic
(Haoming02/sd-webui-forge-classic @ 1f95d71) have the same in ldm_patched; Forge Neo reads unions itself. Weight,
window, mode and mask stay theirs: ours gives residuals of weight 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from modules_forge.supported_controlnet import ControlNetPatcher
from torch import Tensor, nn

from .. import models
from ..guidance.contract import Step
from ..guidance.schedule import Span
from ..hosts.ldm.unet_view import LdmUNetView
from ..models.kinds import union
from ..models.kinds.controlnet import DIFFERENCE_KEY
from ..preprocessors.registry import list_preprocessors
from ..sdwebui.control_types import CONTROL_TYPES
from .sampling import GuidanceError

try:
    from backend import memory_management
    from backend.patcher.controlnet import ControlBase, ControlNet
except ImportError:
    from ldm_patched.modules import model_management as memory_management
    from ldm_patched.modules.controlnet import ControlBase, ControlNet

FORGE_DEVICE = memory_management.get_torch_device()
# What their networks return: a list with the middle block's last, or both kinds by name
RETURNS_LIST = "control_output" in inspect.signature(ControlBase.control_merge).parameters
FORGE_READS_UNIONS = "control_type" in inspect.signature(ControlNetPatcher.process_before_every_sampling).parameters
WHOLE_RUN = Span(0, 1)
LOAD_ERRORS = (ValueError, TypeError, FileNotFoundError)


def register_control_models() -> None:
    """Register our kinds before Forge's own, which would take their files."""
    from modules_forge import shared

    shared.add_supported_control_model(ForgeControlModel)
    kinds = shared.supported_control_models
    kinds.insert(0, kinds.pop())


def is_unsupported_by_forge(names: Collection[str]) -> bool:
    """Return True if tensors of these names are of a kind that Forge lacks."""
    return (union.detect(names) and not FORGE_READS_UNIONS) or DIFFERENCE_KEY in names


def get_forge_dtype() -> torch.dtype:
    """Return the dtype in which Forge computes."""
    if hasattr(memory_management, "get_computation_dtype"):
        return memory_management.get_computation_dtype(FORGE_DEVICE)
    dtype = memory_management.unet_dtype()
    return memory_management.unet_manual_cast(dtype, FORGE_DEVICE) or dtype


class ForgeControlModel(ControlNetPatcher):  # type: ignore[misc]
    """A file as Forge knows them. Errors are raised when images are sampled, which they end: Forge only logs what is
    raised before, and goes on without the unit."""

    @staticmethod
    def try_build_from_state_dict(state_dict: dict[str, Any], ckpt_path: str) -> Any:
        """Return a model for a file that Forge cannot read, None for all others."""
        return ForgeControlModel(ckpt_path) if is_unsupported_by_forge(state_dict) else None

    def __init__(self, path: str):
        super().__init__(None)
        self._network: Any = None
        self._error: Exception | None = None
        try:
            self._network = models.load(path, None, get_forge_dtype())
        except LOAD_ERRORS as error:
            self._error = error

    def process_before_every_sampling(self, process: Any, cond: Any, mask: Any, *args: Any, **kwargs: Any) -> None:
        """Wrap our network for this sampling's UNet, and leave the rest to Forge."""
        unet = process.sd_model.forge_objects.unet.model.diffusion_model
        self.model_patcher = ForgeControl(
            ForgeNetworkAdapter(self._network, find_map_kind(kwargs["params"].preprocessor), unet, self._error)
        )
        super().process_before_every_sampling(process, cond, mask, *args, **kwargs)


def find_map_kind(forge_preprocessor: Any) -> str | None:
    """Return the kind of map that a preprocessor of Forge's list makes, by its name or its control type; None if
    unknown."""
    name = forge_preprocessor.name.casefold()
    makes = next((e.makes for e in list_preprocessors() if name in (e.name.casefold(), e.label.casefold())), None)
    types = [kind for kind, tag in CONTROL_TYPES.items() if tag in forge_preprocessor.tags]
    return makes or (types[0] if types else None)


class ForgeNetworkAdapter(nn.Module):
    """One of our control models with the call of Forge's own."""

    def __init__(self, network: Any, map_kind: str | None, unet: Any, error: Exception | None = None):
        super().__init__()
        self.net, self._map_kind, self._error = network, map_kind, error
        self._get_unet = lambda: unet  # which is no part of this module
        self._bound_network: Any = None
        self._cached_hint: tuple[Tensor, Any] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights, which Forge asks for."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Any:
        """Return residuals, of the skips and then of the middle block, for x `(B, C, h, w)` and the hint `(B, 3, H,
        W)` in 0..1. Raises GuidanceError if the file is broken, does not fit the UNet, or does not read the map."""
        try:
            residuals = self._run_network(Step(x, timesteps, context, WHOLE_RUN, added=y), hint)
        except LOAD_ERRORS as error:
            raise GuidanceError(f"ControlNet: {error}") from error
        return (
            [*residuals.skips, residuals.middle]
            if RETURNS_LIST
            else {"output": list(residuals.skips), "middle": [residuals.middle]}
        )

    def _run_network(self, step: Step, hint: Tensor) -> Any:
        if self._error is not None:
            raise self._error
        if self._bound_network is None:
            self.net.bind(LdmUNetView(self._get_unet()))
            self._bound_network = self.net.for_map_types((self._map_kind,))
        if self._cached_hint is None or self._cached_hint[0] is not hint:
            self._cached_hint = hint, self._bound_network.hint(hint)
        hint_tensor = self._cached_hint[1]
        return self._bound_network(step, [hint_tensor] if self._bound_network.multi_hint else hint_tensor)


class ForgeControl(ControlNet):  # type: ignore[misc]
    """Forge's ControlNet around ours, on Forge's device while images are sampled."""

    def __init__(self, network: ForgeNetworkAdapter):
        super().__init__(network, load_device=FORGE_DEVICE, manual_cast_dtype=get_forge_dtype())

    def copy(self) -> ForgeControl:
        """Return a copy that shares the network."""
        other = ForgeControl(self.control_model)
        self.copy_to(other)
        return other

    def get_models(self) -> list[Any]:
        """Return the models without ours, whose layers Forge's swapping does not know."""
        return list(ControlBase.get_models(self))

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Return the bytes that Forge must free before a run."""
        own = sum(p.numel() * p.element_size() for p in self.control_model.parameters())
        return own + int(super().inference_memory_requirements(dtype))

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Move the network to Forge's device."""
        super().pre_run(model, percent_to_timestep_function)
        self.control_model.to(self.load_device)

    def cleanup(self) -> None:
        """Move the network back to the CPU."""
        self.control_model.to("cpu")
        super().cleanup()
