"""Everything in a picture as masks, by the Segment Anything networks of transformers: at points on a grid, then what is
sure, stable and no duplicate (facebookresearch/segment-anything, automatic_mask_generator.py, on whole pictures)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...files.disk import read_json
from ..backends.transformers import CONFIG, Files, folder, transformers_network
from ..backends.transformers_pictures import input_size, prepared
from .masks import Mask, distinct, mask_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device
    from ..library import Library

# By config.json's model_type. The published files of SAM2 are of the network for videos, of which this is a part
_KINDS = {"sam": "SamModel", "sam2": "Sam2Model", "sam2_video": "Sam2Model"}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # no published file has others
_POINTS = 64  # at once
_PART = 2**24  # logits that are enlarged at once: 64 MiB
_OVERLAP = 0.7  # of two boxes that are one thing's


class TransformersSam:
    """Masks by the network in a folder of transformers, SAM or SAM2 as its config.json says. Raises what
    `transformers_network` does."""

    def __init__(self, device: str | Device, library: Library, files: Files):
        where = folder(library, files)
        kind = read_json(where / CONFIG).get("model_type")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"{str(where)!r} is a network {kind!r:.80}, expected one of: {', '.join(_KINDS)}")
        self.network = transformers_network(library, files, _KINDS[kind], device)
        module: Any = self.network.module
        self.module = module
        self.side: int = self.module.config.prompt_encoder_config.image_size
        self.keeps_aspect = kind == "sam"

    def __call__(self, image: np.ndarray, points: int, least_score: float, least_stability: float) -> list[Mask]:
        """The masks in a picture (H, W, 3) uint8, RGB, found from points x points points: those of a score and a
        stability over the least, the best score first."""
        import torch

        height, width = image.shape[:2]
        used = input_size({"size": {"longest_edge": self.side}}, height, width)
        if not self.keeps_aspect:
            used = (self.side, self.side)
        with torch.inference_mode():
            found = self._candidates(image, used, points, least_score)
            logits, scores = torch.cat([low for low, _ in found]), torch.cat([score for _, score in found])
            stabilities, boxes = self._measured(logits, used, height, width)
            kept = (stabilities > least_stability).nonzero()[:, 0]
            best = distinct(boxes[kept].numpy(), scores[kept].numpy(), _OVERLAP)
            return [
                mask_of(self._enlarged(logits[i : i + 1], used, height, width)[0].cpu().numpy(), *numbers)
                for i in kept[best].tolist()
                for numbers in [(scores[i].item(), stabilities[i].item())]
            ]

    def _candidates(
        self, image: np.ndarray, used: tuple[int, int], points: int, least_score: float
    ) -> list[tuple[Tensor, Tensor]]:
        """Masks as logits (N, h, w), at the network's own size on its device, and their scores (N,) on the CPU."""
        import torch

        settings = _IMAGENET | {"size": {"height": used[0], "width": used[1]}}
        x = prepared(settings, image[None])
        x = torch.nn.functional.pad(x, (0, self.side - used[1], 0, self.side - used[0]))
        embeddings = self.module.get_image_embeddings(x.to(self.network.device, self.network.dtype))
        steps = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        y, x = torch.meshgrid(steps * used[0], steps * used[1], indexing="ij")
        grid = torch.stack([x, y], dim=-1).reshape(1, -1, 1, 2).to(self.network.device, self.network.dtype)
        found = []
        for some in grid.split(_POINTS, dim=1):
            labels = torch.ones(some.shape[:3], dtype=torch.int64, device=some.device)
            result = self.module(
                input_points=some, input_labels=labels, image_embeddings=embeddings, multimask_output=True
            )
            scores = result["iou_scores"].float().flatten()
            if not scores.isfinite().all():
                raise ValueError("the network's scores are no numbers: compute in float32 or bfloat16")
            sure = scores > least_score
            found.append((result["pred_masks"].float().flatten(0, 2)[sure], scores[sure].cpu()))
        return found

    def _measured(self, logits: Tensor, used: tuple[int, int], height: int, width: int) -> tuple[Tensor, Tensor]:
        """Stabilities (N,) of masks, 0 of empty ones, and their boxes (N, 4) on the CPU: left, top, right, bottom, of
        which the last two are their last pixels'."""
        import torch

        step = max(1, _PART // max(height * width, self.side**2))
        stabilities, boxes = [torch.zeros(0)], [torch.zeros(0, 4)]
        for some in logits.split(step):
            large = self._enlarged(some, used, height, width)
            stabilities.append(((large > 1).sum((1, 2)) / (large > -1).sum((1, 2))).nan_to_num().cpu())
            edges = []
            for sides in ((large > 0).any(1), (large > 0).any(2)):  # columns, rows
                last = sides.shape[1] - 1 - sides.flip(1).int().argmax(1)
                edges.append((sides.int().argmax(1), last))
            (left, right), (top, bottom) = edges
            boxes.append(torch.stack([left, top, right, bottom], dim=1).float().cpu())
        return torch.cat(stabilities), torch.cat(boxes)

    def _enlarged(self, logits: Tensor, used: tuple[int, int], height: int, width: int) -> Tensor:
        """Logits (N, h, w) of the network's input as (N, H, W) of the picture."""
        from torch.nn.functional import interpolate

        x = logits[:, None]
        if self.keeps_aspect:
            x = interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)[..., : used[0], : used[1]]
        return interpolate(x, (height, width), mode="bilinear", align_corners=False)[:, 0]
