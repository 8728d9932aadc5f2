"""Foreground and background, by IS-Net, BiRefNet and networks of their layouts (annotators/isnet.py, birefnet.py)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np

from ...files.hub import HUB_COMMIT_PAGE, HUB_FILE_LIST, WeightsFile
from ..backends.tensors import to_batch_tensor
from ..backends.transformers import preprocess_images
from ..parameters import Range
from ..registry import preprocessor

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device, Network
    from ..library import Library

ISNET_WEIGHTS = WeightsFile(
    "NimaBoscarino/IS-Net_DIS-general-use",
    "isnet-general-use.pth",
    webui_folder="isnet",
    license="Apache-2.0",
    size=176579397,
    sha256="9e1aafea58f0b55d0c35077e0ceade6ba1ba2bce372fd4f8f77215391f3fac13",
    source=f"{HUB_COMMIT_PAGE} 72cb986",
)
RMBG_WEIGHTS = WeightsFile(
    "briaai/RMBG-1.4",
    "model.safetensors",
    webui_folder="briaai/RMBG-1.4",
    license="bria-rmbg-1.4, non-commercial",
    approx_size=176_000_000,
    source=f"{HUB_FILE_LIST} 184e3b6",
)
ANIME_SEG_WEIGHTS = WeightsFile(
    "skytnt/anime-seg",
    "isnetis.ckpt",
    webui_folder="anime_seg",
    license="Apache-2.0",
    approx_size=204_000_000,
    source=f"{HUB_FILE_LIST} 976cbb9",
)


def _make_birefnet_weights(repo: str, license: str, approx_size: int | None = None, source: str = "") -> WeightsFile:
    return WeightsFile(
        repo, "model.safetensors", webui_folder=repo, license=license, approx_size=approx_size, source=source
    )


BIREFNET_WEIGHTS = _make_birefnet_weights("ZhengPeng7/BiRefNet", "MIT")
BIREFNET_LITE_WEIGHTS = _make_birefnet_weights(
    "ZhengPeng7/BiRefNet_lite", "MIT", 178_000_000, f"{HUB_FILE_LIST} aa5bf0a"
)
# The Hub requires a login: the token of huggingface_hub is sent for it
RMBG_2_WEIGHTS = _make_birefnet_weights(
    "briaai/RMBG-2.0", "CC-BY-NC-4.0, non-commercial", 885_000_000, f"{HUB_FILE_LIST} 3c83d25"
)
MATTING_INPUT_SIZE = 1024  # pixels of the networks' input

MattingFunction = Callable[["Network", np.ndarray], np.ndarray]


def stretch_matting(network: Network, images: np.ndarray) -> np.ndarray:
    """Estimate the foreground `(B, H, W)` float32 in 0..1 of images `(B, H, W, 3)` uint8, RGB, stretched to squares; an
    image's least value is taken as 0 and its greatest as 1 (xuebinqin/DIS, Inference.py; briaai/RMBG-1.4)."""
    small = np.stack(
        [
            cv2.resize(image, (MATTING_INPUT_SIZE, MATTING_INPUT_SIZE), interpolation=cv2.INTER_LINEAR)
            for image in images
        ]
    )
    mattes = _infer_mattes(network, to_batch_tensor(small.astype(np.float32) / 255 - 0.5), *images.shape[1:3])
    least, most = (side(mattes, axis=(1, 2), keepdims=True) for side in (np.min, np.max))
    return (mattes - least) / np.maximum(most - least, 1e-6)


def letterbox_matting(network: Network, images: np.ndarray) -> np.ndarray:
    """Estimate the foreground `(B, H, W)` as `stretch_matting` does, but with images in the middle of black squares,
    and the network's values as they are (SkyTNT/anime-segmentation, inference.py)."""
    height, width = images.shape[1:3]
    scale = MATTING_INPUT_SIZE / max(height, width)
    h, w = (max(int(side * scale), 1) for side in (height, width))
    top, left = (MATTING_INPUT_SIZE - h) // 2, (MATTING_INPUT_SIZE - w) // 2
    squares = np.zeros((len(images), MATTING_INPUT_SIZE, MATTING_INPUT_SIZE, 3), np.float32)
    for square, image in zip(squares, images, strict=True):
        square[top : top + h, left : left + w] = cv2.resize(image.astype(np.float32) / 255, (w, h))
    return _infer_mattes(network, to_batch_tensor(squares), height, width, (slice(top, top + h), slice(left, left + w)))


