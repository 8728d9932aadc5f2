"""The always-on script "ControlNet": from the arguments of a request to guided samples, maps and PNG info.

Its arguments are objects, one a unit, with the fields that controlnet_ext/server/webui_unit.py reads (so the API sends
them), or the values of the panel's components in the order of `panel.FIELDS`, unit after unit. Images are base64 or
arrays (H, W, 3 or 4) uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from modules import scripts
from PIL import Image

from ..server.guided import Guided, guided
from ..server.infotext import unit_text
from ..server.webui_unit import WebuiUnit, read_unit
from ..unit import Unit, named
from . import host, settings
from .images import with_images
from .panel import build, rows
from .sampling import guide_samples, release

TITLE = "ControlNet"
Placed = tuple[int, WebuiUnit]  # with its place, from 1


class Request:
    """The units of one request. Models are looked up at once, for the PNG info; maps are made when the host samples,
    because only then it knows all sizes, and lets an error be seen."""

    def __init__(self, p: Any, args: Sequence[Any]):
        self._p, self.units, self.models = p, list[Placed](), list[str]()
        self.guided: list[Guided] | None = None
        self._error: Exception | None = None
        try:
            self.units = read_units(args, settings.units())
            self.models = [_model(place, unit) for place, unit in self.units]
        except ValueError as error:
            self._error = error

    @property
    def asks(self) -> bool:
        """Whether there is something to do or to refuse."""
        return bool(self.units) or self._error is not None

    def made(self) -> list[Unit]:
        """The units at work."""
        if self._error is not None:
            raise self._error
        if self.guided is None:
            placed = zip(self.units, self.models, strict=True)
            self.guided = [_guided(self._p, place, unit, model) for (place, unit), model in placed]
        return [each.unit for each in self.guided]

    @property
    def maps(self) -> list[np.ndarray]:
        """Those to be shown."""
        made = zip(self.units, self.guided or (), strict=False)
        return [each.map for (_, unit), each in made if unit.shows_map]


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
        """Read the units, and have the samples guided."""
        release(p)
        p.controlnet_ext = request = Request(p, args)
        if not request.asks:
            return
        for (place, unit), model in zip(request.units, request.models, strict=False):
            p.extra_generation_params[f"ControlNet {place - 1}"] = unit_text(unit, model)
        guide_samples(p, request.made)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Append the maps."""
        release(p)
        request = vars(p).pop("controlnet_ext", None)
        if request is not None and not settings.value("control_net_no_detectmap", False):
            processed.images.extend(Image.fromarray(each) for each in request.maps)


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


def _model(place: int, unit: WebuiUnit) -> str:
    with named(f"unit {place}"):
        if unit.model is None:
            raise ValueError("it is on and has no model; choose one, or switch the unit off")
        return host.shelf().find(unit.model)


def _guided(p: Any, place: int, unit: WebuiUnit, model: str) -> Guided:
    with named(f"unit {place}"):
        net = host.shelf().load(model, host.device(), host.dtype())
        size = p.height // 8 * 8, p.width // 8 * 8
        return guided(with_images(unit, p), model, net, host.ready(), size)
