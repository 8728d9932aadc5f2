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
from ..guidance.contract import Span, Step
from ..hosts.ldm.unet_view import LdmUNet
from ..models.kinds import union
from ..models.kinds.controlnet import DIFFERENCE
from ..preprocessors.registry import registered
from ..sdwebui.control_types import TYPES
from .sampling import Refused

try:
    from backend import memory_management
    from backend.patcher.controlnet import ControlBase, ControlNet
except ImportError:
    from ldm_patched.modules import model_management as memory_management
    from ldm_patched.modules.controlnet import ControlBase, ControlNet

DEVICE = memory_management.get_torch_device()
# What their networks return: a list with the middle block's last, or both kinds by name
LISTED = "control_output" in inspect.signature(ControlBase.control_merge).parameters
READS_UNIONS = "control_type" in inspect.signature(ControlNetPatcher.process_before_every_sampling).parameters
WHOLE = Span(0, 1)
CAUGHT = (ValueError, TypeError, FileNotFoundError)


def register() -> None:
    """Have Forge ask ours first, whether a file is of its kind: its own would take it."""
    from modules_forge import shared

    shared.add_supported_control_model(Offered)
    kinds = shared.supported_control_models
    kinds.insert(0, kinds.pop())


def lacking(names: Collection[str]) -> bool:
    """Whether tensors of these names are of a kind that Forge lacks."""
    return (union.detect(names) and not READS_UNIONS) or DIFFERENCE in names


def dtype() -> torch.dtype:
    """In which it computes."""
    if hasattr(memory_management, "get_computation_dtype"):
        return memory_management.get_computation_dtype(DEVICE)
    stored = memory_management.unet_dtype()
    return memory_management.unet_manual_cast(stored, DEVICE) or stored


class Offered(ControlNetPatcher):  # type: ignore[misc]
    """A file as Forge knows them. What is wrong with it is told when pictures are sampled, and ends that: Forge only
    logs what is raised before, and goes on without."""

    @staticmethod
    def try_build_from_state_dict(state_dict: dict[str, Any], ckpt_path: str) -> Any:
        return Offered(ckpt_path) if lacking(state_dict) else None

    def __init__(self, path: str):
        super().__init__(None)
        self._net: Any = None
        self._error: Exception | None = None
        try:
            self._net = models.load(path, None, dtype())
        except CAUGHT as error:
            self._error = error

    def process_before_every_sampling(self, process: Any, cond: Any, mask: Any, *args: Any, **kwargs: Any) -> None:
        unet = process.sd_model.forge_objects.unet.model.diffusion_model
        self.model_patcher = Guiding(Read(self._net, kind_of(kwargs["params"].preprocessor), unet, self._error))
        super().process_before_every_sampling(process, cond, mask, *args, **kwargs)


def kind_of(theirs: Any) -> str | None:
    """Which kind of map a preprocessor of Forge's list makes, by its name or its control type; None: nobody says."""
    name = theirs.name.casefold()
    makes = next((e.makes for e in registered() if name in (e.name.casefold(), e.label.casefold())), None)
    types = [kind for kind, (tag, _) in TYPES.items() if tag in theirs.tags]
    return makes or (types[0] if types else None)


class Read(nn.Module):
    """A control model of ours, called as Forge calls its own."""

    def __init__(self, net: Any, kind: str | None, unet: Any, error: Exception | None = None):
        super().__init__()
        self.net, self._kind, self._error = net, kind, error
        self._unet = lambda: unet  # which is no part of this module
        self._reader: Any = None
        self._hint: tuple[Tensor, Any] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Which Forge asks for."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None = None) -> Any:
        """Residuals, those of the skips and then the middle block's, for x `(B, C, h, w)` and the hint `(B, 3, H, W)`
        in 0..1. `Refused` where the file is broken, does not fit the UNet, or does not read the map."""
        try:
            made = self._called(Step(x, timesteps, context, WHOLE, added=y), hint)
        except CAUGHT as error:
            raise Refused(f"ControlNet: {error}") from error
        return [*made.skips, made.middle] if LISTED else {"output": list(made.skips), "middle": [made.middle]}

    def _called(self, step: Step, hint: Tensor) -> Any:
        if self._error is not None:
            raise self._error
        if self._reader is None:
            self.net.settle(LdmUNet(self._unet()))
            self._reader = self.net.reads((self._kind,))
        if self._hint is None or self._hint[0] is not hint:
            self._hint = hint, self._reader.hint(hint)
        made = self._hint[1]
        return self._reader(step, [made] if getattr(self._reader, "together", False) else made)


class Guiding(ControlNet):  # type: ignore[misc]
    """Forge's ControlNet around ours, on Forge's device while pictures are sampled."""

    def __init__(self, read: Read):
        super().__init__(read, load_device=DEVICE, manual_cast_dtype=dtype())

    def copy(self) -> Guiding:
        copied = Guiding(self.control_model)
        self.copy_to(copied)
        return copied

    def get_models(self) -> list[Any]:
        """Without ours, whose layers Forge's swapping does not know."""
        return list(ControlBase.get_models(self))

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        own = sum(p.numel() * p.element_size() for p in self.control_model.parameters())
        return own + int(super().inference_memory_requirements(dtype))

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.control_model.to(self.load_device)

    def cleanup(self) -> None:
        self.control_model.to("cpu")
        super().cleanup()
