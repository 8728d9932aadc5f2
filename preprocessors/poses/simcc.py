"""Key points in boxes by the RTMPose family (Jiang et al., arXiv 2303.07399; DWPose: Yang et al., arXiv 2307.15880),
which says for each point how likely each column and each row is (SimCC)."""

from __future__ import annotations

import cv2
import numpy as np

from ..backends.onnx import OnnxNetwork

_MARGIN = 1.25  # how much larger than the box the crop is
_MEAN, _DEVIATION = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # ImageNet's, RGB


def points(network: OnnxNetwork, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Points (N, K, 3) in N boxes (left, top, right, bottom) of an RGB image (H, W, 3) uint8: x and y in its pixels,
    and score. Raises ValueError when the network is of another kind."""
    size = np.array([network.width, network.height])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    spans = (boxes[:, 2:] - boxes[:, :2]) * _MARGIN
    spans = (spans / size).max(axis=1, keepdims=True) * size  # in the proportion of the network's input
    crops = [_crop(image, centre, span, size) for centre, span in zip(centres, spans, strict=True)]
    if not crops:
        return np.zeros((0, 0, 3))
    outputs = network(np.stack(crops))
    if len(outputs) != 2 or any(output.ndim != 3 for output in outputs) or outputs[0].shape[1] != outputs[1].shape[1]:
        raise ValueError(f"outputs {[output.shape for output in outputs]} are not a SimCC's, of columns and of rows")
    places, scores = _decoded(*outputs)
    return np.concatenate([places * spans[:, None] + (centres - spans / 2)[:, None], scores[..., None]], axis=-1)


def _crop(image: np.ndarray, centre: np.ndarray, span: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(3, H, W) of `size` around a centre, normalised; black outside the image."""
    scale = size[0] / span[0]
    matrix = np.column_stack([np.eye(2) * scale, size / 2 - centre * scale])
    crop = cv2.warpAffine(image, matrix, tuple(size.tolist()), flags=cv2.INTER_LINEAR)
    return ((crop - _MEAN) / _DEVIATION).astype(np.float32).transpose(2, 0, 1)


def _decoded(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, K, 2) as fractions of the input, and scores (N, K), of columns (N, K, Wx) and rows (N, K, Hy). A
    score is the lower of the two."""
    places = np.stack([x.argmax(axis=-1) / x.shape[-1], y.argmax(axis=-1) / y.shape[-1]], axis=-1)
    return places, np.minimum(x.max(axis=-1), y.max(axis=-1))
