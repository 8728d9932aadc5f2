"""What lives as long as the host: control models, preprocessors, and on which device they are."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..hosts.ldm.unet_view import LdmUNetView
from ..preprocessors.library import Library
from ..sdwebui.build import UnitBuilder
from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.modules import cache_maps, create_preprocessor_loader
from . import settings


@cache
def get_model_catalog() -> ModelCatalog:
    """The control models that the host's folders hold."""
    return ModelCatalog(settings.list_model_folders(), "", int(settings.get_setting("control_net_model_cache_size", 2)))


def list_fitting_models() -> list[str]:
    """The control models for the checkpoint that is loaded, by what their files hold; all as long as none is."""
    unet = _get_unet()
    return [name for name in get_model_catalog().names if unet is None or get_model_catalog().can_guide(name, unet)]


def _get_unet() -> Any:
    """The loaded checkpoint's, as control models see it. Asking `shared.sd_model` would load one."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    try:
        return None if model is None else LdmUNetView(model.model.diffusion_model)
    except (ValueError, AttributeError):
        return None


@cache
def get_preprocessor_loader() -> Any:
    """What gives preprocessors by name, loaded on the host's device, whose last maps are remembered."""
    from modules import shared

    kept = int(getattr(shared.cmd_opts, "controlnet_preprocessor_cache_size", 16))
    return cache_maps(create_preprocessor_loader(get_device(), Library(settings.list_weight_folders() or None)), kept)


def get_unit_builder() -> UnitBuilder:
    """Return the builder of units with the host's models, preprocessors, device and dtype."""
    return UnitBuilder(get_model_catalog(), get_preprocessor_loader(), get_device(), get_control_dtype())


def get_device() -> str:
    """Of the host's UNet."""
    from modules import devices

    return str(devices.device)


def get_control_dtype() -> Any:
    """In which control models are loaded: as the host's UNet, or float32 by the flag."""
    import torch
    from modules import devices, shared

    return torch.float32 if getattr(shared.cmd_opts, "no_half_controlnet", False) else devices.dtype_unet
