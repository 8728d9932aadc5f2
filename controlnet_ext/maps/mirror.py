"""Maps of mirrored images: how the map of an image, mirrored from left to right, becomes that of the mirrored image."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

# plain: as the image. normals: also, and the direction to the right, in red, turns around. sided: colors tell left from
# right, as those of limbs, so that no rule on pixels gives the map.
Mirroring: TypeAlias = Literal["plain", "normals", "sided"]
MIRRORING_OF_KINDS: dict[str, Mirroring] = {"normals": "normals", "pose": "sided", "face": "sided"}  # others: plain


def get_mirroring_of_kind(kind: str) -> Mirroring:
    """Return the rule for most maps of this kind."""
    return MIRRORING_OF_KINDS.get(kind, "plain")


def mirror_map(pixels: np.ndarray, mirroring: Mirroring) -> np.ndarray:
    """Return the map (H, W, 3) uint8 RGB of the mirrored image.

    Black pixels of normals, which are no direction, stay black. Raises ValueError for a sided map.
    """
    if mirroring == "sided":
        raise ValueError(
            "the map tells left from right by its colors, which mirroring would mix up: "
            "name the preprocessor that makes such maps, or do without --flip"
        )
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    if mirroring == "normals":
        is_direction = mirrored.any(axis=2)
        mirrored[..., 0] = np.where(is_direction, 255 - mirrored[..., 0], mirrored[..., 0])
    return mirrored
