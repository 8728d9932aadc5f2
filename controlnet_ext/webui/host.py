"""What lives as long as the host: control models, preprocessors, and on which device they are."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..hosts.ldm.unet_view import LdmUNet
from ..preprocessors.library import Library
from ..sdwebui.cache import remembered
from ..sdwebui.catalog import Shelf
from ..sdwebui.modules import readied
from . import settings


@cache
def shelf() -> Shelf:
    """The control models that the host's folders hold."""
    return Shelf(settings.model_folders(), "", int(settings.value("control_net_model_cache_size", 2)))


def names() -> list[str]:
    """The control models for the checkpoint that is loaded, by what their files hold; all as long as none is."""
    unet = _unet()
    return [name for name in shelf().names if unet is None or shelf().fits(name, unet)]


def _unet() -> Any:
    """The loaded checkpoint's, as control models see it. Asking `shared.sd_model` would load one."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    try:
        return None if model is None else LdmUNet(model.model.diffusion_model)
    except (ValueError, AttributeError):
        return None


@cache
def ready() -> Any:
    """What gives preprocessors by name, loaded on the host's device, whose last maps are remembered."""
    from modules import shared

    kept = int(getattr(shared.cmd_opts, "controlnet_preprocessor_cache_size", 16))
    return remembered(readied(device(), Library(settings.weight_folders() or None)), kept)


def device() -> str:
    """Of the host's UNet."""
    from modules import devices

    return str(devices.device)


def dtype() -> Any:
    """In which control models are loaded: as the host's UNet, or float32 by the flag."""
    import torch
    from modules import devices, shared

    return torch.float32 if getattr(shared.cmd_opts, "no_half_controlnet", False) else devices.dtype_unet
