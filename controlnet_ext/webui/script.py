"""The always-on script "ControlNet": from the arguments of a request to guided samples, maps and PNG info.

Its arguments are objects, one a unit, with the fields that sdwebui/units.py reads (so the API sends
them), or the values of the panel's components in the order of `panel.FIELDS`, unit after unit. Images are base64 or
arrays (H, W, 3 or 4) uint8.

A picture for each image of a folder, or from the picture before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from modules import scripts
from PIL import Image

from ..batch.inputs import SUFFIXES
from ..files.image_reader import read_image
from ..guidance.unit import named
from ..sdwebui.build import Guided, guided
from ..sdwebui.infotext import unit_text
from ..sdwebui.units import WebuiUnit, read_unit
from . import host, settings
from .fields import said_by
from .images import finished, keep, save_maps, with_images
from .panel import build
from .sampling import guide_samples, release


@dataclass
class Batch:
    """The images of units that have a folder, and which units loop, by place."""

    files: dict[int, list[Path]] = field(default_factory=dict)
    loops: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, said: Mapping[int, Mapping[str, Any]]) -> Batch:
        """Of what the panel says; a request's JSON has no say in which folders are read. ValueError on a folder without
        images."""
        on = {place: unit for place, unit in said.items() if "batch_folder" in unit and unit["enabled"]}
        folders = {place: str(unit["batch_folder"] or "").strip() for place, unit in on.items()}
        files = {place: _images(Path(folder), place) for place, folder in folders.items() if folder}
        return cls(files, {place for place, unit in on.items() if unit.get("loopback")})

    @property
    def count(self) -> int:
        """How many pictures, 0 without a folder: as many as the shortest has images."""
        return min(map(len, self.files.values()), default=0)

    @property
    def changes(self) -> bool:
        """Whether the images differ from picture to picture."""
        return bool(self.files or self.loops)

    def unit(self, place: int, unit: WebuiUnit, iteration: int, last: np.ndarray | None) -> WebuiUnit:
        """The unit with the image of this iteration, from 0; `last` is the picture before."""
        if place in self.loops and last is not None:
            return replace(unit, images=((last, None),))
        if place in self.files:
            return replace(unit, images=((read_image(self.files[place][iteration]), None),))
        return unit


def _images(folder: Path, place: int) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"unit {place}: the batch folder {str(folder)!r} does not exist")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"unit {place}: the batch folder {str(folder)!r} holds no images")
    return found


TITLE = "ControlNet"
Placed = tuple[int, WebuiUnit]  # with its place, from 1


class Request:
    """The units of one request. Models are looked up at once, for the PNG info; maps are made when the host samples,
    because only then it knows all sizes, and lets an error be seen."""

    def __init__(self, p: Any, args: Sequence[Any]):
        self._p, self.units, self.models = p, list[Placed](), list[str]()
        self.texts: dict[str, str] = {}  # for PNG info
        self.guided: list[Guided] = []
        self.last: np.ndarray | None = None  # the picture before
        self.batch = Batch()
        self.shown: list[np.ndarray] = []  # maps of all iterations
        self._iteration = -1
        self._error: Exception | None = None
        try:
            said = said_by(args, p, bool(settings.value("control_net_allow_script_control", False)))
            self.units = read_units(said, settings.units())
            self.models = [_model(place, unit) for place, unit in self.units]
            self.batch = Batch.of({place: said[place - 1] for place, _ in self.units})
            for (place, unit), model in zip(self.units, self.models, strict=True):
                self.texts[f"ControlNet {place - 1}"] = unit_text(unit, model) + keep(unit, p)
        except (ValueError, OSError) as error:
            self._error = error

    @property
    def asks(self) -> bool:
        """Whether there is something to do or to refuse."""
        return bool(self.units) or self._error is not None

    def made(self) -> list[Guided]:
        """The units at work."""
        if self._error is not None:
            raise self._error
        iteration = int(getattr(self._p, "iteration", 0))
        if not self.guided or (self.batch.changes and iteration != self._iteration):
            placed = zip(self.units, self.models, strict=True)
            self.guided = [self._guided(place, unit, model, iteration) for (place, unit), model in placed]
            self.shown += [each.map for (_, unit), each in zip(self.units, self.guided, strict=True) if unit.shows_map]
        self._iteration = iteration
        return self.guided

    def _guided(self, place: int, unit: WebuiUnit, model: str, iteration: int) -> Guided:
        p = self._p
        with named(f"unit {place}"):
            net = host.shelf().load(model, host.device(), host.dtype())
            unit = with_images(self.batch.unit(place, unit, iteration, self.last), p)
            return guided(unit, model, net, host.ready(), (p.height // 8 * 8, p.width // 8 * 8), settings.blur())


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

    def before_process(self, p: Any, *args: Any) -> None:
        """A picture for each image of a batch folder, with one seed, unless the settings say otherwise."""
        try:
            count = Batch.of(dict(enumerate(said_by(args, p, False)))).count
        except (ValueError, OSError):
            return  # `process` says so
        if count:
            p.n_iter = count

    def process(self, p: Any, *args: Any) -> None:
        """Read the units, and have the samples guided."""
        release(p)
        p.controlnet_ext = request = Request(p, args)
        if not request.asks:
            return
        p.extra_generation_params |= request.texts
        if request.batch.count and not settings.value("controlnet_increment_seed_during_batch", False):
            p.all_seeds = p.all_seeds[: p.batch_size] * p.n_iter
        guide_samples(p, request.made)

    def postprocess_batch(self, p: Any, *args: Any, images: Any, **_: Any) -> None:
        """Finish the pictures of a batch, `(B, 3, H, W)` in 0..1, in place."""
        request = vars(p).get("controlnet_ext")
        finishes = [each.finish for each in request.guided if each.finish is not None] if request else []
        if finishes:
            finished(images, finishes)

    def postprocess_image(self, p: Any, shown: Any, *args: Any) -> None:
        """Keep the picture, for units that loop."""
        request = vars(p).get("controlnet_ext")
        if request is not None and request.batch.loops:
            request.last = np.asarray(shown.image.convert("RGB"))

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Append the maps."""
        release(p)
        request = vars(p).pop("controlnet_ext", None)
        if request is None:
            return
        if settings.value("control_net_detectmap_autosaving", False):
            save_maps(request.shown)
        if not settings.value("control_net_no_detectmap", False):
            processed.images.extend(Image.fromarray(each) for each in request.shown)


def read_units(said: Sequence[Mapping[str, Any]], limit: int) -> list[Placed]:
    """The units that are on."""
    if len(said) > limit:
        raise ValueError(f"{len(said)} units, expected up to {limit}")
    units = [(i, read_unit(value, f"unit {i}")) for i, value in enumerate(said, 1)]
    return [(i, unit) for i, unit in units if unit is not None]


def _model(place: int, unit: WebuiUnit) -> str:
    with named(f"unit {place}"):
        if unit.model is None:
            raise ValueError("it is on and has no model; choose one, or switch the unit off")
        return host.shelf().find(unit.model)
