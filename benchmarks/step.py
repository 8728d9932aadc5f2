"""A step of SD1.5 or SDXL at its real width, random weights: unguided, guided by us, and by diffusers' own ControlNet
pipeline.

    python benchmarks/step.py [--rounds 3] [--steps 3] [--size 512] [--compiled]
    python benchmarks/step.py --device cuda --dtype float16 --steps 20 [--images 4] [--shape SDXL --size 1024]

They take turns, each with the same ControlNet and two rows an image for guidance; a step is what lies between two
callbacks of the pipeline: UNet, ControlNet, guidance and scheduler. The first step of each call is its warm-up, which
also holds our hint. On a GPU ours comes twice, also without a stream of its own for the net; with --compiled once more,
the net through torch.compile (mode "reduce-overhead": CUDA graphs on a GPU), compiled before it counts. Then one more
guided call, with a wait for the device at each boundary, shows where the time goes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from PIL import Image

from controlnet_ext import Unit, guide
from controlnet_ext.guidance import run
from controlnet_ext.hosts import session
from controlnet_ext.models.kinds.controlnet import ControlNet

Result = tuple[list[tuple[float, float]], torch.Tensor]
SHAPES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "SD1.5": (
        {"cross_attention_dim": 768},
        diffusers.StableDiffusionPipeline,
        diffusers.StableDiffusionControlNetPipeline,
    ),
    "SDXL": (
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        diffusers.StableDiffusionXLPipeline,
        diffusers.StableDiffusionXLControlNetPipeline,
    ),
}
UP = {"SDXL": {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}}  # the UNet's alone
PROMPT = "keys and values of the prompt"
DDIM = {"clip_sample": False, "steps_offset": 1}  # what both pipelines would set, the plain one only with a warning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shape", default="SD1.5", choices=SHAPES)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, default=512, help="height and width of the image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="an arm with the network through torch.compile")
    parser.add_argument("--steps", type=int, default=3, help="steps of each call, of which the first is warm-up")
    options = parser.parse_args()
    machine = torch.cuda.get_device_name() if options.device == "cuda" else cpu()
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}")
    print(f"{machine}, {torch.get_num_threads()} threads, {options.dtype}")
    side = options.size // 8
    print(f"{options.shape} widths, {2 * options.images} rows of {side}x{side} latents, {options.size} pixels")
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Time the ways in turn and print their steps, then where the time of a guided call goes."""
    dtype, device = getattr(torch, options.dtype), options.device
    shape, plain_kind, controlled_kind = SHAPES[options.shape]
    unet = make_random(UNet2DConditionModel, dtype, device, **shape, **UP.get(options.shape, {}))
    theirs = make_random(ControlNetModel, dtype, device, **shape)
    ours = ControlNet.load(theirs.state_dict(), theirs.config)  # the same tensors, not copies
    parts, arguments = make_parts(options, unet), make_arguments(options, shape["cross_attention_dim"])
    plain = plain_kind(**parts, scheduler=DDIMScheduler(**DDIM))
    controlled = controlled_kind(**parts, controlnet=theirs, scheduler=DDIMScheduler(**DDIM))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (options.size,) * 2 + (3,), np.uint8))
    ways = make_ways(options, plain, ours, image, arguments)
    ways["diffusers"] = lambda: steps(controlled, device, arguments | {"image": image})
    walls, works, latents = defaultdict(list), defaultdict(list), {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            seconds, latents[name] = way()
            for wall, work in seconds[1:]:
                walls[name].append(wall)
                works[name].append(work)
    print(f"1 warm-up a call, then median (least to most) of {len(walls['ours'])} steps, in {options.rounds} turns")
    print_seconds("on the clock", walls)
    if device == "cpu":
        print_seconds("of the processor, which other work does not add to", works)
    for name in latents.keys() - {"unguided", "diffusers"}:
        print(f"largest difference of latents, {name}: {(latents[name] - latents['diffusers']).abs().max().item():g}")
    where(ways["ours"], device, options.steps, ours, unet)


def make_parts(options: argparse.Namespace, unet: Any) -> dict[str, Any]:
    """The components of both pipelines but the ControlNet and the scheduler."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(
        **blocks, block_out_channels=(8,) * 4, norm_num_groups=4
    )  # only says that 8 pixels are a latent
    parts = {"vae": vae, "unet": unet, "text_encoder": None, "tokenizer": None}
    if options.shape == "SDXL":
        return parts | {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
    return parts | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def make_arguments(options: argparse.Namespace, width: int) -> dict[str, Any]:
    """The arguments of each call of a pipeline, with random prompts `(images, 77, width)`."""
    prompts = {name: torch.randn(1, 77, width) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if options.shape == "SDXL":
        prompts |= {f"{sign}pooled_prompt_embeds": torch.randn(1, 1280) for sign in ("", "negative_")}
    dtype = getattr(torch, options.dtype)
    rows = {name: t.to(options.device, dtype).repeat_interleave(options.images, 0) for name, t in prompts.items()}
    return rows | {"height": options.size, "width": options.size, "num_inference_steps": options.steps}


def make_ways(
    options: argparse.Namespace, pipe: Any, net: ControlNet, image: Image.Image, arguments: dict[str, Any]
) -> dict[str, Callable[[], Result]]:
    """A call of the pipeline without units, and each way of ours to guide it; `--compiled` is compiled here."""

    unit = Unit(net, image)

    def run_guided(unit: Unit = unit) -> Result:
        with guide(pipe, [unit]):
            return steps(pipe, options.device, arguments)

    def run_on_one_stream() -> Result:
        with mock.patch.object(session, "open_side_stream", lambda _: None):
            return run_guided()

    ways: dict[str, Callable[[], Result]] = {
        "unguided": lambda: steps(pipe, options.device, arguments),
        "ours": run_guided,
    }
    if options.device == "cuda":
        ways["one stream"] = run_on_one_stream
    if options.compiled:
        compiled = copy(net)
        compiled.compile(mode="reduce-overhead")
        ways["compiled"] = lambda: run_guided(Unit(compiled, image))
        for _ in range(2):  # compiled in the first, recorded in the second
            ways["compiled"]()
    return ways


def print_seconds(words: str, times: dict[str, list[float]]) -> None:
    """The median and the spread of each way, and its ratio to diffusers'."""
    print(f"seconds {words}:")
    for name, seconds in times.items():
        ratio = statistics.median(seconds) / statistics.median(times["diffusers"])
        text = f"{statistics.median(seconds):8.4f} ({min(seconds):.4f} to {max(seconds):.4f})"
        print(f"  {name:10} {text}  {ratio:.3f} x diffusers")


def where(guided: Callable[[], Any], device: str, count: int, net: ControlNet, unet: Any) -> None:
    """Print how the time of a guided call is shared out. Our own functions are wrapped, and waited for."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **kwargs: Any) -> Any:
            begin = clock(device)
            result = call(*args, **kwargs)
            spent[name] += clock(device) - begin
            return result

        return timing

    calls = [(run, name, "checks") for name in ("all_finite", "total_sum")]
    calls += [(run, name, "weighting") for name in ("apply_weight", "scatter_rows")]
    calls += [(net, "hint", "hint"), (net, "forward", "net"), (unet, "forward", "unet")]
    attentions = [block.attn2 for block in net.modules() if hasattr(block, "attn2")]
    calls += [(layer, "forward", PROMPT) for attention in attentions for layer in (attention.to_k, attention.to_v)]
    with ExitStack() as wrapped:
        for owner, name, part in calls:
            wrapped.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        begin = clock(device)
        guided()
        total = clock(device) - begin
    inside = spent.pop(PROMPT)
    spent["the rest"] = total - sum(spent.values())
    print(f"where {total:.3f} s of a guided call with {count} steps go:")
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {name:10} {seconds:8.4f} s  {seconds / total:7.2%}")
    print(f"of net, {PROMPT} {inside:8.4f} s  {inside / total:7.2%}")


def steps(pipe: Any, device: str, arguments: dict[str, Any]) -> Result:
    """Between the callbacks of one call, seconds on the clock and of the processor; and its latents."""
    pipe.set_progress_bar_config(disable=True)
    at = [(clock(device), time.process_time())]

    def ended(pipe: Any, i: int, t: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        at.append((clock(device), time.process_time()))
        return arguments

    seed = torch.Generator().manual_seed(0)
    result = pipe(**arguments, generator=seed, output_type="latent", callback_on_step_end=ended).images
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(at)], result


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def make_random(kind: Any, dtype: torch.dtype, device: str, **config: Any) -> Any:
    """A network whose every tensor is random and keeps activations near 1."""
    with torch.device("meta"):
        net = kind(**config).eval()
    tensors = {}
    for name, t in net.state_dict().items():
        scale = t[0].numel() ** -0.5 if t.ndim > 1 else 0.3
        tensors[name] = (scale * torch.randn(t.shape)).to(device, dtype)
    net.load_state_dict(tensors, assign=True)
    return net


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
