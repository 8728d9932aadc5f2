"""The always-on script "ControlNet": from the arguments of a request to guided samples, maps and PNG info.

Its arguments are objects, one a unit, with the fields of sdwebui/units.py (as the API sends them), or the values of
the panel's components in the order of `inputs.PANEL_UNIT_FIELDS`, unit after unit. Images are base64 or arrays (H, W,
3 or 4) uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from modules import scripts
from PIL import Image

from ..batch.inputs import IMAGE_SUFFIXES
from ..errors import error_prefix
from ..files.image_reader import read_image
from ..sdwebui.build import BuiltUnit, resolve_model_name
from ..sdwebui.infotext import format_unit_text
from ..sdwebui.units import WebuiUnit, parse_webui_units
from . import host
from .inputs import (
    apply_finishes,
    get_host_inputs,
    is_upscale_tile,
    read_request_units,
    save_maps,
    save_unit_inputs,
)
from .panel import build_panel
from .sampling import TiledNetwork, guide_sampling, stop_guiding


@dataclass
class BatchInputs:
    """Batch folders and loopback: the image files of units by number, and the numbers of units that take the image
    before."""

    files_by_unit: dict[int, list[Path]] = field(default_factory=dict)
    looping_units: set[int] = field(default_factory=set)

    @classmethod
    def from_units(cls, units: Mapping[int, Mapping[str, Any]]) -> BatchInputs:
        """Read the panel's batch folders; a request's JSON cannot name folders. Raises ValueError for a folder without
        images."""
        on = {place: unit for place, unit in units.items() if "batch_folder" in unit and unit["enabled"]}
        folders = {place: str(unit["batch_folder"] or "").strip() for place, unit in on.items()}
        files = {place: _list_images(Path(folder), place) for place, folder in folders.items() if folder}
        return cls(files, {place for place, unit in on.items() if unit.get("loopback")})

    @property
    def image_count(self) -> int:
        """Number of images to generate: that of the shortest folder, 0 without a folder."""
        return min(map(len, self.files_by_unit.values()), default=0)

    @property
    def has_changing_images(self) -> bool:
        """True if units have another image in each iteration."""
        return bool(self.files_by_unit or self.looping_units)

    def with_iteration_image(
        self, unit_number: int, unit: WebuiUnit, iteration: int, last_image: np.ndarray | None
    ) -> WebuiUnit:
        """Return the unit with the image of this iteration, from 0. `last_image` (H, W, 3) uint8 is the result before,
        None in the first iteration."""
        if unit_number in self.looping_units and last_image is not None:
            return replace(unit, images=((last_image, None),))
        if unit_number in self.files_by_unit:
            with error_prefix(f"unit {unit_number}"):
                return replace(unit, images=((read_image(self.files_by_unit[unit_number][iteration]), None),))
        return unit


def _list_images(folder: Path, unit_number: int) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"unit {unit_number}: the batch folder {str(folder)!r} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"unit {unit_number}: the batch folder {str(folder)!r} holds no images")
    return paths


SCRIPT_TITLE = "ControlNet"
NumberedUnit = tuple[int, WebuiUnit]  # with its place, from 1


class GenerationState:
    """The units of one request. Models are looked up at once, for PNG info; maps are made when the host samples,
    because only then all sizes are known and errors are shown."""

    def __init__(self, p: Any, args: Sequence[Any]):
        self._p, self.units = p, list[NumberedUnit]()
        self.infotexts: dict[str, str] = {}  # for PNG info
        self.built_units: list[BuiltUnit] = []
        self.last_image: np.ndarray | None = None  # the result before
        self.batch_inputs = BatchInputs()
        self.collected_maps: list[np.ndarray] = []  # maps of all iterations
        self._iteration = -1
        self._error: Exception | None = None
        try:
            entries = read_request_units(args, p, bool(host.get_setting("control_net_allow_script_control", False)))
            self.units = list(parse_webui_units(entries, host.get_unit_count()))
            self.batch_inputs = BatchInputs.from_units({place: entries[place - 1] for place, _ in self.units})
            for number, unit in self.units:
                with error_prefix(f"unit {number}"):
                    model_name = resolve_model_name(unit, host.get_model_catalog())
                text = format_unit_text(unit, model_name) + save_unit_inputs(unit, p)
                self.infotexts[f"ControlNet {number - 1}"] = text
        except (ValueError, OSError) as error:
            self._error = error

    @property
    def has_work(self) -> bool:
        """True if there are units to apply or an error to raise."""
        return bool(self.units) or self._error is not None

    def build_units(self) -> list[BuiltUnit]:
        """Return the units for the present iteration. Raises ValueError, TypeError or FileNotFoundError in one line,
        also those of reading the request."""
        if self._error is not None:
            raise self._error
        iteration = int(getattr(self._p, "iteration", 0))
        if not self.built_units or (self.batch_inputs.has_changing_images and iteration != self._iteration):
            builder, inputs = host.get_unit_builder(), get_host_inputs(self._p)
            self.built_units = [
                builder.build(
                    number, self.batch_inputs.with_iteration_image(number, unit, iteration, self.last_image), inputs
                )
                for number, unit in self.units
            ]
            self.collected_maps += [
                pixels
                for (_, unit), each in zip(self.units, self.built_units, strict=True)
                if unit.returns_map
                for pixels in each.list_pass_maps()
            ]
        self._iteration = iteration
        return self.built_units


class ControlNetScript(scripts.Script):
    """The host's script: one instance for txt2img, one for img2img."""

    latest_network: TiledNetwork | None = None
    """What Tiled Diffusion reads and sets while a guided request runs."""

    def title(self) -> str:
        """Return the script's title."""
        return SCRIPT_TITLE

    def show(self, is_img2img: bool) -> Any:
        """Make the script always visible."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """Build the panel and return its components."""
        panel = build_panel(self, is_img2img, host.get_unit_count())
        self.infotext_fields, self.paste_field_names = (
            panel.paste_fields,
            [name for _, name in panel.paste_fields if name],
        )
        return panel.components

    def before_process(self, p: Any, *args: Any) -> None:
        """Set the number of iterations to that of a batch folder's images."""
        try:
            count = BatchInputs.from_units(dict(enumerate(read_request_units(args, p, False)))).image_count
        except (ValueError, OSError):
            return  # `process` says so
        if count:
            p.n_iter = count

    def process(self, p: Any, *args: Any) -> None:
        """Read the units and guide the request's sampling; a batch folder has one seed, unless the settings say
        otherwise."""
        stop_guiding(p)
        self.latest_network = None
        p.controlnet_ext = request = GenerationState(p, args)
        if not request.has_work:
            return
        p.extra_generation_params |= request.infotexts
        if request.batch_inputs.image_count and not host.get_setting("controlnet_increment_seed_during_batch", False):
            p.all_seeds = p.all_seeds[: p.batch_size] * p.n_iter
        self.latest_network = guide_sampling(p, request.build_units)

    def postprocess_batch(self, p: Any, *args: Any, images: Any, **_: Any) -> None:
        """Process the finished images of a batch, `(B, 3, H, W)` in 0..1, in place."""
        request = vars(p).get("controlnet_ext")
        finishes = [each.finish for each in request.built_units if each.finish is not None] if request else []
        if finishes:
            apply_finishes(images, finishes)

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        """Store the image for units that loop."""
        request = vars(p).get("controlnet_ext")
        if request is not None and request.batch_inputs.looping_units:
            request.last_image = np.asarray(pp.image.convert("RGB"))

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Append the maps to the results."""
        stop_guiding(p)
        self.latest_network = None
        request = vars(p).pop("controlnet_ext", None)
        if request is None:
            return
        if host.get_setting("control_net_detectmap_autosaving", False):
            save_maps(request.collected_maps)
        if not host.get_setting("control_net_no_detectmap", False) and not is_upscale_tile(p):
            processed.images.extend(Image.fromarray(each) for each in request.collected_maps)
