"""What a training of each target takes: parameters, bytes of their states, and bytes kept for the backward pass.

Networks of full size on torch's meta device: nothing is computed, so it runs anywhere in a minute. One image of 512x512
(SDXL: 1024x1024) in fp32. `states` are weights, gradients, two of AdamW and the average; `activations` are the tensors
that autograd keeps for the backward pass, without weights, as torch's attention keeps them on this device; `again`, the
same with --checkpointing.

    python -m benchmarks.training_targets

And whether each learns: the loss of one batch of two scenes with noise that never changes, after 30 steps on it,
against that of the embedded model without control. That is overfitting, which a target that cannot learn would not do.

    python -m benchmarks.training_targets learn
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from controlnet_ext import preprocess
from controlnet_ext.embedded.scenes import draw_scene
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.guidance.contract import UndoStack
from controlnet_ext.models import base_unet
from controlnet_ext.training.bases import EncodedBatch, FrozenBase
from controlnet_ext.training.losses import DiffusionLoss
from controlnet_ext.training.memory import checkpoint_activations
from controlnet_ext.training.targets import TargetSettings, find_target, list_targets

STATES = 5  # fp32 numbers of each parameter
UNETS: dict[str, dict[str, Any]] = {
    "SD1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SDXL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
}
SIDES = {"SD1.5": 512, "SDXL": 1024}


def make_base(family: str) -> FrozenBase:
    """Return a frozen UNet without values; nothing but `predict` works."""
    base = FrozenBase.__new__(FrozenBase)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[family]).requires_grad_(False)
    base.__dict__ |= {
        "unet": unet,
        "_pipe": SimpleNamespace(unet=unet),
        "_attached": UndoStack(),
        "device": torch.device("meta"),
        "is_sdxl": family == "SDXL",
        "is_inpainting": False,
    }
    return base


def count_kept(base: FrozenBase, net: Any, side: int, saves: bool) -> int:
    """Return the bytes that autograd keeps of one example, without the weights."""
    weights = {p.untyped_storage()._cdata for module in (base.unet, net) for p in module.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    width = base.unet.config["cross_attention_dim"]
    batch = EncodedBatch(
        torch.zeros(1, 4, side // 8, side // 8),
        torch.zeros(1, 77, width),
        np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8),
        added=torch.zeros(1, 1280 + 6) if base.is_sdxl else None,
    )
    base.unet.enable_gradient_checkpointing() if saves else base.unet.disable_gradient_checkpointing()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        checkpoint_activations(net) if saves else nullcontext(),
    ):
        predicted = base.predict(batch.latents, torch.tensor([500]), batch, net)
    base.release()
    assert predicted.requires_grad
    return sum(size for size, _ in kept.values())


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}; fp32; one image; GB are 10^9 bytes")
    print("| base | target | parameters | states, GB | activations, GB | again, GB |\n|---|---|---|---|---|---|")
    with (
        patch.object(base_unet, "read_tensor", lambda layer, part: getattr(layer, part)),
        patch.object(base_unet, "is_empty", lambda unet: False),
    ):
        for family in UNETS:
            base = make_base(family)
            for name in list_targets():
                target, settings = find_target(name), TargetSettings()
                try:
                    target.check(base.unet, settings)
                except ValueError:
                    continue
                net: Any = target.create(base.unet, settings)
                count = sum(p.numel() for p in net.parameters())
                gigabytes = [count_kept(base, net, SIDES[family], saves) / 1e9 for saves in (False, True)]
                states = 4 * STATES * count / 1e9
                print(
                    f"| {family} | {name} | {count:,} | {states:.2f} | {gigabytes[0]:.2f} | {gigabytes[1]:.2f} |",
                    flush=True,
                )


def learn(steps: int = 30, rate: float = 2e-3) -> None:
    """Print how far each target gets below the loss without control."""
    folder = PipelineFolder.find("embedded")
    objective = DiffusionLoss(folder.make_scheduler("ddpm"))
    base = FrozenBase(folder.load(torch.float32, folder.make_scheduler(None)), "cpu")
    scenes = [draw_scene(seed, 128) for seed in (0, 1)]
    batch = EncodedBatch(
        torch.stack([base.encode_latents(scene.pixels) for scene in scenes]),
        torch.stack([base.encode_caption(scene.caption).context for scene in scenes]),
        np.stack([preprocess("canny", scene.pixels).pixels for scene in scenes]),
    )
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    x, target, t = objective.add_noise(batch.latents, noise, torch.tensor([500, 800]))

    def compute_loss(net: Any) -> Tensor:
        return (base.predict(x, t, batch, net) - target).square().mean()

    with torch.no_grad():
        unguided = compute_loss(None).item()
    print(f"{steps} steps of AdamW, rate {rate:g}; without control {unguided:.4f}")
    for name in list_targets():
        torch.manual_seed(0)
        try:
            settings = TargetSettings(rank=16 if name == "control-lora" else None)
            find_target(name).check(base.unet, settings)
        except ValueError:
            continue
        net = find_target(name).create(base.unet, settings)
        optimizer = torch.optim.AdamW(net.parameters(), rate)
        losses = []
        for _ in range(steps + 1):
            optimizer.zero_grad()
            loss = compute_loss(net)
            losses.append(loss.item())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        print(f"{name}: {losses[0]:.4f} at first, {losses[-1]:.4f} then: {losses[-1] / unguided:.2f} of it", flush=True)


if __name__ == "__main__":
    learn() if sys.argv[1:] == ["learn"] else main()
