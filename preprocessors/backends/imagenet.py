"""Pictures as networks that begin with weights of ImageNet read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..edges.soft_edges import tensor

if TYPE_CHECKING:
    from torch import Tensor

_MEAN, _DEVIATION = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)


def normalised(images: np.ndarray) -> Tensor:
    """Pictures (B, H, W, 3) in 0..1, RGB, as a tensor (B, 3, H, W) float32 of ImageNet's mean and deviation."""
    return tensor((images.astype(np.float32) - _MEAN) / _DEVIATION)
