"""Narrow ControlNets and UNets of full depth in the three published shapes, random in every tensor."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from controlnet_ext.guidance.contract import Residuals, Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.models.kinds.controlnet import ControlNet

SHAPES = {
    "SD1.5": {"block_out_channels": (32, 64, 96, 96), "attention_head_dim": 8, "cross_attention_dim": 48},
    "SD2.1": {
        "block_out_channels": (32, 64, 128, 128),
        "attention_head_dim": (1, 2, 4, 4),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
    },
    "SDXL": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}
SHAPES["SDXL mid"] = SHAPES["SDXL"] | {
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 1, 1),
}
SHAPES["SDXL small"] = SHAPES["SDXL"] | {
    "down_block_types": ("DownBlock2D",) * 3,
    "transformer_layers_per_block": (1, 1, 0),
}
SHAPES["lone middle resnet"] = SHAPES["SDXL small"] | {"mid_block_type": "UNetMidBlock2D"}
UP_BLOCKS = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
SIZES = [(1, 8, 8), (2, 9, 13), (4, 5, 16)]  # rows, height and width of the latents


def randomised(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All parameters drawn anew so that activations keep a standard deviation near 1, zero convolutions too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return net.eval()


def copy_module(net: torch.nn.Module) -> torch.nn.Module:
    """A copy with parameters, buffers and submodules of its own. `deepcopy` gives the same and takes ten times longer:
    it also copies what nobody changes in place, such as configurations and attention processors."""
    copies: dict[int, torch.nn.Module] = {}

    def copy(module: torch.nn.Module) -> torch.nn.Module:
        if id(module) not in copies:
            made = copies[id(module)] = type(module).__new__(type(module))
            plain = (dict, OrderedDict, set, list)
            made.__dict__ = {k: v.copy() if type(v) in plain else v for k, v in module.__dict__.items()}
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    data = parameter.detach().clone()
                    made._parameters[name] = torch.nn.Parameter(data, parameter.requires_grad)
            made._buffers.update({k: v if v is None else v.clone() for k, v in module._buffers.items()})
            made._modules.update({k: v if v is None else copy(v) for k, v in module._modules.items()})
        return copies[id(module)]

    return copy(net)


def reference(shape: str, **changes: object) -> ControlNetModel:
    """diffusers' network; drawing it takes longer than copying it."""
    return copy_module(_reference(shape, tuple(changes.items())))


@cache
def _reference(shape: str, changes: tuple[tuple[str, object], ...]) -> ControlNetModel:
    return randomised(ControlNetModel(**SHAPES[shape] | dict(changes)))


def ours(theirs: ControlNetModel) -> ControlNet:
    return ControlNet.load(theirs.state_dict(), theirs.config)


def unet(shape: str, **changes: object) -> UNet2DConditionModel:
    return copy_module(_unet(shape, tuple(changes.items())))


@cache
def _unet(shape: str, changes: tuple[tuple[str, object], ...]) -> UNet2DConditionModel:
    config = SHAPES[shape] | dict(changes)
    down = config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up = tuple(UP_BLOCKS[name] for name in reversed(down))
    return randomised(UNet2DConditionModel(**config | {"down_block_types": down, "up_block_types": up}))


def step_for(net: ControlNet, rows: int = 2, height: int = 8, width: int = 8, seed: int = 1) -> Step:
    """A random step; an SDXL net's added vector is random too."""
    draw = torch.Generator().manual_seed(seed)
    layout = net.unet_signature
    return Step(
        x=torch.randn(rows, layout.in_channels, height, width, generator=draw),
        t=torch.randint(0, 1000, (rows,), generator=draw),
        context=torch.randn(rows, 7, layout.context_width or 5, generator=draw),
        span=Span(0, 1),
        added=None if layout.added_width is None else torch.randn(rows, layout.added_width, generator=draw),
    )


def random_image(height: int = 64, width: int = 64, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def all_of(residuals: Residuals) -> list[torch.Tensor]:
    assert residuals.middle is not None
    return [*residuals.skips, residuals.middle]


@torch.no_grad()
def theirs_on(net: ControlNetModel, step: Step, image: np.ndarray) -> list[torch.Tensor]:
    """Residuals of diffusers' network, its added vector put in where it would make it from pooled prompt and sizes."""
    hint = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()
    added = None
    if step.added is not None:
        net.add_time_proj = torch.nn.Identity()
        sizes = 6 * net.config.addition_time_embed_dim
        added = {"text_embeds": step.added[:, :-sizes], "time_ids": step.added[:, -sizes:]}
    skips, middle = net(step.x, step.t, step.context, hint.to(step.x.dtype), added_cond_kwargs=added, return_dict=False)
    return [*skips, middle]
