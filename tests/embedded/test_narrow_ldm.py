"""A model of levels of several widths with an AutoencoderTiny through its files for webui, whose yaml names networks of
this extension. `ldm` is not here: what builds its UNet is tried on a stand-in, the names of its tensors on another."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ldm
import pytest
import standin
import torch
import yaml
from diffusers import StableDiffusionPipeline
from torch import nn

from controlnet_ext import load
from controlnet_ext.embedded.export_ldm import OWN_NETWORKS, UNET_PREFIX, VAE_PREFIX, export_model
from controlnet_ext.files.weights import read_weights
from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.webui import narrow_networks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model's folder and that of its files for webui."""
    base, out = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("ldm")
    standin.save_small(base, ["depth"])
    export_model(base, out, torch.float32)
    return base, out


@pytest.fixture(scope="module")
def settings(folders: tuple[Path, Path]) -> Any:
    return yaml.safe_load((folders[1] / "shapes.yaml").read_text())["model"]["params"]


def strip(tensors: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def test_the_unets_tensors_have_ldms_names_and_their_own_widths(folders: tuple[Path, Path], settings: Any) -> None:
    unet = StableDiffusionPipeline.from_pretrained(folders[0]).unet
    expected = ldm.UNetModel(unet).state_dict()
    tensors = strip(read_weights(folders[1] / "shapes.safetensors").tensors, UNET_PREFIX)
    assert tensors.keys() == {*expected, *(f"out.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias"))}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    config = settings["unet_config"]
    assert config["target"] == f"{OWN_NETWORKS}.build_unet"
    sizes = {name: config["params"][name] for name in ("level_widths", "norm_groups", "model_channels", "num_heads")}
    assert sizes == {"level_widths": [16, 24, 32, 32], "norm_groups": 8, "model_channels": 16, "num_heads": 2}


@torch.no_grad()
def test_the_autoencoder_is_diffusers_own(folders: tuple[Path, Path], settings: Any) -> None:
    vae = StableDiffusionPipeline.from_pretrained(folders[0]).vae
    config = settings["first_stage_config"]
    assert config["target"] == f"{OWN_NETWORKS}.{narrow_networks.TinyAutoencoder.__name__}"
    assert settings["scale_factor"] == vae.config["scaling_factor"]
    own = narrow_networks.TinyAutoencoder(**config["params"])
    own.load_state_dict(strip(read_weights(folders[1] / "shapes.safetensors").tensors, VAE_PREFIX))
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    latents = vae.encode(x).latents
    assert torch.equal(own.encode(x), latents)
    assert torch.equal(own.decode(latents), vae.decode(latents).sample)


@torch.no_grad()
def test_the_control_net_is_read_without_a_yaml(folders: tuple[Path, Path]) -> None:
    base, out = folders
    assert sorted(path.name for path in out.iterdir()) == [
        *("shapes.safetensors", "shapes.yaml", "shapes_depth.safetensors", "shapes_text")
    ]
    step = Step(torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 128), Span(0, 1))
    given, expected = (
        net(step, net.hint(torch.full((1, 3, 64, 64), 0.7)))
        for net in (load(out / "shapes_depth.safetensors"), load(base / "controlnet_depth"))
    )
    assert torch.equal(given.middle, expected.middle)
    assert all(map(torch.equal, given.skips, expected.skips))


def test_the_unet_is_built_of_ldms_code_with_these_widths_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, openaimodel = (ModuleType(f"ldm.modules.{name}") for name in ("attention", "openaimodel"))
    groups = [lambda channels: nn.GroupNorm(32, channels), lambda channels: nn.GroupNorm(32, channels)]
    attention.Normalize, openaimodel.normalization = groups

    class UNetModel(nn.Module):
        def __init__(self, model_channels: int, channel_mult: list[int]):
            super().__init__()
            self.widths = [(mult * model_channels, model_channels * mult) for mult in channel_mult]
            self.norms = openaimodel.normalization(24), attention.Normalize(24)

    openaimodel.UNetModel = UNetModel
    monkeypatch.setitem(sys.modules, "ldm.modules.diffusionmodules.openaimodel", openaimodel)
    monkeypatch.setitem(sys.modules, "ldm.modules.attention", attention)
    unet: Any = narrow_networks.build_unet([16, 24], norm_groups=8, model_channels=16)
    assert unet.widths == [(16, 16), (24, 24)]
    assert [(norm.num_groups, norm.eps) for norm in unet.norms] == [(8, 1e-5), (8, 1e-6)]
    assert (attention.Normalize, openaimodel.normalization) == tuple(groups)
