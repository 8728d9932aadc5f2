"""ControlNet Union (xinsir, github.com/xinsir6/ControlNetPlus): one ControlNet for several types of map.

It may read several maps in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...guidance.contract import Residuals, Step, UNet
from .. import KeyMarkers, ModelKind
from ..map_types import MapTypeSelection
from ..nn.blocks import LayerNorm, Linear, cast_like
from ..nn.embeddings import TimestepEmbedding, expand_hint, get_timestep_embedding
from ..nn.execution import NET_PREFIX, ControlNetWrapper
from ..state_dict.architecture import ControlNetConfig
from ..state_dict.strict import load_strict
from .controlnet import ControlNet

# Types by number (ControlNetPlus' README): the first release has six, ProMax all eight
UNION_TYPES = (
    ("pose",),
    ("depth",),
    ("soft edges", "scribble"),
    ("edges", "lines", "straight lines"),
    ("normals",),
    ("segmentation",),
    ("tile",),
    ("inpaint",),
)
UNION_PREFIXES = ("task_embedding", "transformer_layes.", "spatial_ch_projs.", "control_add_embedding.")


class ControlNetUnion(MapTypeSelection, ControlNetWrapper):
    """A ControlNet for maps whose kinds are known: from `ControlMap.kind`, the preprocessor, or `with_types("depth")`.

    `with_types("depth", "edges")` is for a unit with two images. The images of a unit are read in one call, so its
    weight holds for them together.

    Equals `diffusers.ControlNetUnionModel` at a scale of 1 for each image. That model attends over the batch, not over
    the images (torch's MultiheadAttention without batch_first, also in the authors' code), so images of one batch with
    different maps would change each other; here each row is alone, which equals it for one image.
    """

    architecture = "controlnet-union"
    multi_hint = True
    LAYOUTS: ClassVar[Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
        "diffusers": lambda tensors: {name.removeprefix(NET_PREFIX): t for name, t in tensors.items()}
    }

    def __init__(self, net_config: ControlNetConfig, type_count: int, layer_count: int, type_embedding_width: int):
        super().__init__()
        self.net = ControlNet(net_config)
        self.unet_signature, self.family = self.net.unet_signature, self.net.family
        width = net_config.widths[0]
        self._type_embedding_width = type_embedding_width
        self.task_embedding = nn.Parameter(torch.empty(type_count, width))
        self.transformer_layes = nn.ModuleList(TokenBlock(width) for _ in range(layer_count))  # the authors' spelling
        self.spatial_ch_projs = Linear(width, width)
        self.control_add_embedding = TimestepEmbedding(type_embedding_width * type_count, 4 * width)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of map that it reads."""
        return tuple(kind for kinds in UNION_TYPES[: len(self.task_embedding)] for kind in kinds)

    def with_types(self, *kinds: str) -> ControlNetUnion:
        """Return this network on the same weights, for units with as many images, of these kinds in this order.

        Raises ValueError with all kinds if it does not read one.
        """
        types = []
        for kind in kinds:
            if kind not in self.kinds:
                raise ValueError(f"the ControlNet Union reads no {kind!r} maps, only {', '.join(self.kinds)}")
            types.append(next(number for number, names in enumerate(UNION_TYPES) if kind in names))
        if not types:
            raise ValueError(f"with_types() needs a kind of map: {', '.join(self.kinds)}")
        union = copy(self)
        union.types = tuple(types)
        return union

    def bind(self, unet: UNet) -> None:
        """Bind the network, like `ControlNet.bind`."""
        self.net.bind(unet)

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the embedded hint `(B, C, H/8, W/8)` of an image, like `ControlNet.hint`.

        Black replaces -1 where to repaint, as in diffusers' example for this network (0.42,
        pipeline_controlnet_union_inpaint_sd_xl.py).
        """
        out: Tensor = self.net.hint(image.clamp(min=0) if isinstance(image, Tensor) else image)
        return out

    def forward(self, step: Step, hints: Sequence[Tensor]) -> Residuals:
        """Return residuals of weight 1 for one hint of each selected type, in their order.

        Raises ValueError for another number of hints.
        """
        if self.types is None or len(hints) != len(self.types):
            raise ValueError(f"{len(hints)} hints for a ControlNet Union that was told {len(self.types or ())} kinds")
        on = torch.zeros(len(self.task_embedding), device=step.x.device)
        on[list(self.types)] = 1
        dtype = self.task_embedding.dtype if self.task_embedding.dtype.itemsize > 1 else step.x.dtype
        more = self.control_add_embedding(
            get_timestep_embedding(on, self._type_embedding_width).reshape(1, -1).to(dtype)
        )

        def read(x: Tensor) -> Tensor:
            total = torch.zeros_like(x)
            for hint, number in zip(hints, self.types or (), strict=True):
                h = expand_hint(hint, x, step)
                token = h.mean(dim=(2, 3)) + cast_like(self.task_embedding[number], h)  # (B, C)
                for block in self.transformer_layes:
                    token = block(token)
                total = total + (h + self.spatial_ch_projs(token)[:, :, None, None])
            return x + total

        residuals: Residuals = self.net.encode(step, read, more)
        return residuals

    def config(self) -> dict[str, Any]:
        """Return the config of the same `diffusers.ControlNetUnionModel`."""
        types, width = self.task_embedding.shape
        config = {name: value for name, value in self.net.config().items() if name != "mid_block_type"}
        return config | {
            "_class_name": "ControlNetUnionModel",
            "num_control_type": types,
            "num_proj_channel": width,
            "num_trans_channel": width,
            "num_trans_head": 8,
            "num_trans_layer": len(self.transformer_layes),
            "addition_time_embed_dim": self._type_embedding_width,
        }

    def unstored_config(self) -> dict[str, Any]:
        """Return the settings that its tensors do not show, in diffusers' words."""
        config: dict[str, Any] = self.net.unstored_config()
        return config

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        return {"reads": ", ".join(self.kinds), **self.net.details()}


