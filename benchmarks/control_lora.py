"""What a Control-LoRA takes beside the UNet it works on, and what the ControlNet does that it stands for.

    python benchmarks/control_lora.py [--rank 128] [--latents 32] [--runs 3]

A UNet and networks of SD1.5's published shapes in bfloat16, with random numbers. Each line is a process of its own that
makes the UNet, then loads the model, settles it and calls it: by how much memory rose afterwards and at its peak beside
the same process's without a model (the peak holds the activations too), and the median time of a call.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from loading import memory
from network import PUBLISHED

from controlnet_ext.control import Span, Step
from controlnet_ext.models.control_lora import load
from controlnet_ext.models.controlnet import ControlNet
from controlnet_ext.models.unet import encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--latents", type=int, default=32, help="height and width of the latents, 1/8 of the picture's")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.rank, options.latents, options.runs)))
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(
        f"{torch.get_num_threads()} threads, rank {options.rank}, 2 rows of {options.latents}x{options.latents} latents"
    )
    for kind in ("ControlNet", "Control-LoRA"):
        words = [sys.executable, *sys.argv, "--one", kind]
        found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        sizes = "  ".join(f"{name} {found[name] / 1e6:.0f} MB" for name in ("numbers", "after", "peak"))
        print(f"{kind:13} {sizes}  call {found['call']:.2f} s")


@torch.no_grad()
def one(kind: str, rank: int, latents: int, runs: int) -> dict[str, float]:
    """Bytes of the model's numbers, by how much memory rose, and seconds of a call."""
    unet = made()
    before = memory("VmRSS")
    net = load(factors(unet, rank), {}) if kind == "Control-LoRA" else ControlNet.copy_of(unet)
    net.settle(unet)
    step = Step(
        x=torch.randn(2, 4, latents, latents).bfloat16(),
        t=torch.tensor([500, 500]),
        context=torch.randn(2, 77, 768).bfloat16(),
        span=Span(0, 1),
    )
    hint = net.hint(np.zeros((8 * latents, 8 * latents, 3), np.uint8))
    seconds = []
    for _ in range(1 + runs):
        started = time.perf_counter()
        net(step, hint)
        seconds.append(time.perf_counter() - started)
    return {
        "numbers": sum(p.numel() * p.element_size() for p in net.parameters()),
        "after": memory("VmRSS") - before,
        "peak": memory("VmHWM") - before,
        "call": statistics.median(seconds[1:]),
    }


def made() -> UNet2DConditionModel:
    """SD1.5's UNet, every page of its memory in use."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**PUBLISHED["SD1.5"]).to(torch.bfloat16)
    unet = unet.to_empty(device="cpu").eval()
    for parameter in unet.parameters():
        parameter.fill_(1e-3)
    return unet


def factors(unet: UNet2DConditionModel, rank: int) -> dict[str, torch.Tensor]:
    """A file of that rank, as Stability's are written."""
    with torch.device("meta"):
        names = ControlNetModel(**PUBLISHED["SD1.5"]).state_dict()
    shared, file = encoder(unet), {"lora_controlnet": torch.zeros(0)}
    for name, tensor in names.items():
        if name in shared and tensor.ndim > 1:
            stem = name.removesuffix(".weight")
            file[f"{stem}.up"] = some(tensor.shape[0], rank, *[1] * (tensor.ndim - 2))
            file[f"{stem}.down"] = some(rank, *tensor.shape[1:])
        else:
            file[name] = some(*tensor.shape)
    return file


def some(*shape: int) -> torch.Tensor:
    return torch.full(shape, 1e-3, dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
