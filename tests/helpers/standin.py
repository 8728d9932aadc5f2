"""An untrained model in the shape of the embedded one, as fast and as large."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from networks import randomised

from controlnet_ext import embedded
from controlnet_ext.embedded.captions import TEXT_WIDTH, make_text_encoder, make_tokenizer
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.saving import save_diffusers
from tools.embedded_model.publish import write_about
from tools.embedded_model.train_base import make_noise_scheduler, make_unet
from tools.embedded_model.world_words import DEMO, describe_shapes, describe_styles


def save(folder: Path, zeros: bool = False) -> None:
    """Into the layout of `embedded.FOLDER`; with `zeros` the ControlNet is a fresh copy, whose residuals are 0."""
    torch.manual_seed(0)
    words = make_tokenizer(folder / "words")
    unet, text = make_unet(), make_text_encoder(words)
    vae = AutoencoderKL.from_pretrained(embedded.EMBEDDED_FOLDER / "vae")
    parts = {"vae": vae, "text_encoder": text, "tokenizer": words, "unet": unet, "scheduler": make_noise_scheduler()}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    copy = ControlNet.from_unet(unet)
    save_diffusers(copy if zeros else randomised(copy, seed=1), folder / "controlnet_canny")
    write_about(folder, [describe_shapes("")])


CONTROLS = ("canny", "depth", "pose", "segmentation")
SMALL_SIZE = 64  # pixels


def save_small(folder: Path, controls: Sequence[str] = CONTROLS) -> None:
    """An untrained model of the other layout into a folder: an AutoencoderTiny, levels of unequal widths, `SMALL_SIZE`
    pixels, and a random ControlNet for each control; milliseconds a step."""
    torch.manual_seed(0)
    words = make_tokenizer(folder / "words")
    unet = UNet2DConditionModel(
        sample_size=SMALL_SIZE // 8,
        block_out_channels=(16, 24, 32, 32),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    tiny_vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
        scaling_factor=1.0,
    )
    parts = {"vae": tiny_vae, "text_encoder": make_text_encoder(words), "tokenizer": words, "unet": unet}
    parts |= {"scheduler": make_noise_scheduler(), "safety_checker": None, "feature_extractor": None}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    for seed, control in enumerate(controls):
        save_diffusers(randomised(ControlNet.from_unet(unet), seed), folder / f"controlnet_{control}")
    write_about(folder, describe_styles(), demo=DEMO)