class TokenBlock(nn.Module):
    """A transformer block over one token `(B, C)`: attention to itself alone is its value."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = SingleTokenAttention(width)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": Linear(width, 4 * width), "c_proj": Linear(4 * width, width)})
        self.ln_2 = LayerNorm(width)

    def forward(self, token: Tensor) -> Tensor:
        token = token + self.attn(self.ln_1(token))
        inner = self.mlp["c_fc"](self.ln_2(token))
        out: Tensor = token + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))
        return out


class SingleTokenAttention(nn.Module):
    """The weights of torch's MultiheadAttention, of which those for queries and keys have no effect here."""

    def __init__(self, width: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, token: Tensor) -> Tensor:
        weight, bias = (cast_like(p.chunk(3)[2], token) for p in (self.in_proj_weight, self.in_proj_bias))
        out: Tensor = self.out_proj(nn.functional.linear(token, weight, bias))
        return out


detect = KeyMarkers((("task_embedding", r"control_add_embedding\.linear_1\.weight"),))


def layout(names: Collection[str]) -> str:
    """Return "diffusers", the only layout in which unions are published; webui and ComfyUI read it too."""
    return "diffusers"


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ControlNetUnion:
    """Return the union with these tensors, which it shares.

    Raises ValueError like `ControlNet.load`, and if it has more types than are known.
    """
    names = ["task_embedding", "control_add_embedding.linear_1.weight"]
    if any(tensors[name].ndim != 2 for name in names):
        raise ValueError(f"tensors {' and '.join(names)} are no matrices")
    types, inputs = tensors[names[0]].shape[0], tensors[names[1]].shape[1]
    if not 1 <= types <= len(UNION_TYPES) or inputs % types or inputs // types % 2:
        raise ValueError(
            f"a union of {types} types with {inputs} numbers for them, expected 1..{len(UNION_TYPES)} types"
        )
    layers = len({name.split(".")[1] for name in tensors if name.startswith("transformer_layes.")})
    inner = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNION_PREFIXES)}
    full_config = {**config, "addition_time_embed_dim": config.get("addition_time_embed_dim") or inputs // types}
    with torch.device("meta"):
        union = ControlNetUnion(ControlNetConfig.from_tensors(inner, full_config), types, layers, inputs // types)
    own = {name: tensor for name, tensor in tensors.items() if name not in inner}
    stored_names = {name: name.removeprefix(NET_PREFIX) for name in union.state_dict()}
    load_strict(union, {**{NET_PREFIX + name: tensor for name, tensor in inner.items()}, **own}, stored_names)
    return union.eval()


KIND = ModelKind("union", detect, load, layout)
