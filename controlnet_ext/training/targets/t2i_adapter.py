"""T2I-Adapter: features of the map that are added inside the UNet's encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers

from ...models.kinds import t2i_adapter
from . import TargetSettings, TrainingTarget

if TYPE_CHECKING:
    from ...guidance.contract import UNet
    from ...models.kinds.t2i_adapter import T2IAdapter


class T2IAdapterTarget(TrainingTarget):
    """A full T2I-Adapter, drawn at random as diffusers draws it; so a fresh one acts already, if only a little."""

    kind = "t2i_adapter"
    diffusers_class = "T2IAdapter"

    def create_fresh(self, unet: UNet, settings: TargetSettings) -> T2IAdapter:
        """Return an adapter of random weights, in float32: for SDXL the larger kind, one level of which is added in
        the middle block."""
        widths: list[int] = list(unet.config["block_out_channels"])
        factor = t2i_adapter.get_downscale_factor(unet)
        config: dict[str, Any] = {"adapter_type": "full_adapter", "downscale_factor": factor, "channels": widths}
        if factor == 16:
            config |= {"adapter_type": "full_adapter_xl", "channels": [*widths, widths[-1]]}
        adapter: Any = diffusers.T2IAdapter(**config)
        return t2i_adapter.load(adapter.state_dict(), config)


TARGET = T2IAdapterTarget()
