"""Measure the autoencoder: `python -m tools.embedded_model.measure_vae WORLDS TEACHER IMAGES runs/vae/vae`.

Prints a table of held-out images of 256 pixels, per domain: PSNR in dB (the mean over the images) of our autoencoder
and of TAESD, of our decoder on TAESD's latents and of TAESD's decoder on ours (that both speak of the same latents),
and the canny F1 (thresholds 100 and 200, 1 px) of the reconstruction. IMAGES is a folder of photographs that no
training has seen; they are cut to a square and scaled; drawings among them (mostly white) are a domain of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from controlnet_ext.maps.fidelity import canny_f1
from tools.embedded_model.distill_vae import load_taesd
from tools.embedded_model.world_sets import DOMAINS, open_pixels

SIZE = 256
COLUMNS = ("ours", "taesd", "taesd>ours", "ours>taesd")  # encoder > decoder


def read_photos(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photographs and drawings in a folder, each the middle square at 256 pixels, (H, W, 3) RGB uint8."""
    photos, drawings = [], []
    for file in sorted(folder.iterdir()):
        image = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)
        if image is None:
            continue
        side = min(image.shape[:2])
        y, x = ((length - side) // 2 for length in image.shape[:2])
        square = cv2.resize(image[y : y + side, x : x + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        white = (square.min(2) > 245).mean()
        (drawings if white > 0.6 else photos).append(square)
    return photos, drawings


@torch.no_grad()
def encode(vae: Any, images: np.ndarray) -> list[Tensor]:
    """The latents of images (N, H, W, 3) RGB uint8, in parts of eight."""
    parts = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).split(8)
    return [vae.encode(part.float() / 127.5 - 1).latents for part in parts]


@torch.no_grad()
def decode(vae: Any, latents: list[Tensor]) -> np.ndarray:
    """The images (N, H, W, 3) RGB uint8 of latents in parts."""
    pixels = torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents])
    return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean PSNR in dB of image pairs (N, H, W, 3) uint8."""
    errors = ((a.astype(np.float32) - b) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(errors, 1e-6))).mean())


def mean_f1(images: np.ndarray, outputs: np.ndarray) -> float:
    """Mean canny F1 (1 px) of reconstructions; images without edges are left out."""
    scores = [canny_f1(cv2.Canny(a, 100, 200), b).within_1px for a, b in zip(images, outputs, strict=True)]
    return float(np.nanmean(scores))


def measure(ours: Any, taesd: Any, images: np.ndarray) -> dict[str, float]:
    """The row of one domain."""
    latents, taesd_latents = encode(ours, images), encode(taesd, images)
    outputs = {"ours": decode(ours, latents), "taesd": decode(taesd, taesd_latents)}
    outputs |= {"taesd>ours": decode(ours, taesd_latents), "ours>taesd": decode(taesd, latents)}
    row = {name: psnr(images, outputs[name]) for name in COLUMNS}
    return {**row, "F1 ours": mean_f1(images, outputs["ours"]), "F1 taesd": mean_f1(images, outputs["taesd"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=Path, help="the folder of fetch and world_sets, with held-out sets")
    parser.add_argument(
        "teacher", type=Path, help="folder with taesd_encoder.safetensors and taesd_decoder.safetensors"
    )
    parser.add_argument("images", type=Path, help="folder of photographs that no training has seen")
    parser.add_argument("vae", type=Path, help="what distill_vae has written")
    parser.add_argument("--count", type=int, default=32, help="images of each rendered domain")
    parser.add_argument("--sheet", type=Path, help="image file: photographs, ours, TAESD's")
    options = parser.parse_args()
    ours, taesd = AutoencoderTiny.from_pretrained(options.vae).eval(), load_taesd(options.teacher)
    for vae in (ours, taesd):
        vae.to(memory_format=torch.channels_last)
    sets = {}
    for domain in DOMAINS:
        parts = open_pixels(options.worlds, domain, "held_out")
        if parts:
            sets[domain] = np.concatenate(parts)[: options.count]
    photos, drawings = read_photos(options.images)
    sets |= {name: np.stack(images) for name, images in (("photos", photos), ("drawings", drawings)) if images}
    print(f"{'':12}{'n':>4}" + "".join(f"{name:>12}" for name in (*COLUMNS, "F1 ours", "F1 taesd")))
    for name, images in sets.items():
        row = measure(ours, taesd, images)
        cells = "".join(f"{value:12.3f}" if name.startswith("F1") else f"{value:12.2f}" for name, value in row.items())
        print(f"{name:12}{len(images):4}{cells}", flush=True)
    if options.sheet:
        images = np.stack([*photos[:8], *(sets[d][i] for d in DOMAINS if d in sets for i in range(2))])
        rows = [images, *(decode(vae, encode(vae, images)) for vae in (ours, taesd))]
        cv2.imwrite(str(options.sheet), np.vstack([np.hstack(list(row)) for row in rows])[..., ::-1])


if __name__ == "__main__":
    main()
