"""The numbers that decide whether a control model fits a UNet, and the words that say why it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...guidance.contract import UNet

SD_SKIPS = (320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280)
SDXL_SKIPS = (320, 320, 320, 320, 640, 640, 640, 1280, 1280)
FAMILY_LABELS = {"sd15": "SD1.5", "sd21": "SD2.1", "sdxl": "SDXL"}


@dataclass(frozen=True)
class UNetSignature:
    """The numbers of a UNet that a control model meets: channels of x, width of the prompt's context (None: reads no
    prompt), width of SDXL's added vector (None: takes none), channels of each of the encoder's skips in order, and
    of the middle block."""

    in_channels: int
    context_width: int | None
    added_width: int | None
    skip_channels: tuple[int, ...]
    middle_channels: int

    @classmethod
    def from_unet(cls, unet: UNet) -> UNetSignature:
        """The layout of a diffusers UNet2DConditionModel or UNetMotionModel, with or without LoRA layers on it.

        Nothing is read of resnets and downsamplers, which wrappers (split inference) may hide.
        """
        config = unet.config
        widths = config["block_out_channels"]
        skips = [widths[0]]
        for width, level in zip(widths, unet.down_blocks, strict=True):
            skips += [width] * (len(level.resnets) + len(level.downsamplers or ()))
        return cls(
            in_channels=config["in_channels"],
            context_width=_get_prompt_width(config),
            added_width=config["projection_class_embeddings_input_dim"] if config["addition_embed_type"] else None,
            skip_channels=tuple(skips),
            middle_channels=config["block_out_channels"][-1],
        )

    @property
    def family(self) -> str:
        """For messages: "sd15", "sd21" or "sdxl" at the published widths, else "sd". The numbers decide what fits."""
        if self.skip_channels == SDXL_SKIPS and self.added_width == 2816:
            return "sdxl"
        if self.skip_channels == SD_SKIPS and self.added_width is None:
            return {768: "sd15", 1024: "sd21"}.get(self.context_width or 0, "sd")
        return "sd"

    @property
    def label(self) -> str:
        """The UNet's family in words, for messages: "SD1.5", or "narrow SD (context 32)"."""
        if self.family in FAMILY_LABELS:
            return FAMILY_LABELS[self.family]
        kind = "SDXL" if self.added_width is not None else "SD"
        width = "narrow" if self.skip_channels[0] < 320 else "wide" if self.skip_channels[0] > 320 else "unusual"
        return f"{width} {kind} (context {self.context_width})"


def incompatibility(net: UNetSignature, unet: UNetSignature) -> str | None:
    """Why `net` cannot guide `unet`, in one line; None when it can.

    A UNet may have more channels than the net reads, because diffusers and ldm put the noisy latents first: an
    inpainting UNet's 9 are 4 of latents, 1 of mask, 4 of the masked image. A net without attention fits any
    context.
    """
    pairs = [
        ("latent channels", net.in_channels, min(net.in_channels, unet.in_channels)),
        ("context width", net.context_width, net.context_width and unet.context_width),
        ("added vector width", net.added_width, unet.added_width),
        ("skip widths", net.skip_channels, unet.skip_channels),
        ("middle width", net.middle_channels, unet.middle_channels),
    ]
    different = [(what, a, b) for what, a, b in pairs if a != b]
    if not different:
        return None
    if net.family != unet.family:
        return f"{net.label} ControlNet, but the model is {unet.label}"
    what, a, b = different[0]
    return f"the ControlNet has {what} {_format_number(a)}, but the model has {_format_number(b)}"


def _get_prompt_width(config: Mapping[str, Any]) -> int | None:
    """Width of the prompt embeddings a pipeline passes; Kolors' UNet projects them to its own width first."""
    if config["encoder_hid_dim_type"] == "text_proj":
        prompt_width: int | None = config["encoder_hid_dim"]
        return prompt_width
    width = config["cross_attention_dim"]
    if isinstance(width, int) or width is None:
        return width
    widths = set(width)
    return widths.pop() if len(widths) == 1 else None


def _format_number(number: object) -> str:
    return "-".join(map(str, number)) if isinstance(number, tuple) else str(number or "none")
