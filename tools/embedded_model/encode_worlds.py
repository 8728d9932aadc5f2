"""Encode the rendered worlds once, for the base: `python -m tools.embedded_model.encode_worlds WORLDS VAE --size 192`.

Beside each part of a set its latents (128, 4, h, w) float16 are written, as `training-000000-latents192.npy`. Latents
that are there are kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny

from tools.embedded_model.world_sets import DOMAINS, SEEDS, open_pixels, read_captions


def latents_file(pixels: Path, size: int) -> Path:
    """Where the latents of a part of a set lie."""
    return pixels.with_name(f"{pixels.stem}-latents{size}.npy")


@torch.no_grad()
def encode_part(vae: Any, pixels: np.ndarray, size: int) -> np.ndarray:
    """Latents (N, 4, size / 8, size / 8) float16 of pixels (N, H, W, 3) RGB uint8, scaled down first."""
    scaled = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in pixels])
    x = torch.from_numpy(scaled).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vae.encode(part.contiguous(memory_format=torch.channels_last)).latents.float() for part in x.split(8)]
    return (torch.cat(parts) * vae.config["scaling_factor"]).half().numpy()


def read_latents(folder: Path, domain: str, split: str, size: int) -> tuple[np.ndarray, list[str]]:
    """Latents (N, 4, h, w) float16 and captions of a set. FileNotFoundError if some of it has not been encoded."""
    files = [latents_file(Path(part.filename), size) for part in open_pixels(folder, domain, split)]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise FileNotFoundError(f"no latents of {domain}: {missing[0] if missing else split}; run encode_worlds first")
    return np.concatenate([np.load(file) for file in files]), read_captions(folder, domain, split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=Path, help="the folder of world_sets")
    parser.add_argument("vae", type=Path, help="what distill_vae has written")
    parser.add_argument("--size", type=int, default=192, help="pixels, a multiple of 8")
    options = parser.parse_args()
    vae = AutoencoderTiny.from_pretrained(options.vae).eval().to(memory_format=torch.channels_last)
    for domain in DOMAINS:
        for split in SEEDS:
            for part in open_pixels(options.worlds, domain, split):
                file = latents_file(Path(part.filename), options.size)
                if not file.exists():
                    latents = encode_part(vae, part, options.size)
                    with file.with_suffix(".part").open("wb") as open_file:
                        np.save(open_file, latents)
                    file.with_suffix(".part").rename(file)
                    print(f"{domain} {file.name}", flush=True)


if __name__ == "__main__":
    main()
