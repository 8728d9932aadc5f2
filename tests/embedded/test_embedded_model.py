"""The weights that come with the package, through diffusers alone."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from lines import assets
from PIL import Image

import controlnet_ext
from controlnet_ext.embedded import EMBEDDED_FOLDER
from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, draw_scene, find_majority_color
from controlnet_ext.maps.fidelity import canny_f1
from tools.embedded_model.distill_vae import load_taesd

MOST = {"unet": 5.5e6, "vae": 1.2e6, "text_encoder": 1e6}  # parameters
SETTINGS = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    found = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def drawn(pipe: StableDiffusionPipeline, captions: list[str], **more: object) -> np.ndarray:
    noise = torch.Generator().manual_seed(0)
    return np.uint8(pipe(captions, generator=noise, **SETTINGS, **more).images * 255)


def test_it_is_as_small_as_it_says(pipe: StableDiffusionPipeline) -> None:
    for name, most in MOST.items():
        assert sum(p.numel() for p in getattr(pipe, name).parameters()) <= most
    net = ControlNetModel.from_pretrained(EMBEDDED_FOLDER / "controlnet_canny")
    assert sum(p.numel() for p in net.parameters()) <= 2.5e6
    assert len(net.controlnet_down_blocks) + 1 == 13
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()) <= 22e6


def test_all_of_the_control_net_has_learnt() -> None:
    """Zero convolutions start at 0; those of all but the first level once were so when they were published."""
    net = ControlNetModel.from_pretrained(EMBEDDED_FOLDER / "controlnet_canny")
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        assert zero.weight.abs().mean() > 1e-3


def test_a_things_colour_is_in_its_noun_at_any_place(pipe: StableDiffusionPipeline) -> None:
    def noun(caption: str) -> torch.Tensor:
        words = pipe.tokenizer(caption, return_tensors="pt")
        with torch.no_grad():
            states = pipe.text_encoder(**words).last_hidden_state[0]
        return states[words.input_ids[0].tolist().index(pipe.tokenizer.convert_tokens_to_ids("star</w>"))]

    first = {colour: noun(f"a {colour} star on a white ground") for colour in ("red", "blue", "green", "black")}
    for colour in first:
        third = noun(f"a pink ring, an orange moon and a {colour} star on a white ground")
        assert min(first, key=lambda other: (first[other] - third).norm()) == colour


def test_plain_diffusers_draws_what_a_caption_says(pipe: StableDiffusionPipeline) -> None:
    images = drawn(pipe, ["a red circle on a white ground", "a blue star on a yellow ground"])
    for image, thing, ground in zip(images, ("red", "blue"), ("white", "yellow"), strict=True):
        blocks = [image[y : y + 8, x : x + 8] for y in range(0, 128, 8) for x in range(0, 128, 8)]
        seen = [find_majority_color(block, np.ones((8, 8), bool)) for block in blocks]
        assert seen.count(ground) > 80
        assert seen.count(thing) > 3


def test_diffusers_own_control_pipeline_obeys_maps(pipe: StableDiffusionPipeline) -> None:
    net = ControlNetModel.from_pretrained(EMBEDDED_FOLDER / "controlnet_canny")
    guided = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)
    guided.set_progress_bar_config(disable=True)
    scenes = [draw_scene(seed) for seed in HELD_OUT_SEEDS[5000:5004]]
    maps = [cv2.Canny(each.pixels, 100, 200) for each in scenes]
    hints = [Image.fromarray(each).convert("RGB") for each in maps]
    images = drawn(guided, [each.caption for each in scenes], image=hints)
    assert np.mean([canny_f1(asked, each).within_1px for asked, each in zip(maps, images, strict=True)]) > 0.6
    others = [*maps[1:], maps[0]]
    assert np.mean([canny_f1(asked, each).within_1px for asked, each in zip(others, images, strict=True)]) < 0.3


@pytest.fixture(scope="module")
def autoencoders() -> tuple[AutoencoderTiny, AutoencoderTiny]:
    """TAESD and the autoencoder of the package."""
    weights = assets() / "weights"
    if not (weights / "taesd_decoder.safetensors").exists():
        pytest.skip(f"no weights of TAESD in {weights}")
    vae = EMBEDDED_FOLDER / "vae"
    if json.loads((vae / "config.json").read_text())["_class_name"] != "AutoencoderTiny":
        pytest.skip("the embedded model's latents are its own: its VAE is an AutoencoderKL")
    return load_taesd(weights), AutoencoderTiny.from_pretrained(vae)


@torch.no_grad()
def test_its_decoder_reads_the_latents_of_taesd_and_taesd_those_of_its_encoder(
    autoencoders: tuple[AutoencoderTiny, AutoencoderTiny],
) -> None:
    taesd, own = autoencoders
    pixels = np.stack([draw_scene(seed, 192).pixels for seed in HELD_OUT_SEEDS[6000:6004]])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    error = {
        (a, b): (nets[1].decode(nets[0].encode(x).latents).sample.clamp(-1, 1) - x).square().mean().item() / 4
        for (a, b), nets in {
            ("taesd", "taesd"): (taesd, taesd),
            ("taesd", "own"): (taesd, own),
            ("own", "taesd"): (own, taesd),
        }.items()
    }
    for pair in (("taesd", "own"), ("own", "taesd")):  # within 3 dB of TAESD with itself
        assert error[pair] < 2 * error["taesd", "taesd"], error


def test_load_takes_the_names_that_the_command_takes() -> None:
    model = controlnet_ext.load("embedded/canny")
    assert model.architecture == "controlnet" and model.family == "sd"
    with pytest.raises(FileNotFoundError, match="embedded/cany"):
        controlnet_ext.load("embedded/cany")
