"""Where a run begins in stable-diffusion-webui: with a picture in its noise, as inpaint_only+lama wants it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..guidance.noise import Noise
from ..hosts.ldm.host import FACTOR, encoded
from ..maps.fit import fit


class Beginning:
    """A request's random numbers (the host's `ImageRNG`), the first of which hold a picture; the others come from the
    request's own again."""

    def __init__(self, p: Any, pixels: np.ndarray):
        self._p, self._pixels, self._rng = p, pixels, p.rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)

    def next(self) -> Any:
        """Noise `(B, C, h, w)` with as much of the picture in it as training has at its last timestep."""
        self._p.rng = self._rng
        noise = self._rng.next()
        height, width = (side * FACTOR for side in noise.shape[-2:])
        picture = encoded(self._p.sd_model, fit(self._pixels, height, width, "crop"), noise.device).to(noise)
        signal = float(self._p.sd_model.alphas_cumprod[-1]) ** 0.5
        return Noise("epsilon", signal, (1 - signal**2) ** 0.5).noisy(picture, noise)


@contextmanager
def beginning_with(p: Any, pixels: np.ndarray | None) -> Iterator[None]:
    """In this context the first noise that the request `p` draws holds the picture (H, W, 3), if there is one."""
    if pixels is None:
        yield
        return
    p.rng = changed = Beginning(p, pixels)
    try:
        yield
    finally:
        if p.rng is changed:
            p.rng = changed._rng
