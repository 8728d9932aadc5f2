"""How much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """At most so many `units`, pixels on a `side` of a picture, `steps` of a pass, and `pictures`."""

    units: int = 3
    side: int = 2048
    steps: int = 150
    pictures: int = 16
