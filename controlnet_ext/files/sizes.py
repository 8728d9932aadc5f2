"""How large a picture may be, coming in or after a resize: what a few header bytes ask for must fit in memory."""

from __future__ import annotations

MAX_PIXELS = 2**26  # 64 megapixels, 192 MiB as RGB
MAX_SIDE = 65535  # a JPEG's


def check_pixels(height: int, width: int, name: str) -> None:
    """Raises ValueError unless there are 1 to 64 megapixels (2**26)."""
    if height < 1 or width < 1:
        raise ValueError(f"{name} is {width}x{height}: it has no pixels")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{name} is {width}x{height}, {height * width / 1e6:.0f} megapixels, over the limit of 64")


def working_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """(height, width) in the same proportion whose short side is `resolution` pixels, the long side rounded.

    Raises ValueError when that is over 64 megapixels (2**26) or a side over 65535, as with a strip of 3x10000.
    """
    short = min(height, width)
    if short < 1 or resolution < 1:
        raise ValueError(f"{width}x{height} at resolution {resolution}: sizes begin at 1")
    h, w = (resolution if side == short else round(side * resolution / short) for side in (height, width))
    if h * w > MAX_PIXELS or max(h, w) > MAX_SIDE:
        raise ValueError(
            f"{width}x{height} at resolution {resolution} would need {w}x{h}, over the limit of 64 megapixels and "
            f"{MAX_SIDE} a side: lower the resolution or crop the image"
        )
    return h, w
