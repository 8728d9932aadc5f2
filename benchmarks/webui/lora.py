"""A LoRA of random numbers for the embedded model in the webui: `python -m benchmarks.webui.lora FILE.safetensors`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from controlnet_ext.embedded.export_ldm import get_width_and_heads
from controlnet_ext.embedded.wide import compute_width_factor
from controlnet_ext.files.safetensors import write_weights

RANK, STRENGTH = 4, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="FILE")
    out = parser.parse_args().out
    from diffusers import UNet2DConditionModel

    from controlnet_ext.embedded import EMBEDDED_FOLDER

    unet = UNet2DConditionModel.from_pretrained(EMBEDDED_FOLDER / "unet")
    width = get_width_and_heads(unet)[0] * compute_width_factor(unet.config["norm_num_groups"])
    numbers = torch.Generator().manual_seed(0)
    tensors = {}
    for block in (4, 5, 7, 8):
        for layer in ("to_q", "to_out_0"):
            name = f"lora_unet_input_blocks_{block}_1_transformer_blocks_0_attn1_{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, width, generator=numbers) * STRENGTH
            tensors[f"{name}.lora_up.weight"] = torch.randn(width, RANK, generator=numbers) * STRENGTH
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    write_weights(out, tensors, {}, False)


if __name__ == "__main__":
    main()
