"""T2I-Adapter's style adapter (TencentARC/T2I-Adapter @ 168f87f, ldm/modules/encoders/adapter.py, StyleAdapter).

It makes a few tokens of the output of CLIP's vision network for an image, and appends them to those of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...guidance.contract import Activation, AttentionModel, Host, UndoStack, UNet
from .. import KeyMarkers, ModelKind
from ..nn.blocks import LayerNorm, Linear, cast_like
from ..nn.embeddings import expand_rows
from ..nn.execution import LayerwiseOffload
from ..state_dict.strict import FLOAT8_DTYPES, load_strict

STYLE_PREFIX = "adapter."
STYLE_HEADS = 8  # not in the tensors; the published file's
MAX_LAYERS = 64  # layers; the published file has three


class StyleAttention(nn.Module):
    """The weights of torch's MultiheadAttention, over tokens `(B, N, C)`."""

    def __init__(self, width: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        inside = F.linear(h, cast_like(self.in_proj_weight, h), cast_like(self.in_proj_bias, h))
        q, k, v = (y.view(*y.shape[:2], STYLE_HEADS, -1).transpose(1, 2) for y in inside.chunk(3, dim=-1))
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class StyleBlock(nn.Module):
    """A transformer block over tokens `(B, N, C)`."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = StyleAttention(width)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": Linear(width, 4 * width), "c_proj": Linear(4 * width, width)})
        self.ln_2 = LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(self.ln_1(h))
        inner = self.mlp["c_fc"](self.ln_2(h))
        out: Tensor = h + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))
        return out


class StyleAdapter(LayerwiseOffload, AttentionModel):
    """A model that appends tokens of a style, times the unit's weight, to the prompt on the rows that have it.

    Other rows get their own last tokens once more, so that all have as many (as in the authors' samplers;
    sd-webui-controlnet appends zeros there). It reads `ControlMap.values`: the last hidden states of CLIP's vision
    network, ViT-L/14 for the published file, `(257, 1024)`. `layers` and a region of a unit are refused: there is no
    definition of their effect.
    """

    architecture = "t2i-style-adapter"
    hint_input: Literal["embedding"] = "embedding"

    def __init__(self, width: int, context: int, layers: int, tokens: int):
        super().__init__()
        self.family = "sd15" if context == 768 else "sd"
        self.style_embedding = nn.Parameter(torch.empty(1, tokens, width))
        self.transformer_layes = nn.Sequential(*(StyleBlock(width) for _ in range(layers)))  # the authors' spelling
        self.ln_pre, self.ln_post = LayerNorm(width), LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, context))

    def bind(self, unet: UNet) -> None:
        """Check that the UNet's prompts are as wide as the tokens. Raises ValueError if not."""
        theirs = unet.config["cross_attention_dim"]
        if theirs != self.proj.shape[1]:
            raise ValueError(
                f"the style adapter makes tokens of width {self.proj.shape[1]}, but the model has {theirs}"
            )

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the style's tokens `(B, tokens, context)` of hidden states `(B, N, width)`.

        Raises ValueError on other shapes.
        """
        _, tokens, width = self.style_embedding.shape
        states = image
        if not isinstance(states, Tensor) or states.ndim != 3 or states.shape[2] != width or not states.shape[1]:
            shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(f"a style adapter reads hidden states (B, N, {width}) of a vision network, not {shape}")
        dtype = torch.float32 if self.proj.dtype in FLOAT8_DTYPES else self.proj.dtype
        if bool((states == states[:1]).all()):
            states = states[:1]
        h = states.to(self.stream_device or self.proj.device, dtype)
        h = torch.cat([h, cast_like(self.style_embedding, h).expand(len(h), -1, -1)], dim=1)
        h = self.transformer_layes(self.ln_pre(h))
        out: Tensor = self.ln_post(h[:, -tokens:]) @ cast_like(self.proj, h)
        return out

    @contextmanager
    def attach(self, host: Host, hint: Tensor, get_activation: Callable[[], Activation | None]) -> Iterator[None]:
        """Append the tokens `hint` `(B, tokens, context)` to the prompt in front of each attention, within this
        context."""
        appending = TokenAppendingHook(hint, get_activation)
        undo = UndoStack()
        try:
            try:
                for name, module, _ in host.iter_attentions():
                    if name.endswith(".attn2"):
                        undo.register_forward_pre_hook(module, appending, with_kwargs=True)
                yield
            finally:
                undo.close()
        finally:
            undo.close()

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        _, tokens, width = self.style_embedding.shape
        return {"reads": f"hidden states of CLIP's vision network, of width {width}", "tokens": tokens}


class TokenAppendingHook:
    """The hook in front of the attentions of one UNet, which are all called with one prompt."""

    def __init__(self, hint: Tensor, get_activation: Callable[[], Activation | None]):
        self._hint, self._get_activation = hint, get_activation
        self._last_append: tuple[Any, Any, Tensor | None] = (None, None, None)  # prompt, now, and what came of them

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        now = self._get_activation()
        if now is None:
            return None
        name = "context" if "context" in kwargs else "encoder_hidden_states"  # ldm's word, and diffusers'
        value = kwargs[name]
        context, *more = value if isinstance(value, tuple) else (value,)  # more: an IP-Adapter's
        if kwargs.get("attention_mask") is not None:
            raise ValueError("a style adapter appends tokens to the prompt, which a mask of the prompt does not know")
        if self._last_append[0] is not context or self._last_append[1] is not now:
            self._last_append = context, now, self._append_tokens(context, now)
        tokens = self._last_append[2]
        return args, {**kwargs, name: (tokens, *more) if more else tokens}

    def _append_tokens(self, context: Tensor, activation: Activation) -> Tensor:
        for what, value in (("layers", activation.layers), ("region", activation.region)):
            if value is not None:
                raise ValueError(f"a style adapter takes no {what}: it acts through the prompt, everywhere")
        positive, count = activation.step.positive, self._hint.shape[1]
        if positive is None:
            raise ValueError("a style adapter acts on the prompt's rows, and the host cannot tell which those are")
        if len(context) != len(positive) or context.shape[1] < count:
            raise ValueError(
                f"prompts of {len(context)} rows and {context.shape[1]} tokens for {len(positive)} rows of x and "
                f"{count} tokens of a style"
            )
        style = expand_rows("styles", self._hint.to(context), activation.step) * activation.strength[:, None, None].to(
            context
        )
        return torch.cat([context, torch.where(positive[:, None, None], style, context[:, -count:])], dim=1)


detect = KeyMarkers(((rf"({re.escape(STYLE_PREFIX)})?style_embedding",),))


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> StyleAdapter:
    """Return the style adapter with these tensors, which it shares.

    Raises ValueError on tensors that are missing, unknown, misshapen or not finite.
    """
    stored_names = {name.removeprefix(STYLE_PREFIX): name for name in tensors}
    if len(stored_names) != len(tensors):
        raise ValueError(f"holds one tensor twice, with and without {STYLE_PREFIX!r}")
    plain = {name: tensors[own] for name, own in stored_names.items()}
    proj, embedding = plain.get("proj"), plain["style_embedding"]
    if proj is None or proj.ndim != 2 or proj.shape[0] % STYLE_HEADS:
        raise ValueError(f"tensor proj is missing, or no matrix of a multiple of {STYLE_HEADS} rows")
    if embedding.ndim != 3 or not embedding.shape[1]:
        raise ValueError(f"tensor style_embedding has shape {list(embedding.shape)}, expected (1, tokens, width)")
    layers = next((n for n in range(MAX_LAYERS) if f"transformer_layes.{n}.ln_1.weight" not in plain), MAX_LAYERS)
    with torch.device("meta"):
        net = StyleAdapter(proj.shape[0], proj.shape[1], layers, embedding.shape[1])
    load_strict(net, plain, stored_names)
    return net.eval()


KIND = ModelKind("style_adapter", detect, load)
