"""The frozen Stable Diffusion beside which a control network learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from ..guidance.contract import Residuals, Step
from ..guidance.schedule import Span
from ..models.kinds.controlnet import ControlNet

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

NARROW_CHANNELS = 128  # channels, for whose heads PyTorch's fused attention takes up to four times as long on a CPU


class FrozenBase:
    """A pipeline of SD1.5 or SD2.1 that is evaluated and stays unchanged.

    Raises ValueError for an inpainting UNet or an SDXL.
    """

    def __init__(self, pipe: DiffusionPipeline, device: str):
        if getattr(pipe, "text_encoder_2", None) is not None:
            raise ValueError("the model is an SDXL; ControlNets are trained for SD1.5's and SD2.1's kind only")
        if pipe.unet.config["in_channels"] != pipe.vae.config["latent_channels"]:
            raise ValueError(
                f"the model's UNet reads {pipe.unet.config['in_channels']} channels: is it for inpainting?"
            )
        self.device = torch.device(device)
        self._pipe = pipe.to(device)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.requires_grad_(False).eval()
        if self.device.type == "cpu" and pipe.unet.config["block_out_channels"][0] <= NARROW_CHANNELS:
            pipe.unet.set_attn_processor(AttnProcessor())
        self.empty_context = self.encode_caption("")

    @torch.no_grad()
    def encode_latents(self, pixels: np.ndarray) -> Tensor:
        """Return the most likely latents (C, h, w), on the CPU, of RGB uint8 (H, W, 3).

        In float32 and one image at a time: an example is equal to the bit in any batch, so a resumed run is too.
        """
        x = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        vae = self._pipe.vae
        with torch.autocast(self.device.type, enabled=False):
            return (vae.encode(x).latent_dist.mode() * vae.config["scaling_factor"])[0].cpu()

    @torch.no_grad()
    def encode_caption(self, caption: str) -> Tensor:
        """Return the text states (T, D) of a caption, on the CPU."""
        with torch.autocast(self.device.type, enabled=False):
            return self._pipe.encode_prompt(caption, self.device, 1, False)[0][0].cpu()

    def predict(self, x: Tensor, t: Tensor, context: Tensor, net: nn.Module | None, maps: np.ndarray) -> Tensor:
        """Return the prediction (B, C, h, w) of the UNet for noised latents.

        `net` guides it with maps (B, H, W, 3) uint8; None predicts without control.
        """
        x, t, context = x.to(self.device), t.to(self.device), context.to(self.device)
        given: dict[str, Any] = {}
        if net is not None:
            residuals: Residuals = net(Step(x, t, context, Span(0, 1)), cast(ControlNet, net).hint(maps))
            given = {
                "down_block_additional_residuals": residuals.skips,
                "mid_block_additional_residual": residuals.middle,
            }
        return self._pipe.unet(x, t, context, **given).sample
