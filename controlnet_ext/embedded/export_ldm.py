"""The embedded model in ldm's layout, for stable-diffusion-webui:
`python -m controlnet_ext.embedded.export_ldm FOLDER`.

Writes shapes.safetensors (UNet, VAE and text encoder under ldm's names) and shapes.yaml, the folder shapes_text
(tokenizer and text encoder) that the yaml names, and shapes_<map>.safetensors with its yaml for each ControlNet. ldm's
code has 32 groups written into it and the embedded networks have 8, so `wide` lays them into networks four times as
wide. A UNet with levels of several widths, and an AutoencoderTiny, stay as they are: the yaml names networks that the
extension brings (`webui.narrow_networks`), and ControlNets for such a UNet have no yaml, since the extension alone
reads them. Names in the yaml, and values that are not the model's, are those of v1-inference.yaml
(CompVis/stable-diffusion) and cldm_v15.yaml (lllyasviel/ControlNet).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import AutoTokenizer

from .. import models
from ..files.disk import write_atomically
from ..files.safetensors import write_weights
from ..models.base_unet import get_heads as heads_of
from ..models.state_dict.ldm_keys import (
    CONTROL_MODEL_PREFIX,
    build_key_table,
    build_resnet_table,
    rename_keys,
    to_ldm_keys,
)
from . import EMBEDDED_NAME, resolve_embedded
from .captions import encode_text_files
from .wide import LDM_GROUPS, compute_width_factor, widen_state_dict

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

    from ..guidance.contract import UNet
    from ..hosts.diffusers.host import Scheduler
    from ..models.kinds.controlnet import ControlNet

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
OWN_NETWORKS = "sd_webui_controlnet_ext.webui.narrow_networks"  # by the name that the extension has in webui
VAE_RENAMES = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def rename_unet(tensors: Mapping[str, Tensor], levels: int, resnets: int) -> dict[str, Tensor]:
    """A UNet2DConditionModel's tensors under ldm's names; `resnets` in each of its `levels`, of which only the
    innermost has no transformers."""
    table = build_key_table([resnets] * levels, scale_count=1) | {"conv_norm_out": "out.0", "conv_out": "out.2"}
    for level in range(levels):
        blocks = range(level * (resnets + 1), (level + 1) * (resnets + 1))
        for j, block in enumerate(blocks):
            table |= build_resnet_table(f"up_blocks.{level}.resnets.{j}", f"output_blocks.{block}.0")
            table[f"up_blocks.{level}.attentions.{j}"] = f"output_blocks.{block}.1"
        place = 1 if level == 0 else 2  # behind the transformer
        table[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{blocks[-1]}.{place}"
    return {UNET_PREFIX + name: tensor for name, tensor in rename_keys(tensors, table).items()}


def rename_vae(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """An AutoencoderKL's tensors in ldm's layout, where attention's linear layers are convolutions and the decoder's
    levels are numbered from the outside."""
    result = {}
    for name, tensor in tensors.items():
        name = re.sub(r"(?<=up_blocks\.)\d+", lambda level: str(levels - 1 - int(level[0])), name)
        for pattern, ldm in VAE_RENAMES:
            name = re.sub(pattern, ldm, name)
        pointwise = ".attn_1." in name and tensor.ndim == 2
        result[VAE_PREFIX + name] = tensor[:, :, None, None] if pointwise else tensor
    return result


def rename_text_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModel's tensors under the names that transformers before 5 have too, with the positions that it kept
    among them before 4.31."""
    result = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    positions = len(result["text_model.embeddings.position_embedding.weight"])
    return result | {"text_model.embeddings.position_ids": torch.arange(positions)[None]}


def get_width_and_heads(unet: UNet) -> tuple[int, int]:
    """The one width and the one number of attention heads of all levels. ValueError when they differ."""
    widths, heads = set(unet.config["block_out_channels"]), set(heads_of(unet))
    if len(widths) > 1 or len(heads) > 1:
        raise ValueError(f"widths {sorted(widths)} and heads {sorted(heads)}: expected the same in all levels")
    return widths.pop(), heads.pop()


