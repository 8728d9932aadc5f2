"""Maps of mirrored images: how the map of an image, mirrored from left to right, becomes that of the mirrored image."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

# plain: as the image. red normals, blue normals: also, and the sideways direction, in that channel, turns around.
# sided: colors tell left from right, as those of limbs, so that no rule on pixels gives the map.
Mirroring: TypeAlias = Literal["plain", "red normals", "blue normals", "sided"]
MIRRORING_OF_KINDS: dict[str, Mirroring] = {"normals": "red normals", "pose": "sided", "face": "sided"}
SIDEWAYS_CHANNELS: dict[Mirroring, int] = {"red normals": 0, "blue normals": 2}


def get_mirroring_of_kind(kind: str) -> Mirroring:
    """Return the rule for most maps of this kind, plain for kinds that are not in the table."""
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
    mirror_pixels = np.ascontiguousarray(pixels[:, ::-1])
    channel = SIDEWAYS_CHANNELS.get(mirroring)
    if channel is not None:
        is_direction = mirror_pixels.any(axis=2)
        mirror_pixels[..., channel] = np.where(is_direction, 255 - mirror_pixels[..., channel], 0)
    return mirror_pixels
