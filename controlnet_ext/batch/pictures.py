"""A picture on its way through a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..maps.control_map import ControlMap


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a source. `index` counts from 0 in the source, `key` names its results there, `name` stands in
    messages, `content` is what `read_image` takes, or the ValueError that says why there is none. So is `mask`, None
    where none is wanted or known."""

    index: int
    key: str
    name: str
    content: Any
    mask: Any = None


@dataclass(frozen=True, eq=False)
class Sheet:
    """A picture with its maps, and what failed, a line each; both by the preprocessor's name, "" for the picture
    itself. `pixels` (H, W, 3) uint8 RGB, and `mask` likewise or what kept it from being read, only as long as networks
    wait for them."""

    picture: Picture
    pixels: np.ndarray | None = None
    mask: np.ndarray | ValueError | None = None
    maps: dict[str, ControlMap] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Result:
    """What a sink takes: the picture without its content, files by how they end (`canny.png`) unless they are stored
    already, and what failed, a line each."""

    picture: Picture
    files: dict[str, bytes]
    errors: tuple[str, ...]
