"""How far the request at work is; told by its thread, asked by others."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Picture `picture` of `count`, whose present step is `step` of `steps`, in all its passes. Who wants to see it
    sets `wanted`; `image`, a PNG in base64, is what it looked like after the last step that was wanted."""

    count: int = 0
    picture: int = 0
    step: int = 0
    steps: int = 0
    image: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    wanted: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float:
        """0 where nothing is at work."""
        return (self.picture + min(self.step / max(self.steps, 1), 1)) / self.count if self.count else 0.0

    @property
    def left(self) -> float:
        """Seconds, if it goes on as it went; 0 where that is not known."""
        fraction = self.fraction
        return (time.monotonic() - self.since) * (1 - fraction) / fraction if fraction else 0.0

    def begin(self, picture: int) -> None:
        """The steps of a picture, from 0, begin."""
        self.picture, self.step = picture, 0
