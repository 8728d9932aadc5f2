"""Small training data on disk, in the layouts that people have, and a frozen model that only counts pixels."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from controlnet_ext.training.bases import EncodedCaption
from controlnet_ext.training.data import LoadingSettings, Sampling, Tolerance

SIDE = 16


def make_pixels(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Random pixels (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """The PNG of pixels (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def make_png(seed: int, height: int = SIDE, width: int = SIDE) -> bytes:
    """A PNG of random pixels."""
    return encode_png(make_pixels(seed, height, width))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar with these members, in order."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int, samples: int, **sizes: int) -> Path:
    """Shards 0.tar and so on with as many samples each, of an image, a map and a caption; return their pattern."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for i in range(shard * samples, (shard + 1) * samples):
            members |= {
                f"{i:03d}.png": make_png(i, **sizes),
                f"{i:03d}.map.png": make_png(1000 + i, **sizes),
                f"{i:03d}.txt": f"caption {i}".encode(),
            }
        write_tar(folder / f"{shard:02d}.tar", members)
    return folder / f"{{00..{shards - 1:02d}}}.tar"


def write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A list of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class CountingBase:
    """A frozen model whose latents are the sums of an image's quarters; it counts what it encodes."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.images, self.captions = 0, 0
        self.empty_caption = EncodedCaption(torch.zeros(1, 4))

    def encode_latents(self, pixels: np.ndarray) -> torch.Tensor:
        """Latents (1, 2, 2)."""
        self.images += 1
        height, width = (side // 2 for side in pixels.shape[:2])
        x = torch.from_numpy(np.ascontiguousarray(pixels)).double()
        quarters = [x[i * height :, j * width :][:height, :width].sum() for i in (0, 1) for j in (0, 1)]
        return torch.stack(quarters).reshape(1, 2, 2).float()

    def encode_caption(self, caption: str) -> EncodedCaption:
        """Text states (1, 4)."""
        self.captions += 1
        digest = hashlib.sha256(caption.encode()).digest()[:4]
        return EncodedCaption(torch.tensor([[float(byte) for byte in digest]]))

    def build_added(self, *_: Any) -> None:
        """None, as of models that are no SDXL."""

    def encode_extra(self, *_: Any) -> None:
        """None, as of models that are not for inpainting."""


def make_loading(**settings: Any) -> LoadingSettings:
    """Loading that tolerates nothing by default, and whose reports are dropped."""
    return LoadingSettings(**{"tolerance": Tolerance(0.0, lambda _: None), "workers": 0, **settings})


def make_sampling(**settings: Any) -> Sampling:
    """Sampling of small squares, nothing dropped by default."""
    return Sampling(**{"size": (SIDE, SIDE), "step": 8, "caption_dropout": 0.0, **settings})