def needs_own_unet(unet: UNet) -> bool:
    """Return True for a UNet whose levels differ in width, so that no wider one of ldm's code computes the same: groups
    of joined skips would not be the same channels."""
    return len(set(unet.config["block_out_channels"])) > 1


def needs_own_autoencoder(vae: ModelMixin) -> bool:
    """Return True for diffusers' AutoencoderTiny, which ldm's code has not."""
    return "encoder_block_out_channels" in vae.config


def build_unet_config(unet: UNet) -> dict[str, Any]:
    """The UNet's part of the yaml: ldm's class, or the function of this extension. ValueError when levels differ in
    heads."""
    widths = list(unet.config["block_out_channels"])
    network = {
        "image_size": unet.config["sample_size"],
        "in_channels": unet.config["in_channels"],
        "out_channels": unet.config["out_channels"],
        "model_channels": widths[0],
        "attention_resolutions": [2**level for level in range(len(widths) - 1)],
        "num_res_blocks": unet.config["layers_per_block"],
        "num_heads": heads_of(unet)[0],
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": unet.config["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }
    if needs_own_unet(unet):
        if len(set(heads_of(unet))) > 1:
            raise ValueError(f"heads {heads_of(unet)}: expected the same in all levels")
        own = {"level_widths": widths, "norm_groups": unet.config["norm_num_groups"]}
        return {"target": f"{OWN_NETWORKS}.build_unet", "params": network | own}
    width, _ = get_width_and_heads(unet)
    network["model_channels"] = width * compute_width_factor(unet.config["norm_num_groups"])
    network["channel_mult"] = [1] * len(widths)
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": network}


def build_autoencoder_config(vae: ModelMixin) -> dict[str, Any]:
    """The autoencoder's part of the yaml: ldm's class, or that of this extension. ValueError for levels of an
    AutoencoderTiny that differ in width."""
    if needs_own_autoencoder(vae):
        widths = {*vae.config["encoder_block_out_channels"], *vae.config["decoder_block_out_channels"]}
        if len(widths) > 1:
            raise ValueError(f"widths {sorted(widths)} of an AutoencoderTiny: expected the same in all levels")
        network = {
            "width": widths.pop(),
            "latent_channels": vae.config["latent_channels"],
            "encoder_blocks": list(vae.config["num_encoder_blocks"]),
            "decoder_blocks": list(vae.config["num_decoder_blocks"]),
        }
        return {"target": f"{OWN_NETWORKS}.TinyAutoencoder", "params": {"ddconfig": network}}
    widths = vae.config["block_out_channels"]
    autoencoder = {
        "double_z": True,
        "z_channels": vae.config["latent_channels"],
        "resolution": vae.config["sample_size"],
        "in_channels": vae.config["in_channels"],
        "out_ch": vae.config["out_channels"],
        "ch": widths[0] * compute_width_factor(vae.config["norm_num_groups"]),
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": vae.config["layers_per_block"],
        "attn_resolutions": [],
    }
    params = {
        "embed_dim": vae.config["latent_channels"],
        "ddconfig": autoencoder,
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def build_model_yaml(unet: UNet, vae: ModelMixin, scheduler: Scheduler, text_folder: Path) -> dict[str, Any]:
    """For the file of a whole model; `text` is the folder of tokenizer and text encoder, as absolute path."""
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
                "unet_config": build_unet_config(unet),
                "first_stage_config": build_autoencoder_config(vae),
                "cond_stage_config": {
                    "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                    "params": {"version": str(text_folder), "max_length": 77},
                },
            },
        }
    }


def build_control_yaml(base: Mapping[str, Any], hint_channels: int) -> dict[str, Any]:
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


FILE_PREFIX = "shapes"
METADATA = {"format": "pt"}  # transformers before 5 refuses a file without it


