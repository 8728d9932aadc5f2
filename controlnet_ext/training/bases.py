"""The frozen Stable Diffusion beside which a control network learns, and examples as it reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F

from ..guidance.contract import Activation, AttentionModel, Hint, Residuals, Step, UndoStack
from ..guidance.schedule import Span
from ..hosts.diffusers.host import ENCODER_ARGUMENT, MIDDLE_ARGUMENT, SKIPS_ARGUMENT, DiffusersHost, encode_vae_image
from ..models.nn.execution import LayerwiseOffload

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

NARROW_CHANNELS = 128  # channels, for whose heads PyTorch's fused attention takes up to four times as long on a CPU
SIZE_COUNT = 6  # SDXL's: height and width of the image, top and left of the crop, height and width of the result


@dataclass(frozen=True, eq=False)
class EncodedCaption:
    """Text states `(T, D)` of a caption, and those of all of it `(P,)` for SDXL."""

    context: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Examples of one size as the network and the frozen model read them, on the CPU.

    latents: (B, C, h, w).
    context: text states (B, T, D); those of the empty caption where a caption was dropped.
    maps: (B, H, W, 3) uint8 RGB; black where a map was dropped.
    names: of the examples, for messages.
    added: (B, P + 6), SDXL's pooled text states and sizes, see `FrozenBase.build_added`; None for other models.
    extra: (B, 5, h, w), mask and latents of the masked image of an inpainting model, None for others.
    """

    latents: Tensor
    context: Tensor
    maps: np.ndarray
    names: tuple[str, ...] = ()
    added: Tensor | None = None
    extra: Tensor | None = None

    def replace_captions(self, rows: Tensor, caption: EncodedCaption) -> EncodedBatch:
        """Return the batch with this caption where `rows` `(B,)` is True."""
        context = torch.where(rows[:, None, None], caption.context, self.context)
        if self.added is None or caption.pooled is None:
            return replace(self, context=context)
        embeddings, sizes = self.added[:, :-SIZE_COUNT], self.added[:, -SIZE_COUNT:]
        embeddings = torch.where(rows[:, None], caption.pooled, embeddings)
        return replace(self, context=context, added=torch.cat([embeddings, sizes], dim=1))