def imagenet_matting(network: Network, images: np.ndarray) -> np.ndarray:
    """Estimate the foreground `(B, H, W)` as `stretch_matting` does, but with ImageNet's mean and deviation, and the
    network's values as they are (ZhengPeng7/BiRefNet, tutorials/BiRefNet_inference.ipynb)."""
    square = {"height": MATTING_INPUT_SIZE, "width": MATTING_INPUT_SIZE}
    settings = {"size": square, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return _infer_mattes(network, preprocess_images(settings, images), *images.shape[1:3])


def _infer_mattes(network: Network, x: Tensor, height: int, width: int, crop: tuple[slice, ...] = ()) -> np.ndarray:
    mattes = network(x).sigmoid()[:, 0].numpy()
    if not np.isfinite(mattes).all():
        raise ValueError("the network's mattes are no numbers: compute in float32 or bfloat16")
    return np.stack([cv2.resize(matte[crop], (width, height), interpolation=cv2.INTER_LINEAR) for matte in mattes])


def make_background_preprocessor(weights: WeightsFile, infer_mattes: MattingFunction, network: str = "isnet") -> type:
    """A class for `preprocessor` that takes the background away, by the network of that name in annotators, of this
    file."""

    class Background:
        """The image on an even grey `ground`, or with `matte` what of it is not background, as white. Values: that,
        (H, W) float32 in 0..1."""

        def __init__(self, device: str | Device, library: Library):
            self.network = library.load_network(
                weights, importlib.import_module(f"...annotators.{network}", __package__).load, device
            )

        def __call__(
            self, images: np.ndarray, *, ground: Annotated[int, Range(0, 255)] = 255, matte: bool = False
        ) -> list[tuple[np.ndarray, np.ndarray]]:
            mattes = []
            for image, part in zip(images, infer_mattes(self.network, images), strict=True):
                part = part[..., None]
                floats = part * 255 if matte else image * part + np.float32(ground) * (1 - part)
                pixels = (floats + 0.5).astype(np.uint8)
                mattes.append((pixels[..., 0] if matte else pixels, part[..., 0]))
            return mattes

    return Background


preprocessor("remove_background", makes="other", fidelity="foreground", weights=ISNET_WEIGHTS, batched=True)(
    make_background_preprocessor(ISNET_WEIGHTS, stretch_matting)
)
preprocessor("remove_background_rmbg", makes="other", fidelity="foreground", weights=RMBG_WEIGHTS, batched=True)(
    make_background_preprocessor(RMBG_WEIGHTS, stretch_matting)
)
preprocessor("remove_background_anime", makes="other", fidelity="foreground", weights=ANIME_SEG_WEIGHTS, batched=True)(
    make_background_preprocessor(ANIME_SEG_WEIGHTS, letterbox_matting)
)
preprocessor(
    "remove_background_birefnet", makes="other", fidelity="foreground", weights=BIREFNET_WEIGHTS, batched=True
)(make_background_preprocessor(BIREFNET_WEIGHTS, imagenet_matting, "birefnet"))
preprocessor(
    "remove_background_birefnet_lite", makes="other", fidelity="foreground", weights=BIREFNET_LITE_WEIGHTS, batched=True
)(make_background_preprocessor(BIREFNET_LITE_WEIGHTS, imagenet_matting, "birefnet"))
preprocessor("remove_background_rmbg2", makes="other", fidelity="foreground", weights=RMBG_2_WEIGHTS, batched=True)(
    make_background_preprocessor(RMBG_2_WEIGHTS, imagenet_matting, "birefnet")
)
