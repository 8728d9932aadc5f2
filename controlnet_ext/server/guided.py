"""From what a client's unit says to a `Unit`, with its map made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from preprocessors.maps import ControlMap

from ..control import ControlModel
from ..maps import Maps
from ..unit import Unit
from ..weighting import scales
from .modules import values
from .pictures import Pair
from .webui_unit import WebuiUnit


@dataclass(frozen=True, eq=False)
class Guided:
    """A unit at work, the picture of its map (H, W, 3) as large as the result, and the listed name of its model."""

    unit: Unit
    map: np.ndarray
    model: str


def guided(asked: WebuiUnit, model: str, net: ControlModel, height: int, width: int) -> Guided:
    """The unit, which has an image, for results of this size. ValueError, TypeError or FileNotFoundError in one line,
    without the unit's name."""
    entry, inpaints = asked.module, asked.module is not None and asked.module.makes == "inpaint"
    sources = tuple(_source(pair, inpaints) for pair in asked.images)
    mask = asked.images[0][1] if inpaints and len(asked.images) == 1 else None
    network: Any = net
    if asked.union is not None and hasattr(net, "of"):
        network = network.of(*[asked.union] * len(sources))
    weight, layers = asked.weight, asked.layers
    mode: Any = asked.mode
    if layers is not None:  # they replace weight and soft weights, which ours multiply
        weight, (mode, layers) = 1.0, _replacing(mode, layers)
    given = values(entry, asked.resolution, asked.a, asked.b, asked.pixel_perfect) if entry else {}
    fit: Any = asked.fit
    unit = Unit(
        network,
        sources if len(sources) > 1 else sources[0],
        weight,
        asked.window,
        mode,
        layers,
        None if asked.region is None else cv2.cvtColor(asked.region, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255,
        _sized(mask, sources[0]),
        fit,
        entry.name if entry else None,
        given,
        "both",
        asked.low_vram,
    )
    maps = [each[0] for each in Maps(unit).at(height, width)]
    if mask is not None:
        pixels = np.rint(maps[0].transpose(1, 2, 0).clip(0) * 255).astype(np.uint8)
        return Guided(unit, np.ascontiguousarray(pixels), model)
    kind = entry.makes if entry else asked.union or "other"
    made = tuple(ControlMap(pixels, kind) for pixels in maps) if entry else tuple(maps)
    return Guided(_with_maps(unit, made if len(made) > 1 else made[0]), maps[0], model)


def _with_maps(unit: Unit, image: Any) -> Unit:
    return replace(unit, image=image, preprocessor=None, parameters={})


def _source(pair: Pair, inpaints: bool) -> np.ndarray:
    """The image; a partly painted mask instead of it, unless the module inpaints: a scribble on the canvas."""
    image, mask = pair
    if inpaints or mask is None or not (mask > 127).any() or (mask > 127).all():
        return image
    return mask


def _sized(mask: np.ndarray | None, image: np.ndarray) -> np.ndarray | None:
    """The mask as large as its image, black and white."""
    if mask is None:
        return None
    sized = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(sized > 127, np.uint8(255), np.uint8(0))


def _replacing(mode: str, layers: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """Mode and factors such that the layers' scales are `layers`; "control" still acts on the prompt's rows only."""
    if mode != "control":
        return "balanced", layers
    adapter = len(layers) == 4
    outer, inner = scales(1, mode, None, 0 if adapter else len(layers) - 1, 4 if adapter else 0)
    return mode, tuple(value / soft for value, soft in zip(layers, inner if adapter else outer, strict=True))