def reads_masked_image(unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> bool:
    """Return True if a UNet reads mask and masked latents beside the latents, as for inpainting.

    Raises ValueError for a UNet with other inputs than those of SD1.5, SD2.1, SDXL and their inpainting models.
    """
    latents, channels = vae_config.get("latent_channels", 4), unet_config["in_channels"]  # 4: diffusers' default
    if channels not in (latents, 2 * latents + 1):
        raise ValueError(
            f"the model's UNet reads {channels} channels, expected {latents}, or {2 * latents + 1} for inpainting"
        )
    embed_type = unet_config.get("addition_embed_type")
    if embed_type not in (None, "text_time"):
        raise ValueError(f"the model's UNet has addition_embed_type {embed_type!r:.40}, expected that of SDXL, or none")
    return bool(channels != latents)


class FrozenBase:
    """A pipeline of SD1.5, SD2.1 or SDXL, or of their inpainting models, that is evaluated and stays unchanged.

    Raises ValueError for a UNet with other inputs.
    """

    def __init__(self, pipe: DiffusionPipeline, device: str):
        config = pipe.unet.config
        self.is_inpainting = reads_masked_image(config, pipe.vae.config)
        self.is_sdxl = config["addition_embed_type"] == "text_time"
        self.device = torch.device(device)
        self._pipe = pipe.to(device)
        self._attached = UndoStack()  # what a network changed of the UNet for a backward pass that needs it again
        self.unet = pipe.unet
        self._parts = [pipe.unet, pipe.vae, pipe.text_encoder, *([pipe.text_encoder_2] if self.is_sdxl else [])]
        for part in self._parts:
            part.requires_grad_(False).eval()
        if self.device.type == "cpu" and config["block_out_channels"][0] <= NARROW_CHANNELS:
            pipe.unet.set_attn_processor(AttnProcessor())
        self.empty_caption = self.encode_caption("")

    @property
    def pipe(self) -> Any:
        """The pipeline, as it was."""
        self.release()
        return self._pipe

    def release(self) -> None:
        """Take from the UNet what `predict` left on it for a backward pass that computes parts of it again."""
        self._attached.close()

    @torch.no_grad()
    def encode_latents(self, pixels: np.ndarray) -> Tensor:
        """Return the most likely latents (C, h, w), on the CPU, of RGB (H, W, 3) in 0..255, uint8 or float32.

        In float32 and one image at a time: an example is equal to the bit in any batch, so a resumed run is too.
        """
        with torch.autocast(self.device.type, enabled=False):
            return encode_vae_image(self._pipe.vae, pixels, self.device)[0].cpu()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return RGB (B, 3, H, W), about 0..1, of latents (B, C, h, w). Gradients flow to the latents alone."""
        vae = self._pipe.vae
        with torch.autocast(self.device.type, enabled=False):
            x = latents.to(self.device, vae.dtype) / vae.config["scaling_factor"]
            image: Tensor = vae.decode(x + (vae.config.get("shift_factor") or 0)).sample
        return image / 2 + 0.5

    @torch.no_grad()
    def encode_caption(self, caption: str) -> EncodedCaption:
        """Return the text states of a caption, on the CPU."""
        with torch.autocast(self.device.type, enabled=False):
            embeddings = self._pipe.encode_prompt(
                caption, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return EncodedCaption(embeddings[0][0].cpu(), embeddings[2][0].cpu() if self.is_sdxl else None)

    def build_added(
        self,
        caption: EncodedCaption,
        size: tuple[int, int],
        image_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
    ) -> Tensor | None:
        """Return SDXL's added numbers (P + 6,): the pooled caption and the sizes; None for other models.

        `size` is (height, width) of the example, `image_size` that of the image before it was cropped, by default the
        same, and `crop` the (top, left) of the crop in it, all in pixels.
        """
        if caption.pooled is None:
            return None
        return torch.cat([caption.pooled, caption.pooled.new_tensor([*(image_size or size), *crop, *size])])

    def encode_extra(self, pixels: np.ndarray, mask: np.ndarray) -> Tensor | None:
        """Return what an inpainting UNet reads beside the latents, on the CPU; None for other models.

        That is (1 + C, h, w): the mask, and the latents of RGB uint8 (H, W, 3) that is gray where `mask` (H, W) bool
        is True, as in diffusers' inpainting pipelines.
        """
        if not self.is_inpainting:
            return None
        latents = self.encode_latents(np.where(mask[..., None], np.float32(127.5), pixels))
        small = F.interpolate(torch.from_numpy(mask)[None, None].float(), latents.shape[-2:])
        return torch.cat([small[0], latents])

    def predict(self, x: Tensor, t: Tensor, batch: EncodedBatch, net: LayerwiseOffload | None) -> Tensor:
        """Return the prediction (B, C, h, w) of the UNet for noised latents x (B, C, h, w) of a batch.

        `net` guides it with the maps of the batch; None predicts without control. Gradients flow to `net` alone.
        Where the UNet computes activations again in the backward pass, a network that acts inside it stays there until
        the next prediction, or `release`. Raises ValueError if the batch lacks what the model reads.
        """
        self.release()
        x, t, context = x.to(self.device), t.to(self.device), batch.context.to(self.device)
        if self.is_inpainting:
            if batch.extra is None:
                raise ValueError("an inpainting model needs the mask and the masked latents of the batch")
            x = torch.cat([x, batch.extra.to(self.device)], dim=1)
        arguments: dict[str, Any] = {}
        step = Step(x, t, context, Span(0, 1))
        if self.is_sdxl:
            if batch.added is None:
                raise ValueError("an SDXL needs the pooled text states and the sizes of the batch")
            arguments["added_cond_kwargs"] = self._split_added(batch.added.to(self.device))
            step = replace(step, added=self._embed_added(**arguments["added_cond_kwargs"]))
        if net is None:
            return self._call_unet(step, arguments)
        hint = net.hint(batch.maps)
        if isinstance(net, AttentionModel):
            return self._call_inside(net, step, hint, arguments)
        residuals: Residuals = net(step, hint)
        return self._call_unet(step, {**arguments, **_name_residuals(residuals)})

    def _call_inside(self, net: AttentionModel, step: Step, hint: Hint, arguments: dict[str, Any]) -> Tensor:
        activation = Activation(step, torch.ones(len(step.x), device=self.device), None, None, 0)
        is_needed_again = False
        try:
            host = DiffusersHost(self._pipe, self.unet)
            self._attached.enter_context(net.attach(host, hint, lambda: activation))
            prediction = self._call_unet(step, arguments)
            is_needed_again = torch.is_grad_enabled() and self.unet.is_gradient_checkpointing
            return prediction
        finally:
            if not is_needed_again:
                self.release()

    def _call_unet(self, step: Step, arguments: dict[str, Any]) -> Tensor:
        prediction: Tensor = self.unet(step.x, step.t, step.context, **arguments).sample
        return prediction

    def _split_added(self, vectors: Tensor) -> dict[str, Tensor]:
        return {"text_embeds": vectors[:, :-SIZE_COUNT], "time_ids": vectors[:, -SIZE_COUNT:]}

    def _embed_added(self, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
        """Return `Step.added`, with the sizes as the UNet embeds them."""
        sizes = self.unet.add_time_proj(time_ids.flatten()).reshape(len(time_ids), -1)
        return torch.cat([text_embeds, sizes], dim=1)


def _name_residuals(residuals: Residuals) -> dict[str, Any]:
    """Return residuals as arguments of a diffusers UNet, which empties the list of those inside its encoder."""
    if residuals.encoder:
        return {ENCODER_ARGUMENT: list(residuals.encoder)}
    return {SKIPS_ARGUMENT: residuals.skips, MIDDLE_ARGUMENT: residuals.middle}
