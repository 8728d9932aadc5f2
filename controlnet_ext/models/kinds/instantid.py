"""InstantID's ControlNet (Wang et al., arXiv:2401.07519): an SDXL ControlNet that reads a face in place of the prompt.

Its file does not state that, so the caller wraps it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...guidance.contract import Residuals, Step, UNet
from ..nn.execution import ControlNetWrapper
from .controlnet import ControlNet


class InstantID(ControlNetWrapper):
    """A ControlNet that reads the embedding of a face in place of the prompt.

    `face` `(T, D)` or `(1, T, D)` is used on the rows with the prompt, `absent` on the others: the outputs of
    InstantID's resampler for a face's embedding, and for zeros. Without `absent` all rows read the face. The map is an
    image of the face's key points. Raises TypeError or ValueError on embeddings that do not fit the network or each
    other.
    """

    architecture = "instantid"

    def __init__(self, net: ControlNet, face: Tensor, absent: Tensor | None = None):
        super().__init__()
        if not isinstance(net, ControlNet):
            raise TypeError(f"InstantID of a {type(net).__name__}, expected a ControlNet; load(path) gives one")
        self.net, self.family = net, net.family
        self.unet_signature = net.unet_signature
        self.face: Tensor
        self.absent: Tensor | None
        self.register_buffer("face", self._check_tokens("face", face))
        self.register_buffer("absent", None if absent is None else self._check_tokens("absent", absent))
        if self.absent is not None and self.absent.shape != self.face.shape:
            raise ValueError(f"absent has {self.absent.shape[1]} tokens, but face has {self.face.shape[1]}")

    def bind(self, unet: UNet) -> None:
        """Bind the network, like `ControlNet.bind`."""
        self.net.bind(unet)

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the embedded hint `(B, C, H/8, W/8)` of an image, like `ControlNet.hint`."""
        out: Tensor = self.net.hint(image)
        return out

    def forward(self, step: Step, hint: Tensor) -> Residuals:
        """Return residuals, like `ControlNet.forward`.

        Raises ValueError if `absent` is given and the host cannot tell the rows with the prompt.
        """
        context = self.face.to(step.x).expand(len(step.x), -1, -1)
        if self.absent is not None:
            if step.positive is None:
                raise ValueError("InstantID reads the face on the prompt's rows, and the host cannot tell those")
            context = torch.where(step.positive[:, None, None], context, self.absent.to(step.x))
        residuals: Residuals = self.net(replace(step, context=context), hint)
        return residuals

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        details: dict[str, Any] = self.net.details()
        return details

    def _check_tokens(self, name: str, tokens: object) -> Tensor:
        """Return tokens `(1, T, D)` that the network can read."""
        if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
            raise TypeError(f"{name} is {type(tokens).__name__}, expected a tensor of floats (T, D)")
        tokens = tokens[None] if tokens.ndim == 2 else tokens
        width = self.net.unet_signature.context_width
        if tokens.ndim != 3 or len(tokens) != 1 or not tokens.shape[1] or tokens.shape[2] != width:
            raise ValueError(f"{name} has shape {tuple(tokens.shape)}, expected (tokens, {width})")
        if not bool(tokens.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
        return tokens


KIND = None  # its file cannot be told from that of a ControlNet
