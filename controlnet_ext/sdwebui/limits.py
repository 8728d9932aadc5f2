"""How much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """At most so many `units`, pixels on a `side` of a picture, `steps` of a pass, and `pictures`."""

    max_units: int = 3
    max_side: int = 2048
    max_steps: int = 150
    max_images: int = 16
