"""Segment Anything: masks of everything in an image, by networks of transformers.

SAM (Kirillov et al., arXiv 2304.02643) needs transformers 4.30 or later, SAM2 (Ravi et al., arXiv 2408.00714) 4.56.
The network is asked at the points of a grid; masks that are sure, stable and no duplicates stay
(facebookresearch/segment-anything, automatic_mask_generator.py, on whole images). `masks` finds the duplicates and
draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...files.disk import read_json
from ...files.hub import HUB_FILE_LIST
from ..backends.transformers import (
    CONFIG_JSON,
    ModelFiles,
    compute_input_size,
    fetch_model_folder,
    load_transformers_network,
    make_model_files,
    preprocess_images,
)
from ..parameters import Range
from ..registry import preprocessor
from .masks import ObjectMask, mask_from_logits, non_max_suppression, render_masks

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device
    from ..library import Library


# By config.json's model_type. The published files of SAM2 are of the network for videos, of which this is a part
_MODEL_CLASSES = {"sam": "SamModel", "sam2": "Sam2Model", "sam2_video": "Sam2Model"}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # no published file has others
_POINTS_PER_BATCH = 64  # at once
_LOGITS_PER_BATCH = 2**24  # logits that are enlarged at once: 64 MiB
_MAX_BOX_IOU = 0.7  # of two boxes that are one thing's


class TransformersSam:
    """Masks by the network in a folder of transformers, SAM or SAM2 as its config.json says. Raises what
    `load_transformers_network` does."""

    def __init__(self, device: str | Device, library: Library, files: ModelFiles):
        where = fetch_model_folder(library, files)
        kind = read_json(where / CONFIG_JSON).get("model_type")
        if not isinstance(kind, str) or kind not in _MODEL_CLASSES:
            raise ValueError(f"{str(where)!r} is a network {kind!r:.80}, expected one of: {', '.join(_MODEL_CLASSES)}")
        self.network = load_transformers_network(library, files, _MODEL_CLASSES[kind], device)
        module: Any = self.network.module
        self.module = module
        self.input_size: int = self.module.config.prompt_encoder_config.image_size
        self.keeps_aspect = kind == "sam"

    def __call__(self, image: np.ndarray, points: int, least_score: float, least_stability: float) -> list[ObjectMask]:
        """The masks in an image (H, W, 3) uint8, RGB, found from points x points points: those of a score and a
        stability over the least, the best score first."""
        import torch

        height, width = image.shape[:2]
        used = compute_input_size({"size": {"longest_edge": self.input_size}}, height, width)
        if not self.keeps_aspect:
            used = (self.input_size, self.input_size)
        with torch.inference_mode():
            masks = self._propose_masks(image, used, points, least_score)
            logits, scores = torch.cat([low for low, _ in masks]), torch.cat([score for _, score in masks])
            stabilities, boxes = self._measure_masks(logits, used, height, width)
            indices = (stabilities > least_stability).nonzero()[:, 0]
            best = non_max_suppression(boxes[indices].numpy(), scores[indices].numpy(), _MAX_BOX_IOU)
            return [
                mask_from_logits(
                    self._upsample_logits(logits[i : i + 1], used, height, width)[0].cpu().numpy(), *numbers
                )
                for i in indices[best].tolist()
                for numbers in [(scores[i].item(), stabilities[i].item())]
            ]

    def _propose_masks(
        self, image: np.ndarray, content_size: tuple[int, int], points: int, least_score: float
    ) -> list[tuple[Tensor, Tensor]]:
        """Masks as logits (N, h, w), at the network's own size on its device, and their scores (N,) on the CPU."""
        import torch

        settings = _IMAGENET | {"size": {"height": content_size[0], "width": content_size[1]}}
        x = preprocess_images(settings, image[None])
        x = torch.nn.functional.pad(x, (0, self.input_size - content_size[1], 0, self.input_size - content_size[0]))
        embeddings = self.module.get_image_embeddings(x.to(self.network.device, self.network.dtype))
        steps = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        y, x = torch.meshgrid(steps * content_size[0], steps * content_size[1], indexing="ij")
        grid = torch.stack([x, y], dim=-1).reshape(1, -1, 1, 2).to(self.network.device, self.network.dtype)
        masks = []
        for some in grid.split(_POINTS_PER_BATCH, dim=1):
            labels = torch.ones(some.shape[:3], dtype=torch.int64, device=some.device)
            result = self.module(
                input_points=some, input_labels=labels, image_embeddings=embeddings, multimask_output=True
            )
            scores = result["iou_scores"].float().flatten()
            if not scores.isfinite().all():
                raise ValueError("the network's scores are no numbers: compute in float32 or bfloat16")
            sure = scores > least_score
            masks.append((result["pred_masks"].float().flatten(0, 2)[sure], scores[sure].cpu()))
        return masks

    def _measure_masks(
        self, logits: Tensor, content_size: tuple[int, int], height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Stabilities (N,) of masks, 0 of empty ones, and their boxes (N, 4) on the CPU: left, top, right, bottom, of
        which the last two are their last pixels'."""
        import torch

        step = max(1, _LOGITS_PER_BATCH // max(height * width, self.input_size**2))
        stabilities, boxes = [torch.zeros(0)], [torch.zeros(0, 4)]
        for some in logits.split(step):
            large = self._upsample_logits(some, content_size, height, width)
            stabilities.append(((large > 1).sum((1, 2)) / (large > -1).sum((1, 2))).nan_to_num().cpu())
            edges = []
            for sides in ((large > 0).any(1), (large > 0).any(2)):  # columns, rows
                last = sides.shape[1] - 1 - sides.flip(1).int().argmax(1)
                edges.append((sides.int().argmax(1), last))
            (left, right), (top, bottom) = edges
            boxes.append(torch.stack([left, top, right, bottom], dim=1).float().cpu())
        return torch.cat(stabilities), torch.cat(boxes)

    def _upsample_logits(self, logits: Tensor, content_size: tuple[int, int], height: int, width: int) -> Tensor:
        """Logits (N, h, w) of the network's input as (N, H, W) of the image."""
        from torch.nn.functional import interpolate

        x = logits[:, None]
        if self.keeps_aspect:
            x = interpolate(x, (self.input_size, self.input_size), mode="bilinear", align_corners=False)[
                ..., : content_size[0], : content_size[1]
            ]
        return interpolate(x, (height, width), mode="bilinear", align_corners=False)[:, 0]


_SAM_MODELS = {
    "sam": ("facebook/sam-vit-huge", 2_560_000_000, f"{HUB_FILE_LIST} 87aecf0"),
    "sam_large": ("facebook/sam-vit-large", 1_250_000_000, f"{HUB_FILE_LIST} 6851e04"),
    "sam_base": ("facebook/sam-vit-base", 375_000_000, f"{HUB_FILE_LIST} 70c1a07"),
    "sam2": ("facebook/sam2.1-hiera-large", 898_000_000, f"the same in another format, {HUB_FILE_LIST} 227a114"),
    "sam2_small": ("facebook/sam2.1-hiera-small", 184_000_000, "46.1M parameters on the Hub's list of models"),
}


def make_sam_preprocessor(files: ModelFiles) -> type:
    """A class for `preprocessor` whose maps are the masks of everything, by the network of these files."""

    class Masks:
        """Everything in its own colour, the small on the large, on black. Values: `ObjectMask`s, the largest first,
        which may overlap."""

        def __init__(self, device: str | Device, library: Library):
            self.masks = TransformersSam(device, library, files)

        def __call__(
            self,
            image: np.ndarray,
            points: Annotated[int, Range(1, 64)] = 32,
            least_score: Annotated[float, Range(0, 1)] = 0.88,
            least_stability: Annotated[float, Range(0, 1)] = 0.95,
            *,
            seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
        ) -> Callable[[int, int], tuple[np.ndarray, tuple[ObjectMask, ...]]]:
            masks = self.masks(image, points, least_score, least_stability)

            def result(height: int, width: int) -> tuple[np.ndarray, tuple[ObjectMask, ...]]:
                visible_masks = [mask for mask in (mask.crop(height, width) for mask in masks) if mask.area]
                visible_masks.sort(key=lambda mask: -mask.area)
                return render_masks(visible_masks, height, width, seed), tuple(visible_masks)

            return result

    return Masks


for _name, (_repo, _approx_size, _source) in _SAM_MODELS.items():
    _config, _, _weights = make_model_files(_repo, "Apache-2.0", approx_size=_approx_size, source=_source)
    preprocessor(_name, makes="segmentation", fidelity="objects", weights=(_config, _weights))(
        make_sam_preprocessor((_config, _weights))
    )
