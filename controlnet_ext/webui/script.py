"""The always-on script "ControlNet": from the arguments of a request to guided samples, maps and PNG info.

Its arguments are objects, one a unit, with the fields that controlnet_ext/server/webui_unit.py reads (so the API sends
them), or the values of the panel's components in the order of `panel.FIELDS`, unit after unit. Images are base64 or
arrays (H, W, 3 or 4) uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from modules import scripts
from PIL import Image

from ..server.guided import Guided, guided
from ..server.infotext import unit_text
from ..server.webui_unit import FITS, WebuiUnit, read_unit
from ..unit import Unit, named
from . import host, settings
from .panel import build, rows
from .sampling import guide_samples, release

TITLE = "ControlNet"
Placed = tuple[int, WebuiUnit]  # with its place, from 1


@dataclass(eq=False)
class Request:
    """What one request's units became."""

    units: list[Placed]
    guided: list[Guided] = field(default_factory=list)
    error: Exception | None = None


class ControlNetScript(scripts.Script):
    """One for txt2img, one for img2img."""

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        shown = build(self, is_img2img, settings.units())
        self.infotext_fields, self.paste_field_names = shown.pasted, [name for _, name in shown.pasted if name]
        return shown.components

    def process(self, p: Any, *args: Any) -> None:
        """Make the maps, load the models. What is wrong is raised when the host samples: here it would only log it."""
        release(p)
        vars(p).pop("controlnet_ext", None)
        try:
            units = read_units(args, settings.units())
        except ValueError as error:
            request = Request([], error=error)
        else:
            if not units:
                return
            request = Request(units)
        p.controlnet_ext = request
        try:
            if request.error is None:
                request.guided = [_guided(p, place, unit) for place, unit in request.units]
        except (ValueError, TypeError, FileNotFoundError, OSError) as error:
            request.error = error
        for (place, unit), made in zip(request.units, request.guided, strict=False):
            p.extra_generation_params[f"ControlNet {place - 1}"] = unit_text(unit, made.model)
        guide_samples(p, lambda: _units(request))

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Append the maps."""
        request = vars(p).get("controlnet_ext")
        release(p)
        if request is None or settings.value("control_net_no_detectmap", False):
            return
        for (_, unit), made in zip(request.units, request.guided, strict=False):
            if unit.shows_map:
                processed.images.append(Image.fromarray(made.map))


def read_units(args: Sequence[Any], limit: int) -> list[Placed]:
    """The units that are on."""
    said = [value for value in args if isinstance(value, Mapping)] if _from_api(args) else list(rows(args))
    if len(said) > limit:
        raise ValueError(f"{len(said)} units, expected up to {limit}")
    units = [(i, read_unit(value, f"unit {i}")) for i, value in enumerate(said, 1)]
    return [(i, unit) for i, unit in units if unit is not None]


def _from_api(args: Sequence[Any]) -> bool:
    """Whether the arguments are units; the image of the panel's units is an object too, but never their first field."""
    return bool(args) and isinstance(args[0], Mapping)


def _units(request: Request) -> list[Unit]:
    if request.error is not None:
        raise request.error
    return [each.unit for each in request.guided]


def _guided(p: Any, place: int, unit: WebuiUnit) -> Guided:
    with named(f"unit {place}"):
        if not unit.images:
            unit = replace(unit, images=(_initial(p),), fit=_fit(p))
        if unit.model is None:
            raise ValueError("it is on and has no model; choose one, or switch the unit off")
        shelf = host.shelf()
        model = shelf.find(unit.model)
        net = shelf.load(model, host.device(), host.dtype())
        return guided(unit, model, net, host.ready(), (p.height // 8 * 8, p.width // 8 * 8))


def _initial(p: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """img2img's picture, with its mask."""
    images = [image for image in getattr(p, "init_images", None) or () if image is not None]
    if not images:
        raise ValueError("it is on and has no image")
    mask = getattr(p, "image_mask", None)
    return np.asarray(images[0].convert("RGB")), None if mask is None else np.asarray(mask.convert("RGB"))


def _fit(p: Any) -> str:
    """The host's own way of resizing img2img's picture."""
    mode = int(getattr(p, "resize_mode", 0) or 0)
    return FITS[mode][1] if mode < 4 else "stretch"
