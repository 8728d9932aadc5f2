"""All that an image is made from, so that it can be made again to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..errors import check_choice
from ..files.image_formats import MAX_PIXELS
from ..guidance.after_steps import PostStep, post_step_for
from ..guidance.contract import ControlModel
from ..guidance.unit import Unit, UnitSettings
from ..maps.control_map import ControlMap
from ..preprocessors.parameters import Parameter, Range
from ..preprocessors.registry import find_or_none
from .request import GenerationRequest
from .sources import ModelRef

NUMBER_FIELDS = {
    number.name: number
    for number in (
        Parameter("seed", int, 0, Range(0, 2**63 - 1)),
        Parameter("steps", int, 30, Range(1, 1000)),
        Parameter("width", int, 512, Range(64, 4096)),
        Parameter("height", int, 512, Range(64, 4096)),
        Parameter("guidance", float, 7.5, Range(0, 100)),
        Parameter("threads", int, 1, Range(1, 256)),
    )
}
ATTRIBUTES = {"negative": "negative_prompt", "guidance": "guidance_scale"}  # of a recipe, where its file says less
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps")
MAX_UNITS = 16  # at most
MAX_PROMPT_LENGTH = 10_000  # characters of a prompt at most


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitSpec(UnitSettings):
    """A unit as `--control` describes it: nothing preprocessed, fitted or loaded yet.

    `image` is a path, RGB pixels (H, W, 3) uint8 or a map; `inpaint` is white where to repaint. `preprocessor` is a
    canonical name, or None for an image that is a map already; `parameters` are its own."""

    model: ModelRef
    image: str | np.ndarray | ControlMap
    inpaint: str | np.ndarray | None = None
    preprocessor: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str | np.ndarray | ControlMap, ...]:
        """The image, of any shape, as `HintImages` reads it."""
        return (self.image,)


@dataclass(frozen=True, eq=False, kw_only=True)
class RecipeUnit(UnitSettings):
    """A unit as a recipe stores it: its map, mask and region have the size of the image.

    `mask` is (H, W, 3) uint8, white where to repaint, or None. `preprocessor` and `parameters` say how the map was made
    and what happens after each step; `architecture` is the kind of the model, "" until it is known."""

    model: ModelRef
    control_map: ControlMap
    mask: np.ndarray | None = None
    preprocessor: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = ""

    @property
    def after(self) -> PostStep | None:
        """The change of the latents after each step that the preprocessor stands for, or None."""
        return post_step_for(find_or_none(self.preprocessor), self.parameters)

    def make_unit(self, model: ControlModel) -> Unit:
        """Return the unit with its loaded model. Raises ValueError or TypeError where it makes no sense."""
        settings = {each.name: getattr(self, each.name) for each in fields(UnitSettings)}
        return Unit(model, self.control_map, inpaint=self.mask, after=self.after, **settings)


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRecipe(GenerationRequest):
    """A request with all that its image depends on, so that the image can be made again to the bit.

    `units` hold maps of `width` x `height` pixels. `scheduler` is the name of a class of diffusers, None for the
    model's own; `scheduler_config` is empty until it is known. `dtype` is one of `DTYPES`, `device` one of `DEVICES`.
    `threads` are torch's, on which the last bits depend. `made_with` names versions and the device, for comparison
    only.

    Raises ValueError or TypeError on what is outside its range."""

    dtype: str
    device: str
    threads: int
    model: ModelRef
    units: tuple[RecipeUnit, ...]
    scheduler: str | None = None
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        check_text("negative", self.negative_prompt)
        for name, number in NUMBER_FIELDS.items():
            attribute = ATTRIBUTES.get(name, name)
            object.__setattr__(self, attribute, number.check(getattr(self, attribute)))
        if self.width % 8 or self.height % 8:
            raise ValueError(f"size {self.width}x{self.height}: both sides must be multiples of 8")
        for name, choices in (("dtype", DTYPES), ("device", DEVICES)):
            check_choice(name, getattr(self, name), choices)
        check_units(len(self.units), self.width, self.height)


def check_units(count: int, width: int, height: int) -> None:
    """Raise ValueError when there are over 16 units, or their maps have over 64 megapixels in all."""
    if count > MAX_UNITS or count * width * height > MAX_PIXELS:
        raise ValueError(
            f"{count} units of {width}x{height} pixels: expected up to {MAX_UNITS}, and 64 megapixels in all"
        )


def check_text(name: str, text: object) -> None:
    """Raise TypeError or ValueError unless `text` can be a prompt."""
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, expected text")
    if len(text) > MAX_PROMPT_LENGTH:
        raise ValueError(f"{name} has {len(text)} characters, expected up to {MAX_PROMPT_LENGTH}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds bytes that are not UTF-8")
