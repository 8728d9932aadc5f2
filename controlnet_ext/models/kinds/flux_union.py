"""Union ControlNets for Flux: diffusers' own network, which is given the kind of map it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...guidance.contract import Residuals
from .. import KeyMarkers, ModelKind
from ..map_types import MapTypeSelection
from .transformer import UNION_MARKER_KEY, TransformerControlNet, TransformerStep, load_network

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

# Kinds of map by number (the README of Shakker-Labs' and InstantX's FLUX.1-dev-ControlNet-Union-Pro); 3 and 6, for
# blurred and poor images, are no kinds of ours
FLUX_MODE_NUMBERS = {"edges": 0, "tile": 1, "depth": 2, "pose": 4, "luminance": 5}


class FluxUnion(MapTypeSelection, TransformerControlNet):
    """Residuals from maps whose kinds are known: from `ControlMap.kind`, the preprocessor, or `with_types("depth")`.

    The images of a unit share its weight; each may be of its own kind.
    """

    architecture = "controlnet-union"
    multi_hint = True

    def __init__(self, net: ModelMixin):
        super().__init__(net, "flux")

    def with_types(self, *kinds: str | int) -> FluxUnion:
        """Return this network on the same weights, for units with as many images, of these kinds in this order.

        Kinds are keys of `FLUX_MODE_NUMBERS`, or numbers of the network's. Raises ValueError if it does not read one.
        """
        numbers = tuple(FLUX_MODE_NUMBERS.get(kind, -1) if isinstance(kind, str) else int(kind) for kind in kinds)
        count = self.net.config.num_mode
        if not kinds or not all(0 <= number < count for number in numbers):
            names = ", ".join(map(repr, kinds)) or "nothing"
            raise ValueError(
                f"the ControlNet Union was asked for {names}, and reads {', '.join(FLUX_MODE_NUMBERS)}, or "
                f"0..{count - 1}"
            )
        union = copy(self)
        union.types = numbers
        return union

    def forward(self, step: TransformerStep, hints: Sequence[Tensor]) -> Residuals:  # type: ignore[override]
        """Return residuals of weight 1, the mean over all hints, each for its kind."""
        total = Residuals()
        for hint, number in zip(hints, self.types or (), strict=True):
            mode = torch.full((len(step.x), 1), number, device=step.x.device)
            total += self.compute_residuals(step, hint, controlnet_mode=mode).map(lambda h, _: h / len(hints))
        return total

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        return {**super().details(), "reads": ", ".join(FLUX_MODE_NUMBERS)}


detect = KeyMarkers(((re.escape(UNION_MARKER_KEY),),))


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> FluxUnion:
    """Return the union with these tensors, which it shares. Raises ValueError like `transformer.load`."""
    return FluxUnion(load_network(tensors, config, "flux"))


KIND = ModelKind("flux_union", detect, load)
