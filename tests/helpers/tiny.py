"""Random Stable Diffusions of full depth that take milliseconds a step, made without a hub: SD1.5, SD2.1, the 9-channel
inpainting UNet, SDXL."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from networks import copy_module, randomised
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SIZE = 64  # pixels: the images' sides
DDIM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}

SHAPES: dict[str, dict[str, Any]] = {
    "SD1.5": {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 8, "cross_attention_dim": 32},
    "SD2.1": {
        "block_out_channels": (32, 64, 64, 64),
        "attention_head_dim": (1, 2, 2, 2),
        "cross_attention_dim": 40,
        "use_linear_projection": True,
    },
    "SDXL": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "attention_head_dim": (1, 2, 2),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    },
}
UP = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}


def unet(shape: str = "SD1.5", channels: int = 4) -> UNet2DConditionModel:
    return copy_module(_unet(shape, channels))


@functools.cache
def _unet(shape: str, channels: int) -> UNet2DConditionModel:
    config = SHAPES[shape]
    down = config.get("down_block_types")
    up = {} if down is None else {"up_block_types": tuple(UP[name] for name in reversed(down))}
    return randomised(UNet2DConditionModel(sample_size=SIZE // 8, in_channels=channels, **config, **up), seed=1)


def control(shape: str = "SD1.5", seed: int = 2, **changes: Any) -> ControlNetModel:
    """diffusers' ControlNet for that UNet; every tensor random, zero convolutions too."""
    return copy_module(_control(shape, seed, tuple(changes.items())))


@functools.cache
def _control(shape: str, seed: int, changes: tuple[tuple[str, Any], ...]) -> ControlNetModel:
    config = SHAPES[shape] | dict(changes)
    return randomised(ControlNetModel(**config, conditioning_embedding_out_channels=(8, 8, 8, 8)), seed)


@functools.cache
def tokenizer() -> CLIPTokenizer:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_encoder(width: int, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=32,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
    )
    torch.manual_seed(3)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


@functools.cache
def parts(shape: str = "SD1.5", channels: int = 4) -> dict[str, Any]:
    """The components of a pipeline, made once; take care to leave them as they are."""
    torch.manual_seed(4)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()
    found = {"vae": vae, "tokenizer": tokenizer(), "unet": unet(shape, channels)}
    if shape == "SDXL":
        return found | {
            "text_encoder": text_encoder(32, projected=True),
            "text_encoder_2": text_encoder(32, projected=True),
            "tokenizer_2": tokenizer(),
        }
    width = SHAPES[shape]["cross_attention_dim"]
    return found | {"text_encoder": text_encoder(width), "safety_checker": None, "feature_extractor": None}


def pipeline(kind: type, shape: str = "SD1.5", channels: int = 4, **others: Any) -> Any:
    """A pipeline of that class with a DDIM scheduler of its own; components named in `others` replace the tiny ones."""
    settings = {} if shape == "SDXL" else {"requires_safety_checker": False}
    pipe = kind(**{**parts(shape, channels), "scheduler": DDIMScheduler(**DDIM), **settings, **others})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_image(seed: int = 0, size: int = SIZE) -> Image.Image:
    """Noise in blocks: something at every scale."""
    draw = np.random.default_rng(seed)
    pixels = sum(np.kron(draw.random((size // n, size // n, 3)), np.ones((n, n, 1))) for n in (1, 8, 32)) / 3
    return Image.fromarray((pixels * 255).astype(np.uint8))
