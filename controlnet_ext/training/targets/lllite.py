"""ControlLLLite: small networks in front of the attention of an SDXL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...models.kinds.lllite import ControlLLLite
from ...models.state_dict.compatibility import UNetSignature
from . import TargetSettings, TrainingTarget

if TYPE_CHECKING:
    from ...guidance.contract import UNet


class LLLiteTarget(TrainingTarget):
    """A ControlLLLite. A fresh one acts as nothing."""

    kind = "lllite"
    can_compile = False

    def check_unet(self, unet: UNet, settings: TargetSettings) -> None:
        """Raise ValueError for a UNet that is no SDXL's: the programs that read such files have no other."""
        signature = UNetSignature.from_unet(unet)
        if signature.added_width is None:
            raise ValueError(f"a ControlLLLite is made for SDXL, but the model is {signature.label}")

    def create_fresh(self, unet: UNet, settings: TargetSettings) -> ControlLLLite:
        """Return networks whose last layers are zero, in float32."""
        return ControlLLLite.from_unet(unet)


TARGET = LLLiteTarget()
