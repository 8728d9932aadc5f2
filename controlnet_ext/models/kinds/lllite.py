"""ControlLLLite (kohya-ss/sd-scripts, networks/control_net_lllite.py): small networks in front of the linear layers of
the UNet's attention, each with its own encoder of the map."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...guidance.contract import Activation, AttentionModel, Host, UndoStack, UNet
from .. import KeyMarkers, ModelKind
from ..base_unet import strip_wrappers, unwrap
from ..nn.blocks import Conv2d, Linear
from ..nn.embeddings import to_hint_pixels
from ..nn.execution import LayerwiseOffload
from ..state_dict.strict import load_strict

LLLITE_PREFIX = "lllite_unet_"
LITES_PREFIX = "lites."  # of all names in the state dict
CONDITIONING_CHANNELS, HIDDEN_CHANNELS = 32, 64  # as sd-scripts' documentation trains them (cond_emb_dim, network_dim)
# sides of the convolutions over the map, by level of the UNet: together 8, 16 and 32 times smaller than the image
CONDITIONING_STRIDES = ((4, 2), (4, 4), (4, 4, 2))
TRAINED_LAYERS = re.compile(r"(down_blocks\.(\d+)|mid_block)\..*\.(attn1\.to_[qkv]|attn2\.to_q)")


class LLLiteModule(nn.Module):
    """The network of one layer of `width` channels, which adds up(mid(map, down(x))) to its input.

    The encoded map has `map_channels`; `strides` are the sides of the encoder's convolutions, equal to their strides.
    """

    def __init__(self, width: int, hidden_channels: int, map_channels: int, strides: tuple[int, ...]):
        super().__init__()
        channels = [3, *[map_channels // 2] * (len(strides) - 1), map_channels]
        layers: list[nn.Module] = []
        for a, b, side in zip(channels[:-1], channels[1:], strides, strict=True):
            layers += [Conv2d(a, b, side, stride=side), nn.ReLU()]
        self.width = width
        self.scale = int(np.prod(strides))
        self.conditioning1 = nn.Sequential(*layers[:-1])
        self.down = nn.Sequential(Linear(width, hidden_channels), nn.ReLU())
        self.mid = nn.Sequential(Linear(hidden_channels + map_channels, hidden_channels), nn.ReLU())
        self.up = nn.Sequential(Linear(hidden_channels, width))

    def encode_map(self, pixels: Tensor) -> Tensor:
        """Return the map `(B, C, h, w)` of pixels `(B, 3, H, W)` in -1..1, with h = H / scale rounded up.

        The UNet's own sizes are rounded up too; the image is continued by its border.
        """
        height, width = pixels.shape[-2:]
        pixels = F.pad(pixels, (0, -width % self.scale, 0, -height % self.scale), mode="replicate")
        out: Tensor = self.conditioning1(pixels)
        return out

    def forward(self, x: Tensor, encoded_map: Tensor) -> Tensor:
        """Return the tensor to add to x `(B, h w, width)`."""
        out: Tensor = self.up(self.mid(torch.cat([encoded_map.flatten(2).transpose(1, 2), self.down(x)], dim=2)))
        return out


class ControlLLLite(LayerwiseOffload, AttentionModel):
    """A model that replaces x by x + strength * lite(x, map) in front of each layer that the file names.

    Several act one after the other, in the order of units. `layers` of a unit are refused: there is no definition of
    their effect.
    """

    architecture = "controlllite"
    family = "sdxl"
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
        "ldm": lambda tensors: {name.removeprefix(LITES_PREFIX): tensor for name, tensor in tensors.items()}
    }

    def __init__(self, lites: Mapping[str, LLLiteModule]):
        super().__init__()
        self.lites: Mapping[str, LLLiteModule] = nn.ModuleDict(lites)  # type: ignore[assignment]

    @classmethod
    def from_unet(cls, unet: UNet) -> ControlLLLite:
        """Return the ControlLLLite to train beside a diffusers UNet of SDXL, in float32, which adds exactly 0.

        As in sd-scripts (control_net_lllite.py), networks lie in front of the queries, keys and values of the
        attention to the image, and the queries of that to the prompt, in encoder and middle block. All but their last
        layers are drawn from torch's global generator. Raises ValueError for a UNet of more levels than SDXL's.
        """
        levels = len(unet.down_blocks)
        if levels > len(CONDITIONING_STRIDES):
            raise ValueError(f"a ControlLLLite is made for {len(CONDITIONING_STRIDES)} levels, the UNet has {levels}")
        lites, per = {}, [len(level.resnets) for level in unet.down_blocks]
        for name, layer in _iter_linear_layers(unet):
            if match := TRAINED_LAYERS.fullmatch(name):
                strides = CONDITIONING_STRIDES[levels - 1 if match[2] is None else int(match[2])]
                lite = LLLiteModule(unwrap(layer).in_features, HIDDEN_CHANNELS, CONDITIONING_CHANNELS, strides)
                for parameter in lite.up.parameters():
                    nn.init.zeros_(parameter)
                lites[LLLITE_PREFIX + _to_ldm_name(name, per).replace(".", "_")] = lite
        return cls(lites).eval()

    def bind(self, unet: UNet) -> None:
        """Check that the UNet has all layers that the file names, of their widths. Raises ValueError if not."""
        layers = _find_linear_layers(unet)
        for name, lite in self.lites.items():
            width = lite.width
            if name not in layers:
                raise ValueError(f"the ControlLLLite changes {name}, which the model does not have")
            if unwrap(layers[name]).in_features != width:
                raise ValueError(
                    f"the ControlLLLite has width {width} for {name}, but the model has "
                    f"{unwrap(layers[name]).in_features}"
                )

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return pixels `(B, 3, H, W)` in -1..1 of an RGB image as `ControlNet.hint` takes it.

        B is 1 if all images are equal.
        """
        like = next(self.parameters())
        pixels = (to_hint_pixels(image) * 2 - 1).clamp(min=-1)
        if bool((pixels == pixels[:1]).all()):
            pixels = pixels[:1]
        return pixels.to(self.stream_device or like.device)

    @contextmanager
    def attach(self, host: Host, hint: Tensor, get_activation: Callable[[], Activation | None]) -> Iterator[None]:
        """Change the inputs of the layers within this context; `hint` is `(B, 3, H, W)`."""
        layers = _find_linear_layers(host.unet)
        self.bind(host.unet)
        undo = UndoStack()
        try:
            try:
                for name, lite in self.lites.items():
                    undo.register_forward_pre_hook(layers[name], LLLiteHook(name, lite, hint, get_activation))
                yield
            finally:
                undo.close()
        finally:
            undo.close()

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        return {"layers changed": len(self.lites)}


