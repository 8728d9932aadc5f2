"""Our ControlNet beside diffusers' at the three published widths, on the same random weights: error and time.

    python benchmarks/network.py [--dtype bfloat16] [--device cuda] [--latents 64] [--runs 5]

Prints, for each width, the largest error of any residual as a share of that residual's standard deviation, the smallest
standard deviation (equality of zeros would prove nothing), and the median time of a call with its spread.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import diffusers
import torch
from diffusers import ControlNetModel

from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.models.kinds.controlnet import ControlNet

# Configs of lllyasviel/sd-controlnet-canny, thibaud/controlnet-sd21 and diffusers/controlnet-canny-sdxl-1.0
PUBLISHED = {
    "SD1.5": {"cross_attention_dim": 768},
    "SD2.1": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "SDXL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
WARM_UP = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--latents", type=int, default=16, help="height and width of the latents, 1/8 of the image's")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}")
    print(f"{device}, {torch.get_num_threads()} threads, {options.dtype}")
    print(f"2 rows of {options.latents}x{options.latents} latents")
    print(f"{WARM_UP} warm-up, then median (least to most) of {options.runs} runs in turn")
    for name, config in PUBLISHED.items():
        compare(name, config, options)


@torch.no_grad()
def compare(name: str, config: dict[str, object], options: argparse.Namespace) -> None:
    dtype, device, size = getattr(torch, options.dtype), options.device, options.latents
    with torch.device("meta"):
        theirs = ControlNetModel(**config).eval()
    tensors = {key: draw_tensor(t.shape).to(device, dtype) for key, t in theirs.state_dict().items()}
    theirs.load_state_dict(tensors, assign=True)  # both hold these very tensors: SDXL's are 5 GB in float32
    ours = ControlNet.load(tensors, theirs.config)

    x = torch.randn(2, 4, size, size).to(device, dtype)
    t = torch.tensor([500, 500], device=device)
    context = torch.randn(2, 77, theirs.config.cross_attention_dim).to(device, dtype)
    image = torch.rand(1, 3, 8 * size, 8 * size).to(device, dtype)
    conditions, added = None, None
    if theirs.config.addition_embed_type:
        pooled, sizes = torch.randn(2, 1280).to(device, dtype), torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2)
        conditions = {"text_embeds": pooled, "time_ids": sizes.to(device)}
        embedded = theirs.add_time_proj(conditions["time_ids"].flatten()).reshape(2, -1)
        added = torch.cat([pooled, embedded.to(dtype)], dim=-1)
    step = Step(x, t, context, Span(0, 0.1), added=added)
    hint = ours.hint(image)

    def diffusers_call() -> list[torch.Tensor]:
        skips, middle = theirs(x, t, context, image, added_cond_kwargs=conditions, return_dict=False)
        return [*skips, middle]

    def our_call() -> list[torch.Tensor]:
        residuals = ours(step, hint)  # the hint is made once per run
        return [*residuals.skips, residuals.middle]

    pairs = list(zip(our_call(), diffusers_call(), strict=True))
    error = max(float((a - b).abs().max() / b.std()) for a, b in pairs)
    deviation = min(float(b.std()) for _, b in pairs)
    parameters = sum(t.numel() for t in tensors.values())
    print(f"{name}: {parameters:,} parameters, error/std {error:.1e}, smallest std {deviation:.2f}")
    for who, seconds in time_calls({"ours": our_call, "diffusers": diffusers_call}, options).items():
        print(f"  {who} {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})")


def draw_tensor(shape: torch.Size) -> torch.Tensor:
    """Random weights, also where a fresh ControlNet has zeros, that keep activations near a standard deviation of 1."""
    return torch.randn(shape) * (shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.3)


def time_calls(calls: dict[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each run, the calls taking turns, so that what else the machine does falls on both alike."""
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for run in range(WARM_UP + options.runs):
        for who, call in calls.items():
            start = time.perf_counter()
            call()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if run >= WARM_UP:
                seconds[who].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
