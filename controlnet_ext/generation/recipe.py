"""Everything that a picture is made from, so that it can be made again to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import check_choice
from ..files.image_formats import MAX_PIXELS
from ..guidance.unit import Unit
from ..maps.control_map import ControlMap
from ..preprocessors.parameters import Parameter, Range
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


@dataclass(frozen=True, eq=False)
class RecipeUnit:
    """A unit whose map (and region) is fitted to the picture and whose model is a `Source`. `preprocessor` and
    `parameters` tell what made the map, and what that one does after each step; `architecture` the model's kind."""

    unit: Unit
    preprocessor: str | None
    parameters: Mapping[str, Any]
    architecture: str = ""

    @property
    def model_ref(self) -> ModelRef:
        assert isinstance(self.unit.model, ModelRef)
        return self.unit.model

    @property
    def pixels(self) -> np.ndarray:
        """Its map (H, W, 3)."""
        assert isinstance(self.unit.image, ControlMap)
        return self.unit.image.pixels

    @property
    def mask(self) -> np.ndarray | None:
        """Where to repaint, (H, W, 3), if it has a mask."""
        assert self.unit.inpaint is None or isinstance(self.unit.inpaint, np.ndarray)
        return self.unit.inpaint


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
    """ValueError when there are over 16 units, or their maps over 64 megapixels in all."""
    if count > MAX_UNITS or count * width * height > MAX_PIXELS:
        raise ValueError(
            f"{count} units of {width}x{height} pixels: expected up to {MAX_UNITS}, and 64 megapixels in all"
        )


def check_text(name: str, text: Any) -> None:
    """TypeError or ValueError unless it can be a prompt."""
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__}, expected text")
    if len(text) > MAX_PROMPT_LENGTH:
        raise ValueError(f"{name} has {len(text)} characters, expected up to {MAX_PROMPT_LENGTH}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds bytes that are not UTF-8")