class LLLiteHook:
    """The hook in front of one layer."""

    def __init__(self, name: str, module: LLLiteModule, hint: Tensor, get_activation: Callable[[], Activation | None]):
        self._name, self._module, self._hint, self._get_activation = name, module, hint, get_activation
        self._encoded_map: Tensor | None = None  # the same in all steps, unless the network is being trained

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        now = self._get_activation()
        if now is None:
            return None
        x = args[0]
        if now.layers is not None:
            raise ValueError("a ControlLLLite takes no layers: it has no skips that they could multiply")
        if len(x) != len(now.strength):
            raise ValueError(
                f"{self._name} is called on {len(x)} of {len(now.strength)} rows (perturbed attention guidance does "
                "that), whose strength is not known"
            )
        embedding = self._encoded_map
        if embedding is None:
            embedding = self._module.encode_map(self._hint.to(x.dtype))
            self._encoded_map = None if embedding.requires_grad else embedding
        look = embedding.to(x).expand(len(x), -1, -1, -1)
        if look.shape[-2] * look.shape[-1] != x.shape[1]:
            raise ValueError(
                f"{self._name} reads {x.shape[1]} pixels, but the map has {look.shape[-1]}x{look.shape[-2]}"
            )
        more = self._module(x, look) * now.strength[:, None, None].to(x)
        if now.region is not None:
            region = F.interpolate(now.region, look.shape[-2:], mode="bilinear", align_corners=False)
            more = more * region.flatten(2).transpose(1, 2).to(x)
        return (x + more, *args[1:])


