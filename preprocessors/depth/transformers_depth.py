"""Depth by the networks of transformers, in metres or as inverse depth, and its picture."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.disk import read_json
from ..backends.transformers import CONFIG, PREPARATION, Files, folder, transformers_class, transformers_network
from ..edges.soft_edges import extended, tensor
from .shades import of_inverse, of_metres, of_metres_as_zoe

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device, Network
    from ..library import Library

Drawing = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
Run = Callable[[np.ndarray], "Tensor"]


class TransformersDepth:
    """Depth by the network in a folder of transformers, whichever of DPT, Depth Anything, ZoeDepth and Depth Pro
    its config.json names. `metric` says whether it gives metres. Raises what `transformers_network` does."""

    def __init__(self, device: str | Device, library: Library, files: Files):
        where = folder(library, files)
        config = read_json(where / CONFIG)
        names = config.get("architectures") or ["none"]
        if names[0] not in _KINDS:
            raise ValueError(f"{str(where)!r} is a network {names[0]!r:.80}, expected one of: {', '.join(_KINDS)}")
        kind, self.picture = _KINDS[names[0]]
        if config.get("depth_estimation_type") == "metric":  # of a Depth Anything
            self.picture = of_metres
        self.metric = self.picture is not of_inverse
        self.run = kind(transformers_network(library, files, names[0], device), where)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Depth (B, H, W) float32 of pictures (B, H, W, 3) uint8, RGB: in metres, or, if not `metric`, its inverse, of
        unknown scale and offset. Raises ValueError when it is no number, as where float16 overflows."""
        height, width = images.shape[1:3]
        depth = self.run(images)[:, :height, :width].numpy()
        if not np.isfinite(depth).all():
            raise ValueError("the network's depth is no number: compute in float32 or bfloat16")
        return depth

    def drawings(self, images: np.ndarray) -> list[Drawing]:
        """For each picture what draws its map (H, W) uint16, and depth (H, W), at the height and width kept."""

        def drawing(depth: np.ndarray) -> Drawing:
            def at(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
                kept = depth[:height, :width]
                return self.picture(kept), kept

            return at

        return [drawing(depth) for depth in self(images)]


def depth_by(files: Files) -> type:
    """A class for `preprocessor` whose maps are depth by the network of these files."""

    class Depth:
        def __init__(self, device: str | Device, library: Library):
            self.depth = TransformersDepth(device, library, files)

        def __call__(self, images: np.ndarray) -> list[Drawing]:
            return self.depth.drawings(images)

    return Depth


def _dpt(network: Network, where: Path) -> Run:
    prepare = transformers_class("DPTImageProcessor").from_pretrained(where)

    def run(images: np.ndarray) -> Tensor:
        images = extended(images, 1, _least(prepare, images))
        depth = network(_prepared(prepare, images))["predicted_depth"]
        return _sized(depth, images.shape[1:3], "bicubic")

    return run


def _zoe(network: Network, where: Path) -> Run:
    """Without the mirrored picture that ZoeDepth's own code, but not transformers' pipeline, averages with."""
    prepare = transformers_class("ZoeDepthImageProcessor").from_pretrained(where)

    def run(images: np.ndarray) -> Tensor:
        images = extended(images, 1, _least(prepare, images))
        height, width = images.shape[1:3]
        down, right = (int((side / 2) ** 0.5 * 3) if prepare.do_pad else 0 for side in (height, width))
        depth = network(_prepared(prepare, images))["predicted_depth"]
        depth = _sized(depth, (height + 2 * down, width + 2 * right), "bicubic")
        return depth[:, down : down + height, right : right + width]

    return run


def _depth_pro(network: Network, where: Path) -> Run:
    """transformers' DepthProImageProcessor, which needs torchvision, typed out."""
    import torch

    config = read_json(where / PREPARATION)
    mean, deviation = (torch.tensor(config[key])[:, None, None] for key in ("image_mean", "image_std"))

    def run(images: np.ndarray) -> Tensor:
        x = (tensor(images) / 255 - mean) / deviation
        size = config["size"]
        x = torch.nn.functional.interpolate(x, (size["height"], size["width"]), mode="bilinear", align_corners=False)
        found = network(x)
        inverse = found["predicted_depth"]
        if found["field_of_view"] is not None:
            inverse = inverse * 2 * torch.deg2rad(found["field_of_view"] / 2).tan()[:, None, None]
        return 1 / _sized(inverse, images.shape[1:3], "bilinear").clamp(1e-4, 1e4)

    return run


def _least(prepare: Any, images: np.ndarray) -> int:
    """How long the short side must be: an input that is made smaller with its aspect kept must not lose it."""
    if not prepare.keep_aspect_ratio:
        return 1
    return ceil(
        max(images.shape[1:3]) * prepare.ensure_multiple_of / min(prepare.size["height"], prepare.size["width"])
    )


def _prepared(prepare: Any, images: np.ndarray) -> Tensor:
    return prepare(list(images), input_data_format="channels_last", return_tensors="pt")["pixel_values"]


def _sized(depth: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    import torch

    return torch.nn.functional.interpolate(depth[:, None], size, mode=mode, align_corners=False)[:, 0]


_KINDS: dict[str, tuple[Callable[[Network, Path], Run], Callable[[np.ndarray], np.ndarray]]] = {
    "DPTForDepthEstimation": (_dpt, of_inverse),
    "DepthAnythingForDepthEstimation": (_dpt, of_inverse),
    "ZoeDepthForDepthEstimation": (_zoe, of_metres_as_zoe),
    "DepthProForDepthEstimation": (_depth_pro, of_metres),
}
