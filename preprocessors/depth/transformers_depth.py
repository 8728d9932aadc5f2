"""Depth by the networks of transformers, in metres or as inverse depth, and its image."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.disk import read_json
from ..backends.tensors import pad_to_multiple, to_batch_tensor
from ..backends.transformers import (
    CONFIG_JSON,
    PREPROCESSOR_CONFIG_JSON,
    ModelFiles,
    fetch_model_folder,
    import_transformers_class,
    load_transformers_network,
)
from .shades import encode_inverse_depth, encode_metric_depth, encode_zoe_depth

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device, Network
    from ..library import Library

DepthRenderer = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
DepthFunction = Callable[[np.ndarray], "Tensor"]


class TransformersDepth:
    """Depth by the network in a folder of transformers, whichever of DPT, Depth Anything, ZoeDepth and Depth Pro
    its config.json names. `metric` says whether it gives metres. Raises what `load_transformers_network` does."""

    def __init__(self, device: str | Device, library: Library, files: ModelFiles):
        where = fetch_model_folder(library, files)
        config = read_json(where / CONFIG_JSON)
        names = config.get("architectures") or ["none"]
        if names[0] not in _ARCHITECTURES:
            raise ValueError(
                f"{str(where)!r} is a network {names[0]!r:.80}, expected one of: {', '.join(_ARCHITECTURES)}"
            )
        kind, self.encode_depth = _ARCHITECTURES[names[0]]
        if config.get("depth_estimation_type") == "metric":  # of a Depth Anything
            self.encode_depth = encode_metric_depth
        self.is_metric = self.encode_depth is not encode_inverse_depth
        self.infer_depth = kind(load_transformers_network(library, files, names[0], device), where)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Depth (B, H, W) float32 of images (B, H, W, 3) uint8, RGB: in metres, or, if not `metric`, its inverse, of
        unknown scale and offset. Raises ValueError when it is no number, as where float16 overflows."""
        height, width = images.shape[1:3]
        depth = self.infer_depth(images)[:, :height, :width].numpy()
        if not np.isfinite(depth).all():
            raise ValueError("the network's depth is no number: compute in float32 or bfloat16")
        return depth

    def make_renderers(self, images: np.ndarray) -> list[DepthRenderer]:
        """For each image what draws its map (H, W) uint16, and depth (H, W), at the height and width kept."""

        def drawing(depth: np.ndarray) -> DepthRenderer:
            def at(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
                inside = depth[:height, :width]
                return self.encode_depth(inside), inside

            return at

        return [drawing(depth) for depth in self(images)]


def make_depth_preprocessor(files: ModelFiles) -> type:
    """A class for `preprocessor` whose maps are depth by the network of these files."""

    class Depth:
        def __init__(self, device: str | Device, library: Library):
            self.depth = TransformersDepth(device, library, files)

        def __call__(self, images: np.ndarray) -> list[DepthRenderer]:
            return self.depth.make_renderers(images)

    return Depth


def _make_dpt(network: Network, folder_path: Path) -> DepthFunction:
    prepare = import_transformers_class("DPTImageProcessor").from_pretrained(folder_path)

    def run(images: np.ndarray) -> Tensor:
        images = pad_to_multiple(images, 1, _compute_min_short_side(prepare, images))
        depth = network(_preprocess_images(prepare, images))["predicted_depth"]
        return _resize_depth(depth, images.shape[1:3], "bicubic")

    return run


def _make_zoe(network: Network, folder_path: Path) -> DepthFunction:
    """Without the mirrored image that ZoeDepth's own code, but not transformers' pipeline, averages with."""
    prepare = import_transformers_class("ZoeDepthImageProcessor").from_pretrained(folder_path)

    def run(images: np.ndarray) -> Tensor:
        images = pad_to_multiple(images, 1, _compute_min_short_side(prepare, images))
        height, width = images.shape[1:3]
        down, right = (int((side / 2) ** 0.5 * 3) if prepare.do_pad else 0 for side in (height, width))
        depth = network(_preprocess_images(prepare, images))["predicted_depth"]
        depth = _resize_depth(depth, (height + 2 * down, width + 2 * right), "bicubic")
        return depth[:, down : down + height, right : right + width]

    return run


def _make_depth_pro(network: Network, folder_path: Path) -> DepthFunction:
    """transformers' DepthProImageProcessor, which needs torchvision, typed out."""
    import torch

    config = read_json(folder_path / PREPROCESSOR_CONFIG_JSON)
    mean, deviation = (torch.tensor(config[key])[:, None, None] for key in ("image_mean", "image_std"))

    def run(images: np.ndarray) -> Tensor:
        x = (to_batch_tensor(images) / 255 - mean) / deviation
        size = config["size"]
        x = torch.nn.functional.interpolate(x, (size["height"], size["width"]), mode="bilinear", align_corners=False)
        output = network(x)
        inverse = output["predicted_depth"]
        if output["field_of_view"] is not None:
            inverse = inverse * 2 * torch.deg2rad(output["field_of_view"] / 2).tan()[:, None, None]
        return 1 / _resize_depth(inverse, images.shape[1:3], "bilinear").clamp(1e-4, 1e4)

    return run


def _compute_min_short_side(image_processor: Any, images: np.ndarray) -> int:
    """Return the least length of the short side at which an input shrunk with its aspect kept does not lose it."""
    if not image_processor.keep_aspect_ratio:
        return 1
    return ceil(
        max(images.shape[1:3])
        * image_processor.ensure_multiple_of
        / min(image_processor.size["height"], image_processor.size["width"])
    )


def _preprocess_images(image_processor: Any, images: np.ndarray) -> Tensor:
    return image_processor(list(images), input_data_format="channels_last", return_tensors="pt")["pixel_values"]


def _resize_depth(depth: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    import torch

    return torch.nn.functional.interpolate(depth[:, None], size, mode=mode, align_corners=False)[:, 0]


_ARCHITECTURES: dict[str, tuple[Callable[[Network, Path], DepthFunction], Callable[[np.ndarray], np.ndarray]]] = {
    "DPTForDepthEstimation": (_make_dpt, encode_inverse_depth),
    "DepthAnythingForDepthEstimation": (_make_dpt, encode_inverse_depth),
    "ZoeDepthForDepthEstimation": (_make_zoe, encode_zoe_depth),
    "DepthProForDepthEstimation": (_make_depth_pro, encode_metric_depth),
}
