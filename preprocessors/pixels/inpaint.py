"""Maps for inpainting: the image itself, and with LaMa the image with its masked part filled in.

The hint of a repainted pixel is -1, as the inpainting ControlNet was trained; it is made of the unit's mask
(guidance/hints.py), not here. Restoring the rest after each step is in guidance/after_steps.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.hub import WeightsFile
from ...maps.resize import resize_for_detection
from ..backends.tensors import to_batch_tensor
from ..parameters import Range
from ..registry import Traits, preprocessor

if TYPE_CHECKING:
    from ..backends.torch import Device
    from ..library import Library


@preprocessor("inpaint", makes="inpaint", label="inpaint_global_harmonious", traits=Traits(has_resolution_slider=False))
def inpaint(image: np.ndarray) -> np.ndarray:
    """Return the image `(H, W, 3)` as it is; the whole of it may change."""
    return image


@preprocessor(
    "inpaint_only",
    makes="inpaint",
    traits=Traits(
        restores_unmasked=True,
        variant_without_restore="inpaint",
        has_resolution_slider=False,
        is_default_for_kind=True,
    ),
)
def inpaint_only(image: np.ndarray) -> np.ndarray:
    """Return the image `(H, W, 3)` as it is. The pipeline keeps what the mask leaves."""
    return image


LAMA_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "ControlNetLama.pth",
    webui_folder="lama",
    license="Apache-2.0",
    size=204597536,
    sha256="3b54044a23222eb835b549d61b480c444c06cf36df0ca86ea97aa9b14b001150",
    source="lllyasviel/Annotators @ 9a7d84251d48",
)

_MAX_ASPECT_RATIO = 8  # times the short side; a strip of 3x300 would be 256x25600


@preprocessor(
    "inpaint_only+lama",
    makes="inpaint",
    weights=LAMA_WEIGHTS,
    needs_mask=True,
    traits=Traits(restores_unmasked=True, starts_from_map=True, has_resolution_slider=False),
)
class InpaintLama:
    """The image with what LaMa puts where the mask is white, as a beginning for what is drawn there; grey mixes both.

    LaMa works with the short side at `fill_resolution` pixels, of which it was trained with 256, or what makes the long
    side at most 8 times that; its result is enlarged. Where the mask is black no pixel changes."""

    def __init__(self, device: str | Device, library: Library):
        from ...annotators import lama

        self.network = library.load_network(LAMA_WEIGHTS, lama.load, device)

    def __call__(self, image: np.ndarray, fill_resolution: Annotated[int, Range(64, 2048)] = 256) -> np.ndarray:
        short, long = sorted(image.shape[:2])
        small, height, width = resize_for_detection(
            image, min(fill_resolution, max(1, _MAX_ASPECT_RATIO * fill_resolution * short // long))
        )
        x = to_batch_tensor(small[None]) / 255
        output = self.network(x[:, :3], (x[:, 3:] > 0.5).float())[0, :, :height, :width].permute(1, 2, 0).numpy()
        filling = cv2.resize(output * 255, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        share = image[..., 3:] / np.float32(255)
        return (filling * share + image[..., :3] * (1 - share)).clip(0, 255).astype(np.uint8)
