"""Segmentation by the networks of transformers: the class of every pixel, and its colour."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.disk import read_json
from ..backends.transformers import (
    PREPROCESSOR_CONFIG_JSON,
    ModelFiles,
    fetch_model_folder,
    load_transformers_network,
    preprocess_images,
    read_architecture,
)
from .palettes import Palette, SegmentationLabels

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device, Network
    from ..library import Library

SegmentationRenderer = Callable[[int, int], tuple[np.ndarray, SegmentationLabels]]

# "the task is semantic" in CLIP's words (openai/CLIP, bpe_simple_vocab_16e6.txt), between those for start and end
_TASK_TOKENS = (49406, 518, 10549, 533, 29119, 1550, 49407)
_SCORES_PER_BATCH = 2**24  # scores that are enlarged at once: 64 MiB


class TransformersSegmentation:
    """The class of every pixel by the network in a folder of transformers, whichever of OneFormer, UperNet and
    SegFormer its config.json names. Raises what `load_transformers_network` does, and ValueError when its classes are
    not as many as the palette's."""

    def __init__(self, device: str | Device, library: Library, files: ModelFiles, palette: Palette):
        where = fetch_model_folder(library, files)
        kind = read_architecture(where)
        if kind not in _SCORE_FUNCTIONS:
            raise ValueError(
                f"{str(where)!r} is a network {kind!r:.80}, expected one of: {', '.join(_SCORE_FUNCTIONS)}"
            )
        self.preprocessor_config = read_json(where / PREPROCESSOR_CONFIG_JSON)
        self.infer_scores = _SCORE_FUNCTIONS[kind]
        self.network = load_transformers_network(library, files, kind, device)
        self.palette = palette
        config: Any = self.network.module.config
        count = config.num_labels
        if count != len(palette.names):
            raise ValueError(f"{str(where)!r} tells {count} classes apart, expected {len(palette.names)}")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Numbers of classes (B, H, W) uint8 of images (B, H, W, 3) uint8, RGB. Raises ValueError when the network's
        scores are no numbers, as where float16 overflows."""
        scores = self.infer_scores(self.network, preprocess_images(self.preprocessor_config, images))
        if not scores.isfinite().all():
            raise ValueError("the network's scores are no numbers: compute in float32 or bfloat16")
        return upsample_argmax(scores.to(self.network.device), images.shape[1], images.shape[2])

    def make_renderers(self, images: np.ndarray) -> list[SegmentationRenderer]:
        """Return a function for each of the images `(B, H, W, 3)` that renders its map, at the height and width that
        are kept."""
        return [make_segmentation_renderer(labels, self.palette) for labels in self(images)]


def make_segmentation_renderer(labels: np.ndarray, palette: Palette) -> SegmentationRenderer:
    """Return the function that renders the map of class numbers `(H, W)`, at the height and width that are kept."""

    def at(height: int, width: int) -> tuple[np.ndarray, SegmentationLabels]:
        inside = np.ascontiguousarray(labels[:height, :width])
        return palette.colorize(inside), SegmentationLabels(inside, palette.names)

    return at


def make_segmentation_preprocessor(files: ModelFiles, palette: Palette) -> type:
    """A class for `preprocessor` whose maps are segmentations by the network of these files, in these colours."""

    class Segmentation:
        def __init__(self, device: str | Device, library: Library):
            self.segmentation = TransformersSegmentation(device, library, files, palette)

        def __call__(self, images: np.ndarray) -> list[SegmentationRenderer]:
            return self.segmentation.make_renderers(images)

    return Segmentation


def upsample_argmax(scores: Tensor, height: int, width: int) -> np.ndarray:
    """The class (B, H, W) uint8 of the highest of scores (B, classes, h, w), enlarged to H and W, the first of equal
    ones. Some classes at a time: 150 of an image of 4000x3000 pixels would take 7 GB."""
    import torch
    from torch.nn import functional as F

    step = max(1, _SCORES_PER_BATCH // (len(scores) * height * width))
    best = labels = None
    for start in range(0, scores.shape[1], step):
        part = F.interpolate(scores[:, start : start + step], (height, width), mode="bilinear", align_corners=False)
        value, label = part.max(dim=1)
        label = (label + start).to(torch.uint8)
        if best is None or labels is None:
            best, labels = value, label
        else:
            labels = torch.where(value > best, label, labels)
            best = torch.maximum(value, best)
    assert labels is not None, "scores of no class"
    return labels.cpu().numpy()


def _score_queries(network: Network, x: Tensor) -> Tensor:
    """OneFormer's: each query's classes where its mask is."""
    import torch

    config: Any = network.module.config
    length = config.task_seq_len
    task = torch.tensor([*_TASK_TOKENS, *[0] * (length - len(_TASK_TOKENS))]).expand(len(x), length)
    output = network(x, task)
    classes = output["class_queries_logits"].softmax(dim=-1)[..., :-1]  # the last is "none of them"
    return torch.einsum("bqc, bqhw -> bchw", classes, output["masks_queries_logits"].sigmoid())


def _score_pixels(network: Network, x: Tensor) -> Tensor:
    return network(x)["logits"]


_SCORE_FUNCTIONS: dict[str, Any] = {
    "OneFormerForUniversalSegmentation": _score_queries,
    "UperNetForSemanticSegmentation": _score_pixels,
    "SegformerForSemanticSegmentation": _score_pixels,
}
