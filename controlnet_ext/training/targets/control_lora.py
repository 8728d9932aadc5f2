"""Control-LoRA: a ControlNet as low-rank differences from the encoder of the UNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...models.kinds.control_lora import ControlLora
from . import DEFAULT_RANK, TargetSettings, TrainingTarget

if TYPE_CHECKING:
    from ...guidance.contract import UNet


class ControlLoraTarget(TrainingTarget):
    """A Control-LoRA. A fresh one acts as nothing; beside an inpainting UNet it reads the latents alone."""

    kind = "control_lora"
    has_rank = True

    def check_unet(self, unet: UNet, settings: TargetSettings) -> None:
        """Raise ValueError for a rank at which factors are no smaller than what they stand for."""
        widest = max(unet.config["block_out_channels"])
        if settings.rank is not None and not 1 <= settings.rank < widest:
            raise ValueError(f"rank {settings.rank} is outside 1..{widest - 1}, which this model's matrices have")

    def create_fresh(self, unet: UNet, settings: TargetSettings) -> ControlLora:
        """Return factors that make nothing, and zero convolutions, in float32."""
        rank = DEFAULT_RANK if settings.rank is None else settings.rank
        return ControlLora.from_unet(unet, rank, unet.config["out_channels"])


TARGET = ControlLoraTarget()
