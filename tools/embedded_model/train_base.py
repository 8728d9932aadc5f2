"""Trains the embedded UNet and text encoder: `python -m tools.embedded_model.train_base runs/vae/vae runs/base`.

Run it again to go on. The VAE's latents of all training scenes are made once, into the folder. One caption in ten is
empty, for guidance.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet_ext.embedded.captions import TEXT_WIDTH, make_text_encoder, make_tokenizer
from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, draw_scene
from controlnet_ext.training.config import WEIGHTINGS, LossSettings, TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.losses import DiffusionLoss, make_generator
from tools.embedded_model.train_vae import NORM_GROUPS, render_scenes

TRAINING_SCENES = 16_000
BATCH_SIZE = 32
ATTENTION_HEADS = 4  # of attention, each 16 wide; SD1.5 has 8, which on a CPU cost half as much again for each step
EMPTY_CAPTION_RATE = 0.1
HELD_OUT_SCENES = 256


def make_unet() -> Any:
    """SD1.5's UNet topology, 4.4 M parameters instead of 859.5 M."""
    unet: Any = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64,) * 4,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=ATTENTION_HEADS,  # diffusers' name for the number of heads
        norm_num_groups=NORM_GROUPS,
    )
    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())  # for heads this narrow, PyTorch's fused attention is slower on a CPU
    return unet


def make_noise_scheduler() -> Any:
    """SD1.5's noise levels."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class LatentExamples:
    """Latents (N, 4, 16, 16) scaled to a standard deviation of 1, and tokens (N, 77) of their captions."""

    def __init__(self, latents: Tensor, tokens: Tensor):
        self.latents, self.tokens = latents, tokens

    @classmethod
    def from_scenes(cls, vae: Path, tokenizer: CLIPTokenizer, seeds: range) -> LatentExamples:
        parts = [seeds[i : i + 256] for i in range(0, len(seeds), 256)]
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
            latents, captions = zip(*processes.map(encode_scenes, [vae] * len(parts), parts), strict=True)
        return cls(
            torch.from_numpy(np.concatenate(latents)), tokenize_captions(tokenizer, [*chain.from_iterable(captions)])
        )

    @classmethod
    def load_or_encode(cls, file: Path, vae: Path, tokenizer: CLIPTokenizer, seeds: range) -> LatentExamples:
        """Those in the file, made first if need be."""
        if not file.exists():
            examples = cls.from_scenes(vae, tokenizer, seeds)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.with_suffix(".part").open("wb") as part:
                np.savez(part, latents=examples.latents.half().numpy(), tokens=examples.tokens.short().numpy())
            file.with_suffix(".part").rename(file)
        with np.load(file) as archive:
            return cls(torch.from_numpy(archive["latents"]).float(), torch.from_numpy(archive["tokens"]).long())


@torch.no_grad()
def encode_scenes(vae: Path, seeds: range) -> tuple[np.ndarray, list[str]]:
    """Latents (N, 4, 16, 16) and captions of scenes."""
    torch.set_num_threads(1)
    net: Any = AutoencoderKL.from_pretrained(vae)
    latents = torch.cat(
        [net.encode(render_scenes(seeds[i : i + 32])).latent_dist.mode() for i in range(0, len(seeds), 32)]
    )
    return (latents * net.config["scaling_factor"]).numpy(), [draw_scene(seed).caption for seed in seeds]


def tokenize_captions(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def compute_base_loss(
    net: nn.Module, examples: LatentExamples, empty_tokens: Tensor, objective: DiffusionLoss, step: int, batch: int
) -> Tensor:
    numbers = make_generator(step, batch)
    rows = torch.randint(len(examples.latents), (BATCH_SIZE,), generator=numbers)
    has_no_caption = torch.rand(BATCH_SIZE, 1, generator=numbers) < EMPTY_CAPTION_RATE
    words = torch.where(has_no_caption, empty_tokens, examples.tokens[rows])
    x, noise, t = objective.sample(examples.latents[rows], numbers)
    return objective.compute_loss(net(x, t, words), noise, t)


class BaseModel(nn.Module):
    """UNet and text encoder as one network: the noise in x (B, 4, 16, 16), for tokens (B, 77)."""

    def __init__(self, unet: nn.Module, text: nn.Module):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, t, self.text(tokens).last_hidden_state).sample


@torch.no_grad()
def compute_held_out_loss(net: nn.Module, examples: LatentExamples, objective: DiffusionLoss) -> dict[str, float]:
    """The loss on held-out scenes, always with the same noise and timesteps."""
    x, noise, t = objective.sample(examples.latents, make_generator(1))
    parts = [net(*part) for part in zip(x.split(64), t.split(64), examples.tokens.split(64), strict=True)]
    return {"held_out": objective.compute_loss(torch.cat(parts), noise, t).item()}


def measure_scaling_factor(vae: Any) -> float:
    """What brings latents to a standard deviation of 1, measured on 512 training scenes."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(render_scenes(range(i, i + 32))).latent_dist.mode() for i in range(0, 512, 32)])
    return 1 / latents.std().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vae", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--start", type=Path, help="a saved model whose UNet and text encoder learn further")
    parser.add_argument("--weighting", choices=WEIGHTINGS, default="min-snr")
    parser.add_argument("--rate", type=float, default=1e-3, help="a smaller one for a model that learns further")
    options = parser.parse_args()
    vae: Any = AutoencoderKL.from_pretrained(options.vae)
    if vae.config["scaling_factor"] == 0.18215:  # SD1.5's, which diffusers writes when nobody says otherwise
        vae.register_to_config(scaling_factor=measure_scaling_factor(vae))
        vae.save_pretrained(options.vae)
    words = make_tokenizer(options.folder / "words")
    examples = LatentExamples.load_or_encode(
        options.folder / "training.npz", options.vae, words, range(TRAINING_SCENES)
    )
    held_out = LatentExamples.load_or_encode(
        options.folder / "held_out.npz", options.vae, words, HELD_OUT_SEEDS[:HELD_OUT_SCENES]
    )
    torch.manual_seed(0)
    noising, empty = (
        DiffusionLoss(make_noise_scheduler(), LossSettings(options.weighting)),
        tokenize_captions(words, [""]),
    )
    base = BaseModel(make_unet(), make_text_encoder(words))
    if options.start is not None:
        base.unet.load_state_dict(UNet2DConditionModel.from_pretrained(options.start / "unet").state_dict())
        base.text.load_state_dict(CLIPTextModel.from_pretrained(options.start / "text_encoder").state_dict())
    net = train(
        base,
        lambda net, step, batch: compute_base_loss(net, examples, empty, noising, step, batch),
        lambda net, _: compute_held_out_loss(net, held_out, noising),
        TrainingSchedule(options.steps, learning_rate=options.rate, evaluation_interval=options.every),
        options.folder,
    )
    if net is not None:
        assert isinstance(net, BaseModel)
        pipe: Any = StableDiffusionPipeline(
            vae, net.text, words, net.unet, make_noise_scheduler(), None, None, requires_safety_checker=False
        )
        pipe.save_pretrained(options.folder / "model")


if __name__ == "__main__":
    main()
