"""The yaml beside a file in ldm's layout: what ldm builds the wider networks (`wide`) from. Names, and values that are
not the model's, are those of v1-inference.yaml (CompVis/stable-diffusion) and cldm_v15.yaml (lllyasviel/ControlNet)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ..models.base_unet import heads as heads_of
from .wide import factor


def width_and_heads(unet: Any) -> tuple[int, int]:
    """The one width and the one number of attention heads of all levels. ValueError when they differ."""
    widths, heads = set(unet.config["block_out_channels"]), set(heads_of(unet))
    if len(widths) > 1 or len(heads) > 1:
        raise ValueError(f"widths {sorted(widths)} and heads {sorted(heads)}: expected the same in all levels")
    return widths.pop(), heads.pop()


def settings(unet: Any, vae: Any, scheduler: Any, text: Path) -> dict[str, Any]:
    """For the file of a whole model; `text` is the folder of tokenizer and text encoder, as absolute path."""
    width, heads = width_and_heads(unet)
    levels, vae_widths = len(unet.config["block_out_channels"]), vae.config["block_out_channels"]
    network = {
        "image_size": unet.config["sample_size"],
        "in_channels": unet.config["in_channels"],
        "out_channels": unet.config["out_channels"],
        "model_channels": width * factor(unet.config["norm_num_groups"]),
        "attention_resolutions": [2**level for level in range(levels - 1)],
        "num_res_blocks": unet.config["layers_per_block"],
        "channel_mult": [1] * levels,
        "num_heads": heads,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": unet.config["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }
    autoencoder = {
        "double_z": True,
        "z_channels": vae.config["latent_channels"],
        "resolution": vae.config["sample_size"],
        "in_channels": vae.config["in_channels"],
        "out_ch": vae.config["out_channels"],
        "ch": vae_widths[0] * factor(vae.config["norm_num_groups"]),
        "ch_mult": [width // vae_widths[0] for width in vae_widths],
        "num_res_blocks": vae.config["layers_per_block"],
        "attn_resolutions": [],
    }
    first_stage = {
        "embed_dim": vae.config["latent_channels"],
        "ddconfig": autoencoder,
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    return {
        "model": {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": scheduler.config["beta_start"],
                "linear_end": scheduler.config["beta_end"],
                "timesteps": scheduler.config["num_train_timesteps"],
                "first_stage_key": "jpg",
                "cond_stage_key": "txt",
                "conditioning_key": "crossattn",
                "image_size": unet.config["sample_size"],
                "channels": unet.config["in_channels"],
                "scale_factor": vae.config["scaling_factor"],
                "use_ema": False,
                "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": network},
                "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": first_stage},
                "cond_stage_config": {
                    "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                    "params": {"version": str(text), "max_length": 77},
                },
            },
        }
    }


def control_settings(base: Mapping[str, Any], hint_channels: int) -> dict[str, Any]:
    """For a ControlNet's file, from those of the model's."""
    params = deepcopy(base["model"]["params"])
    network = params["unet_config"]["params"]
    own = deepcopy(network) | {"hint_channels": hint_channels}  # a copy: yaml marks what occurs twice
    del own["out_channels"]
    return {
        "model": {
            "target": "cldm.cldm.ControlLDM",
            "params": {
                **params,
                "control_key": "hint",
                "only_mid_control": False,
                "control_stage_config": {"target": "cldm.cldm.ControlNet", "params": own},
                "unet_config": {"target": "cldm.cldm.ControlledUnetModel", "params": network},
            },
        }
    }
