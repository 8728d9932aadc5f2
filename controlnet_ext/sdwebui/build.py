"""From what a client's unit says to a `Unit`, with its map made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from ..generation.inpainting import BLUR, FILLS, Finish, finish_of
from ..guidance.after_steps import Colours, of_preprocessor
from ..guidance.contract import ControlModel
from ..guidance.unit import Unit
from ..guidance.weighting import scales
from ..maps.control_map import ControlMap
from ..maps.resize import around, fit, pixel_perfect
from ..preprocessors.registry import Ready
from .modules import HIGH, LOW, values
from .pictures import Pair
from .units import WebuiUnit


@dataclass(frozen=True, eq=False)
class Guided:
    """A unit at work, the picture of its map (H, W, 3) as large as the result, the listed name of its model, what is
    done to pictures in the end, and the picture (H, W, 3) that a first pass begins with in its noise."""

    unit: Unit
    map: np.ndarray
    model: str
    finish: Finish | None = None
    begins: np.ndarray | None = None

    def units(self, hires: bool) -> list[Unit]:
        """The unit; for hires fix two where the second pass has options of its own: the colours of tile_colorfix come
        from boxes twice as large there."""
        unit, after = self.unit, self.unit.after
        if not hires or not isinstance(after, Colours) or unit.passes == "first":
            return [unit]
        second = replace(unit, passes="second", after=replace(after, variation=2 * after.variation))
        return [second] if unit.passes == "second" else [replace(unit, passes="first"), second]


def beginning_of(made: Sequence[Guided], hires: bool) -> np.ndarray | None:
    """What the first pass begins with: of the first unit that acts in it and wants something."""
    acting = (each for each in made if not (hires and each.unit.passes == "second"))
    return next((each.begins for each in acting if each.begins is not None), None)


def guided(
    asked: WebuiUnit,
    model: str,
    net: ControlModel,
    ready: Callable[[str], Ready],
    size: tuple[int, int],
    blur: int = BLUR,
) -> Guided:
    """The unit, which has an image, for results of this height and width. ValueError, TypeError or FileNotFoundError in
    one line, without the unit's name. `ready` gives a preprocessor by name; `blur` is that of the border where an
    inpainted picture meets its original."""
    entry = asked.module
    inpaints = entry is not None and entry.makes == "inpaint"
    sources = [_source(pair, inpaints) for pair in asked.images]
    mask = asked.images[0][1] if inpaints and len(sources) == 1 else None
    if entry is not None and inpaints and asked.fit == "fill" and len(sources) == 1:
        mask = np.zeros_like(sources[0]) if mask is None else mask  # what is added around is to be painted
        if entry.masked:
            sources[0], mask = around(sources[0], _sized(mask, sources[0]), *size)
    maps = [_made(asked, image, mask, ready, size) for image in sources]
    white = None if mask is None else _sized(mask, maps[0])
    shown = [fit(pixels, *size, asked.fit) for pixels in maps]
    pictures: list[Any] = maps  # the host fits them, for each pass to its size
    if entry is not None:
        pictures = [ControlMap(pixels, entry.makes) for pixels in pictures]
    network: Any = net
    if asked.union is not None and hasattr(net, "of"):
        network = network.of(*[asked.union] * len(sources))
    mode, layers = asked.mode, asked.layers
    weight = asked.weight if asked.schedule is None else asked.schedule
    if layers is not None:  # they replace weight and soft weights, which ours multiply
        weight, (mode, layers) = asked.schedule or 1.0, _replacing(mode, layers)
    how: Any = {"fit": asked.fit, "mode": mode, "passes": asked.passes}
    unit = Unit(
        network,
        tuple(pictures) if len(pictures) > 1 else pictures[0],
        weight,
        asked.window,
        layers=layers,
        region=None
        if asked.region is None
        else cv2.cvtColor(asked.region, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255,
        inpaint=white,
        low_vram=asked.low_vram,
        after=None if entry is None else of_preprocessor(entry.name, values(entry, -1, asked.a, asked.b)),
        **how,
    )
    if entry is None or (asked.weight == 0 and asked.schedule is None):
        return Guided(unit, shown[0], model)
    finish = finish_of(entry.name, maps[0], white, asked.fit, blur)
    return Guided(unit, shown[0], model, finish, shown[0] if entry.name == FILLS else None)


def _made(
    asked: WebuiUnit, image: np.ndarray, mask: np.ndarray | None, ready: Callable[[str], Ready], size: tuple[int, int]
) -> np.ndarray:
    """What the module makes of an image."""
    if asked.module is None:
        return image
    given = values(asked.module, asked.resolution, asked.a, asked.b)
    if asked.pixel_perfect and "resolution" in given:
        matching = pixel_perfect(image.shape[0], image.shape[1], *size, asked.fit)
        given["resolution"] = min(max(matching, LOW), HIGH)
    masked = _sized(mask, image) if asked.module.masked and mask is not None else None
    return ready(asked.module.name)(image, masked, **given).pixels


def _source(pair: Pair, inpaints: bool) -> np.ndarray:
    """The image; a partly painted mask instead of it, unless the module inpaints: a scribble on the canvas."""
    image, mask = pair
    if inpaints or mask is None or not (mask > 127).any() or (mask > 127).all():
        return image
    return mask


def _sized(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask as large as its image, black and white."""
    sized = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(sized > 127, np.uint8(255), np.uint8(0))


def _replacing(mode: str, layers: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    """Mode and factors such that the layers' scales are `layers`; "control" still acts on the prompt's rows only."""
    if mode != "control":
        return "balanced", layers
    adapter = len(layers) == 4
    outer, inner = scales(1, mode, None, 0 if adapter else len(layers) - 1, 4 if adapter else 0)
    return mode, tuple(value / soft for value, soft in zip(layers, inner if adapter else outer, strict=True))