def build_checkpoint(unet: UNet, vae: ModelMixin, text_encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors of one file in ldm's layout, from the parts of a diffusers pipeline of SD1.5's topology: those of the
    wider networks where there are such. ValueError when 32 is not a multiple of the groups of one of these."""
    tensors: Mapping[str, Tensor] = unet.state_dict()
    if not needs_own_unet(unet):
        _, heads = get_width_and_heads(unet)
        tensors = widen_state_dict(tensors, compute_width_factor(unet.config["norm_num_groups"]), heads)
    text = rename_text_encoder(text_encoder.state_dict())
    if needs_own_autoencoder(vae):
        first_stage = {VAE_PREFIX + name: tensor for name, tensor in vae.state_dict().items()}
    else:
        wide_vae = widen_state_dict(vae.state_dict(), compute_width_factor(vae.config["norm_num_groups"]))
        first_stage = rename_vae(wide_vae, len(vae.config["block_out_channels"]))
    return {
        **rename_unet(tensors, len(unet.config["block_out_channels"]), unet.config["layers_per_block"]),
        **first_stage,
        **{TEXT_PREFIX + name: tensor for name, tensor in text.items()},
    }


def build_control_file(net: ControlNet) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a ControlNet's file in ldm's layout, for the UNet of `checkpoint`."""
    if len(set(net.net_config.widths)) > 1:
        tensors = {CONTROL_MODEL_PREFIX + name: tensor for name, tensor in to_ldm_keys(net.state_dict()).items()}
        return tensors, {**METADATA, models.CONFIG_METADATA_KEY: json.dumps(net.net_config.unstored_config())}
    times = compute_width_factor(net.net_config.norm_groups)
    tensors = to_ldm_keys(
        widen_state_dict(net.state_dict(), times, (net.net_config.heads or net.net_config.default_heads)[0])
    )
    plan = replace(
        net.net_config, widths=tuple(times * width for width in net.net_config.widths), norm_groups=LDM_GROUPS
    )
    return {CONTROL_MODEL_PREFIX + name: t for name, t in tensors.items()}, {
        **METADATA,
        models.CONFIG_METADATA_KEY: json.dumps(plan.unstored_config()),
    }


def export_model(model: Path, out: Path, dtype: torch.dtype = torch.float16, overwrite: bool = False) -> list[Path]:
    """Write all files of the diffusers folder `model` and of each `controlnet_<map>` in it, weights in `dtype`. Gives
    the files for a host's folders of models. FileExistsError when one exists that is not to be overwritten."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    text = out.resolve() / f"{FILE_PREFIX}_text"
    text.mkdir(parents=True, exist_ok=True)
    words = AutoTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    for name, content in encode_text_files(words, pipe.text_encoder).items():
        write_atomically(text / name, content.encode(), overwrite)
    encoder = rename_text_encoder(pipe.text_encoder.state_dict())
    write_weights(text / "model.safetensors", _cast_tensors(dtype, encoder), METADATA, overwrite)

    def write(name: str, tensors: dict[str, Tensor], metadata: dict[str, str], config: dict[str, Any] | None) -> Path:
        path = out / f"{name}.safetensors"
        if config is not None:
            write_atomically(path.with_suffix(".yaml"), yaml.safe_dump(config, sort_keys=False).encode(), overwrite)
        write_weights(path, _cast_tensors(dtype, tensors), metadata, overwrite)
        return path

    base = build_model_yaml(pipe.unet, pipe.vae, pipe.scheduler, text)
    paths = [write(FILE_PREFIX, build_checkpoint(pipe.unet, pipe.vae, pipe.text_encoder), METADATA, base)]
    for folder in sorted(model.glob("controlnet_*")):
        net: Any = models.load(folder)
        net.bind(pipe.unet)
        name = f"{FILE_PREFIX}_{folder.name.removeprefix('controlnet_')}"
        hint_channels = net.net_config.hint_channels[0]
        control_yaml = None if needs_own_unet(pipe.unet) else build_control_yaml(base, hint_channels)
        paths.append(write(name, *build_control_file(net), control_yaml))
    return paths


def _cast_tensors(dtype: torch.dtype, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default=EMBEDDED_NAME, help="a diffusers folder (default: %(default)s)")
    parser.add_argument("--fp32", action="store_true", help="fp16 otherwise")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    dtype = torch.float32 if options.fp32 else torch.float16
    for path in export_model(Path(resolve_embedded(options.model)), options.out, dtype, options.overwrite):
        print(path)


if __name__ == "__main__":
    main()
