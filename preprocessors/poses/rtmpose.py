"""Inputs and outputs of the ONNX networks of DWPose and RTMPose; the preprocessors are in `dwpose`.

YOLOX (Ge et al., arXiv 2107.08430), trained on COCO, gives boxes of people and animals. In each box the RTMPose family
(Jiang et al., arXiv 2303.07399; DWPose: Yang et al., arXiv 2307.15880) gives for each key point a distribution over
columns and one over rows (SimCC).
"""

from __future__ import annotations

import cv2
import numpy as np

from ..backends.onnx import OnnxNetwork

PERSON_CLASSES, ANIMAL_CLASSES = range(1), range(14, 24)  # of COCO's 80 classes: person; from bird to giraffe
_STRIDES = (8, 16, 32)
_MIN_SCORE, _MAX_IOU = 0.3, 0.45  # sd-webui-controlnet's and the ComfyUI pack's


def detect_boxes(network: OnnxNetwork, image: np.ndarray, classes: range) -> np.ndarray:
    """Boxes (N, 4), left, top, right, bottom in pixels of an RGB image (H, W, 3) uint8, of what belongs to one of the
    classes, the surest first. Raises ValueError when the network is of another kind.

    The network reads BGR, as it was trained; sd-webui-controlnet and the ComfyUI pack feed it RGB, and box an animal
    twice that could be a cat or a dog."""
    size = network.height, network.width
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    boxes = _decode_boxes(network(_letterbox(image, size, scale))[0], size, classes)
    return _suppress_overlaps(boxes / scale)


def _letterbox(image: np.ndarray, input_size: tuple[int, int], scale: float) -> np.ndarray:
    """The image in the upper left corner of a grey one, as (1, 3, H, W), BGR in 0..255."""
    height, width = (max(int(side * scale), 1) for side in image.shape[:2])
    x = np.full((*input_size, 3), 114, np.uint8)
    x[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)


def _decode_boxes(output: np.ndarray, input_size: tuple[int, int], classes: range) -> np.ndarray:
    """Boxes in pixels of the input, of the network's (1, N, 5 + classes): centre and logarithm of the size in cells,
    how surely it is something, and how surely which."""
    grids = [
        np.indices((input_size[0] // stride, input_size[1] // stride)).reshape(2, -1).T[:, ::-1] for stride in _STRIDES
    ]
    cells, strides = np.concatenate(grids), np.repeat(_STRIDES, [len(grid) for grid in grids])[:, None]
    if output.ndim != 3 or output.shape[1] != len(cells) or output.shape[2] < 5 + classes.stop:
        raise ValueError(
            f"an output {output.shape} is not a YOLOX's for an input of {input_size[1]}x{input_size[0]} pixels"
        )
    scores = output[0, :, 4] * output[0, :, 5 + classes.start : 5 + classes.stop].max(axis=1)
    order = np.argsort(-scores, kind="stable")[: (scores > _MIN_SCORE).sum()]
    centers = (output[0, order, :2] + cells[order]) * strides[order]
    halves = np.exp(output[0, order, 2:4]) * strides[order] / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def _suppress_overlaps(boxes: np.ndarray) -> np.ndarray:
    """Boxes without those that overlap an earlier one: greedy non-maximum suppression."""
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    indices = []
    remaining = np.arange(len(boxes))
    while remaining.size:
        i, others = remaining[0], remaining[1:]
        indices.append(i)
        corner = np.minimum(boxes[i, 2:], boxes[others, 2:]) - np.maximum(boxes[i, :2], boxes[others, :2])
        common = (corner + 1).clip(0).prod(axis=1)
        remaining = others[common / (areas[i] + areas[others] - common) <= _MAX_IOU]
    return boxes[indices]


_BOX_SCALE = 1.25  # how much larger than the box the crop is
_MEAN, _STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # ImageNet's, RGB


def detect_key_points(network: OnnxNetwork, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Points (N, K, 3) in N boxes (left, top, right, bottom) of an RGB image (H, W, 3) uint8: x and y in its pixels,
    and score. Raises ValueError when the network is of another kind."""
    size = np.array([network.width, network.height])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    spans = (boxes[:, 2:] - boxes[:, :2]) * _BOX_SCALE
    spans = (spans / size).max(axis=1, keepdims=True) * size  # in the proportion of the network's input
    crops = [_crop_around(image, centre, span, size) for centre, span in zip(centers, spans, strict=True)]
    if not crops:
        return np.zeros((0, 0, 3))
    outputs = network(np.stack(crops))
    if len(outputs) != 2 or any(output.ndim != 3 for output in outputs) or outputs[0].shape[1] != outputs[1].shape[1]:
        raise ValueError(f"outputs {[output.shape for output in outputs]} are not a SimCC's, of columns and of rows")
    places, scores = _decode_simcc(*outputs)
    return np.concatenate([places * spans[:, None] + (centers - spans / 2)[:, None], scores[..., None]], axis=-1)


def _crop_around(image: np.ndarray, center: np.ndarray, span: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(3, H, W) of `size` around a centre, normalised; black outside the image."""
    scale = size[0] / span[0]
    matrix = np.column_stack([np.eye(2) * scale, size / 2 - center * scale])
    crop = cv2.warpAffine(image, matrix, tuple(size.tolist()), flags=cv2.INTER_LINEAR)
    return ((crop - _MEAN) / _STD).astype(np.float32).transpose(2, 0, 1)


def _decode_simcc(column_scores: np.ndarray, row_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, K, 2) as fractions of the input, and scores (N, K), of columns (N, K, Wx) and rows (N, K, Hy). A
    score is the lower of the two."""
    places = np.stack(
        [column_scores.argmax(axis=-1) / column_scores.shape[-1], row_scores.argmax(axis=-1) / row_scores.shape[-1]],
        axis=-1,
    )
    return places, np.minimum(column_scores.max(axis=-1), row_scores.max(axis=-1))
