"""What a control model takes beside the UNet it guides: ControlNets by how they are stored, and a Control-LoRA.

    python benchmarks/memory.py [--rank 128] [--latents 32] [--runs 3] [--device cuda]

A UNet of SD1.5's published shapes in bfloat16, with random numbers. Each line is a process of its own that makes the
UNet, then loads the model, settles it and calls it: by how much memory rose afterwards and at its peak beside the same
process's without a model (the peak holds the activations too), and the median time of a call. On a GPU the memory is
the GPU's, once with the weights there and once with `low_vram`, where they stay in the computer's.
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

from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.models.base_unet import get_encoder_tensors
from controlnet_ext.models.kinds.control_lora import load
from controlnet_ext.models.kinds.controlnet import ControlNet

DTYPES = "float32", "bfloat16", "float8_e4m3fn"  # float32's activations are in float32 too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--latents", type=int, default=32, help="height and width of the latents, 1/8 of the image's")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--low-vram", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(
        f"{torch.get_num_threads()} threads, rank {options.rank}, 2 rows of {options.latents}x{options.latents} latents"
    )
    for kind in (*DTYPES, "Control-LoRA"):
        for stays in [[]] if options.device == "cpu" else [[], ["--low-vram"]]:
            words = [sys.executable, *sys.argv, "--one", kind, *stays]
            result = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            sizes = "  ".join(f"{name} {result[name] / 1e6:.0f} MB" for name in ("numbers", "after", "peak"))
            print(f"{kind:13} {'low_vram' if stays else '':8} {sizes}  call {result['call']:.2f} s")


@torch.no_grad()
def one(options: argparse.Namespace) -> dict[str, float]:
    """Bytes of the model's numbers, by how much memory rose, and seconds of a call."""
    kind, device, latents = options.one, torch.device(options.device), options.latents
    unet = make_unet().to(device)
    before = used(device)
    net = load(factors(unet, options.rank), {}) if kind == "Control-LoRA" else whole(getattr(torch, kind))
    net.bind(unet)
    net = net.stream_to(device) if options.low_vram else net.to(device)
    step = Step(
        x=torch.randn(2, 4, latents, latents).bfloat16().to(device),
        t=torch.tensor([500, 500], device=device),
        context=torch.randn(2, 77, 768).bfloat16().to(device),
        span=Span(0, 1),
    )
    hint = net.hint(np.zeros((8 * latents, 8 * latents, 3), np.uint8))
    seconds = []
    for _ in range(1 + options.runs):
        started = time.perf_counter()
        net(step, hint).middle.cpu()
        seconds.append(time.perf_counter() - started)
    return {
        "numbers": sum(p.numel() * p.element_size() for p in net.parameters()),
        "after": used(device) - before,
        "peak": (memory("VmHWM") if device.type == "cpu" else torch.cuda.max_memory_allocated(device)) - before,
        "call": statistics.median(seconds[1:]),
    }


def used(device: torch.device) -> int:
    """Bytes in use now."""
    return memory("VmRSS") if device.type == "cpu" else torch.cuda.memory_allocated(device)


def whole(dtype: torch.dtype) -> ControlNet:
    """A ControlNet whose matrices are stored so."""
    with torch.device("meta"):
        names = ControlNetModel(**PUBLISHED["SD1.5"]).state_dict()
    return ControlNet.load({name: some(*tensor.shape).to(dtype) for name, tensor in names.items()})


def make_unet() -> UNet2DConditionModel:
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
    encoder_tensors, file = get_encoder_tensors(unet), {"lora_controlnet": torch.zeros(0)}
    for name, tensor in names.items():
        if name in encoder_tensors and tensor.ndim > 1:
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