detect = KeyMarkers(((rf"{LLLITE_PREFIX}.*\.down\.0\..*",),))


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ControlLLLite:
    """Return the ControlLLLite with these tensors, which it shares.

    Raises ValueError on tensors that are missing, unknown, misshapen or not finite, and on networks in front of
    convolutions.
    """
    names = sorted({name.partition(".")[0] for name in tensors})
    with torch.device("meta"):
        net = ControlLLLite({name: _build_module(name, tensors) for name in names})
    stored_names = {f"lites.{name}": name for name in tensors}
    load_strict(net, {ours: tensors[name] for ours, name in stored_names.items()}, stored_names)
    return net.eval()


KIND = ModelKind("lllite", detect, load)


def _build_module(name: str, tensors: Mapping[str, Tensor]) -> LLLiteModule:
    """Return the network of this name, by the shapes of its tensors."""
    down, mid = (_get_matrix(f"{name}.{part}.0.weight", tensors) for part in ("down", "mid"))
    steps: list[int] = []
    for i in (0, 2, 4):  # what is missing in between is named when the tensors are filled in
        place = f"{name}.conditioning1.{i}.weight"
        if i == 0 and (place not in tensors or tensors[place].ndim != 4):
            raise ValueError(f"tensor {place} is missing, or no convolution")
        if place in tensors and tensors[place].ndim == 4:
            steps.append(max(tensors[place].shape[-1], 1))
    look = mid.shape[1] - down.shape[0]
    if look < 2:
        raise ValueError(
            f"tensor {name}.mid.0.weight reads {mid.shape[1]} channels, expected more than {down.shape[0]}"
        )
    return LLLiteModule(down.shape[1], down.shape[0], look, tuple(steps))


def _get_matrix(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    if tensors[name].ndim == 4:
        raise ValueError(f"{name} belongs to a convolution; only linear layers can be changed")
    if tensors[name].ndim != 2:
        raise ValueError(f"tensor {name} has {tensors[name].ndim} dimensions, expected 2")
    return tensors[name]


def _find_linear_layers(unet: UNet) -> dict[str, Any]:
    """Return the linear layers of the UNet's attention by ControlLLLite's names for ldm's modules and for diffusers'.

    Raises ValueError if queries, keys and values are fused.
    """
    per = [len(level.resnets) for level in unet.down_blocks]
    modules = {}
    for name, module in _iter_linear_layers(unet):
        modules[LLLITE_PREFIX + name.replace(".", "_")] = module
        modules[LLLITE_PREFIX + _to_ldm_name(name, per).replace(".", "_")] = module
    return modules


def _iter_linear_layers(unet: UNet) -> Iterator[tuple[str, Any]]:
    """Yield (name in diffusers, layer) of the linear layers of the UNet's attention.

    Raises ValueError if queries, keys and values are fused.
    """
    for path, module in unet.named_modules():
        name = strip_wrappers(path)
        if getattr(module, "fused_projections", False):
            raise ValueError("the UNet's projections are fused; unfuse them first (pipe.unfuse_qkv_projections())")
        if ".attentions." not in name or ".motion_modules." in name or not hasattr(unwrap(module), "in_features"):
            continue  # which torch's quantized layers have too, and are no nn.Linear
        if not path.endswith(".base_layer") and ".lora_" not in path:
            yield name, module


def _to_ldm_name(name: str, resnets_per_level: list[int]) -> str:
    """Return ldm's name of a layer with this name in diffusers."""
    match name.split("."):
        case ["down_blocks", level, "attentions", place, *rest]:
            block = 1 + sum(n + 1 for n in resnets_per_level[: int(level)]) + int(place)
            return ".".join([f"input_blocks.{block}.1", *rest])
        case ["mid_block", "attentions", _, *rest]:
            return ".".join(["middle_block.1", *rest])
        case ["up_blocks", level, "attentions", place, *rest]:
            block = sum(n + 1 for n in reversed(resnets_per_level[len(resnets_per_level) - int(level) :])) + int(place)
            return ".".join([f"output_blocks.{block}.1", *rest])
    return name
