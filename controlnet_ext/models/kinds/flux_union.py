"""Union ControlNets for Flux: diffusers' own network, told which kind of map it reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ...guidance.contract import Residuals
from ..map_types import MapTypeSelection
from .transformer import UNION_MARKER_KEY, TransformerControlNet, TransformerStep, load_network

# Kinds of map by number (the README of Shakker-Labs' and InstantX's FLUX.1-dev-ControlNet-Union-Pro); 3 and 6, for
# blurred and poor pictures, are no kinds of ours
FLUX_MODE_NUMBERS = {"edges": 0, "tile": 1, "depth": 2, "pose": 4, "luminance": 5}


class FluxUnion(MapTypeSelection, TransformerControlNet):
    """Residuals from maps whose kinds are known: from `ControlMap.kind`, from the preprocessor, or said by
    `union.with_types("depth")`. A unit's images share its weight; each may be of its own kind."""

    architecture = "controlnet-union"
    multi_hint = True

    def __init__(self, net: Any):
        super().__init__(net, "flux")

    def with_types(self, *kinds: str | int) -> FluxUnion:
        """This network on the same weights, for units with as many images, of these kinds in this order: of `MODES`, or
        numbers of the network's. ValueError when it does not read one."""
        numbers = tuple(FLUX_MODE_NUMBERS.get(kind, -1) if isinstance(kind, str) else int(kind) for kind in kinds)
        count = self.net.config.num_mode
        if not kinds or not all(0 <= number < count for number in numbers):
            asked = ", ".join(map(repr, kinds)) or "nothing"
            raise ValueError(
                f"the ControlNet Union was asked for {asked}, and reads {', '.join(FLUX_MODE_NUMBERS)}, or "
                f"0..{count - 1}"
            )
        told = copy(self)
        told.types = numbers
        return told

    def forward(self, step: TransformerStep, hints: Sequence[Tensor]) -> Residuals:  # type: ignore[override]
        """Residuals of weight 1, those of all hints shared, of each kind that it was told."""
        total = Residuals()
        for hint, number in zip(hints, self.types or (), strict=True):
            mode = torch.full((len(step.x), 1), number, device=step.x.device)
            total += self.compute_residuals(step, hint, controlnet_mode=mode).map(lambda h, _: h / len(hints))
        return total

    def details(self) -> dict[str, Any]:
        """As `TransformerControl.details`."""
        return {**super().details(), "reads": ", ".join(FLUX_MODE_NUMBERS)}


def detect(names: Collection[str]) -> bool:
    """Whether these are the names of such a union's tensors."""
    return UNION_MARKER_KEY in names


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> FluxUnion:
    """The union with these tensors, which it shares. ValueError as `transformer_controls.load`."""
    return FluxUnion(load_network(tensors, config, "flux"))
