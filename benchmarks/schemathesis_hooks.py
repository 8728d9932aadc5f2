"""Images for schemathesis, which cannot guess them: tiny PNGs in base64, plain and as data URLs, some of them cut."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import schemathesis
from hypothesis import strategies as st


def _png(height: int, width: int, seed: int, cut: bool, head: str) -> str:
    pixels = np.random.default_rng(seed).choice([0, 255], (height, width, 3)).astype(np.uint8)
    content = cv2.imencode(".png", pixels)[1].tobytes()
    return head + base64.b64encode(content[: len(content) // 2] if cut else content).decode()


SIDES = st.integers(1, 24)
IMAGES = st.builds(
    _png,
    SIDES,
    SIDES,
    st.integers(0, 9),
    st.sampled_from([False] * 9 + [True]),
    st.sampled_from(["", "data:image/png;base64,"]),
)
schemathesis.openapi.format("byte", IMAGES)
