"""Pictures as the networks of transformers read them: what a preprocessor_config.json says, typed out. transformers'
own classes for it change their names between versions, some of them need torchvision, OneFormer's a download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.sizes import check_pixels
from ..edges.soft_edges import tensor

if TYPE_CHECKING:
    from torch import Tensor

_BILINEAR = 2  # PIL's number
_LARGEST = 8192  # pixels of a side; published networks have up to 2560


def prepared(settings: dict[str, Any], images: np.ndarray) -> Tensor:
    """Pictures (B, H, W, 3) uint8, RGB, as a network's input (B, 3, h, w) float32, by a preprocessor_config.json's
    size, resample, image_mean and image_std. Raises ValueError when it has none of these, or when they are absurd."""
    from PIL import Image

    height, width = input_size(settings, images.shape[1], images.shape[2])
    if (height, width) != images.shape[1:3]:
        way = Image.Resampling(settings.get("resample", _BILINEAR))
        images = np.stack([np.asarray(Image.fromarray(image).resize((width, height), way)) for image in images])
    mean, deviation = (_three(settings, key) for key in ("image_mean", "image_std"))
    return tensor((images.astype(np.float32) / 255 - mean) / deviation)


def input_size(settings: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width of the input for a picture of these. As transformers' classes have it: exactly that; or the
    short side so long, unless the long one then were too long; or only the long side so long. A lone number is a
    square's, beside a max_size the short side. Raises as `prepared`."""
    size = settings.get("size")
    if isinstance(size, int):
        longest = settings.get("max_size")
        size = {"height": size, "width": size} if longest is None else {"shortest_edge": size, "longest_edge": longest}
    size = {key: value for key, value in size.items() if value is not None} if isinstance(size, dict) else {}
    whole = size.keys() >= {"height", "width"}
    known = whole or "shortest_edge" in size or "longest_edge" in size
    if not known or not all(type(value) is int and 0 < value <= _LARGEST for value in size.values()):
        raise ValueError(
            f"preprocessor_config.json has the size {settings.get('size')!r:.80}, expected sides in pixels"
        )
    if whole:
        return size["height"], size["width"]
    short, long = min(height, width), max(height, width)
    if "shortest_edge" not in size:
        scale = size["longest_edge"] / long
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    edge: float = size["shortest_edge"]
    if "longest_edge" in size and long / short * edge > size["longest_edge"]:
        edge = size["longest_edge"] * short / long
    shorter = max(round(edge), 1)
    longer = long if round(edge) == short else max(int(edge * long / short), 1)
    check_pixels(shorter, longer, f"a picture of {width}x{height} as a network's input")
    return (shorter, longer) if height <= width else (longer, shorter)


def _three(settings: dict[str, Any], key: str) -> np.ndarray:
    numbers = settings.get(key)
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(n, (int, float)) for n in numbers):
        raise ValueError(f"preprocessor_config.json has the {key} {numbers!r:.80}, expected three numbers")
    return np.array(numbers, np.float32)
