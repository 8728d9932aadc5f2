"""An untrained model in the shape of the embedded one, as fast and as large."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from networks import randomised

from controlnet_ext import embedded
from controlnet_ext.embedded.captions import make_text_encoder, make_tokenizer
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.saving import save_diffusers
from tools.embedded_model.train_base import make_noise_scheduler, make_unet


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
