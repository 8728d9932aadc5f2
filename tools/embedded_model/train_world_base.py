"""Train the UNet and the text encoder on the three worlds: `python -m tools.embedded_model.train_world_base WORLDS VAE
runs/base192 --size 192`, then `... runs/base256 --size 256 --start runs/base192/model` with a smaller rate.

Run it again to go on. The worlds are drawn equally often; one caption in ten is empty, for guidance. The model is
written as a plain Stable Diffusion pipeline into the folder's `model`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

from controlnet_ext.training.config import WEIGHTINGS, LossSettings, TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.losses import DiffusionLoss, make_generator
from tools.embedded_model.encode_worlds import read_latents
from tools.embedded_model.world_sets import DOMAINS
from tools.embedded_model.world_words import WIDTH, narrow_text_encoder, write_tokenizer

CHANNELS = (64, 96, 128, 128)
GROUPS = 8  # 8 channels and more a group; with 32 groups of 2 each channel would lose its mean, which is color
HEADS = 2  # of 32 to 64 channels each: half the time of 4 in attention
BATCH = 24
EMPTY_CAPTIONS = 0.1
HELD_OUT_SCENES = 64  # of each domain


def narrow_unet(size: int) -> Any:
    """SD1.5's UNet topology (12 input blocks, 4 levels, cross-attention on three), 11 M parameters instead of 860."""
    unet: Any = UNet2DConditionModel(
        sample_size=size // 8,
        block_out_channels=CHANNELS,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,  # diffusers' name for the number of heads
        norm_num_groups=GROUPS,
    )
    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())  # for heads this narrow, PyTorch's fused attention is slower on a CPU
    return unet


def noise_scheduler() -> DDIMScheduler:
    """SD1.5's noise levels; predicts the noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Examples:
    """Latents and tokens of the worlds, each world drawn equally often."""

    def __init__(self, worlds: Path, split: str, size: int, tokenizer: Any, count: int | None = None):
        self._latents, self._tokens = [], []
        for domain in DOMAINS:
            latents, captions = read_latents(worlds, domain, split, size)
            self._latents.append(torch.from_numpy(latents[:count]))
            self._tokens.append(tokenize(tokenizer, captions[:count]))

    def draw(self, count: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` latents (B, 4, h, w) float32 and their tokens (B, 77)."""
        domains = torch.randint(len(self._latents), (count,), generator=numbers).tolist()
        rows = [(d, int(torch.randint(len(self._latents[d]), (1,), generator=numbers))) for d in domains]
        latents = torch.stack([self._latents[d][i].float() for d, i in rows])
        return latents, torch.stack([self._tokens[d][i] for d, i in rows])

    def domains(self) -> list[tuple[str, Tensor, Tensor]]:
        """Name, latents and tokens of each world."""
        return [(n, x.float(), t) for n, x, t in zip(DOMAINS, self._latents, self._tokens, strict=True)]


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


class Base(nn.Module):
    """UNet and text encoder as one network: the noise in x (B, 4, h, w), for tokens (B, 77)."""

    def __init__(self, unet: nn.Module, text: nn.Module):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, t, self.text(tokens).last_hidden_state).sample


def base_loss(
    net: nn.Module, examples: Examples, empty: Tensor, noising: DiffusionLoss, numbers: torch.Generator
) -> Tensor:
    """The loss on one batch; `empty` (1, 77) are the tokens of no caption."""
    latents, tokens = examples.draw(BATCH, numbers)
    has_no_caption = torch.rand(BATCH, 1, generator=numbers) < EMPTY_CAPTIONS
    x, noise, t = noising.sample(latents, numbers)
    return noising.compute_loss(net(x, t, torch.where(has_no_caption, empty, tokens)), noise, t)


@torch.no_grad()
def held_out_loss(net: nn.Module, examples: Examples, noising: DiffusionLoss) -> dict[str, float]:
    """The loss on held-out scenes by domain, always with the same noise and timesteps."""
    losses = {}
    for name, latents, tokens in examples.domains():
        x, noise, t = noising.sample(latents, make_generator(1))
        parts = [net(*part) for part in zip(x.split(16), t.split(16), tokens.split(16), strict=True)]
        losses[f"held_out_{name}"] = noising.compute_loss(torch.cat(parts), noise, t).item()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=Path, help="the folder of encode_worlds")
    parser.add_argument("vae", type=Path, help="the autoencoder that goes into the model")
    parser.add_argument("folder", type=Path, help="where checkpoint, log.jsonl and model/ go")
    parser.add_argument("--size", type=int, default=192, help="pixels")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=1e-3, help="a smaller one for a model that learns further")
    parser.add_argument("--every", type=int, default=200, help="steps between two checkpoints and rows of log.jsonl")
    parser.add_argument("--start", type=Path, help="a saved model whose UNet and text encoder learn further")
    parser.add_argument("--weighting", choices=WEIGHTINGS, default="min-snr")
    options = parser.parse_args()
    tokenizer = write_tokenizer(options.folder / "words")
    examples = Examples(options.worlds, "training", options.size, tokenizer)
    held_out = Examples(options.worlds, "held_out", options.size, tokenizer, HELD_OUT_SCENES)
    torch.manual_seed(0)
    noising, empty = DiffusionLoss(noise_scheduler(), LossSettings(options.weighting)), tokenize(tokenizer, [""])
    base = Base(narrow_unet(options.size), narrow_text_encoder(tokenizer))
    if options.start is not None:
        base.unet.load_state_dict(UNet2DConditionModel.from_pretrained(options.start / "unet").state_dict())
        base.text.load_state_dict(CLIPTextModel.from_pretrained(options.start / "text_encoder").state_dict())
    net = train(
        base,
        lambda net, step, batch: base_loss(net, examples, empty, noising, make_generator(step, batch)),
        lambda net, _: held_out_loss(net, held_out, noising),
        TrainingSchedule(options.steps, learning_rate=options.rate, evaluation_interval=options.every),
        options.folder,
    )
    if net is not None:
        assert isinstance(net, Base)
        vae = AutoencoderTiny.from_pretrained(options.vae)
        pipe: Any = StableDiffusionPipeline(
            vae, net.text, tokenizer, net.unet, noise_scheduler(), None, None, requires_safety_checker=False
        )
        pipe.save_pretrained(options.folder / "model")


if __name__ == "__main__":
    main()
