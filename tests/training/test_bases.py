"""The frozen models of each family, narrow and random, against diffusers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from controlnet_ext.cli import main
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.training.bases import EncodedBatch, FrozenBase, reads_masked_image
from controlnet_ext.training.masks import draw_mask

IMAGE = np.array(tiny.random_image())
ROUNDING = {"rtol": 0, "atol": 1e-6}  # of convolutions on another order in memory


@pytest.fixture(scope="module")
def tiny_vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    widths = {f"{half}_block_out_channels": (8,) * 4 for half in ("encoder", "decoder")}
    blocks = {f"num_{half}_blocks": (1,) * 4 for half in ("encoder", "decoder")}
    return AutoencoderTiny(**widths, **blocks).eval()


@pytest.fixture(scope="module")
def xl() -> FrozenBase:
    return FrozenBase(tiny.pipeline(StableDiffusionXLPipeline, "SDXL"), "cpu")


def batch_of(base: FrozenBase, caption: str = "a", **sizes: Any) -> EncodedBatch:
    text, latents = base.encode_caption(caption), base.encode_latents(IMAGE)
    added = base.build_added(text, IMAGE.shape[:2], **sizes)
    return EncodedBatch(latents[None], text.context[None], IMAGE[None], added=None if added is None else added[None])


class CallRecorder:
    """What a pipeline gives to its UNet."""

    def __init__(self, unet: Any, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        forward = unet.forward

        def record(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((args, kwargs))
            return forward(*args, **kwargs)

        monkeypatch.setattr(unet, "forward", record)


@torch.no_grad()
def test_an_sdxl_is_told_what_diffusers_tells_it(xl: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = CallRecorder(xl.unet, monkeypatch)
    sizes = {"original_size": (96, 80), "crops_coords_top_left": (8, 4), "target_size": (64, 64)}
    xl.pipe("a", height=64, width=64, num_inference_steps=1, guidance_scale=1, output_type="latent", **sizes)
    (args, given), *_ = recorder.calls
    batch = batch_of(xl, image_size=(96, 80), crop=(8, 4))
    expected = xl.unet(*args, **{**given, "return_dict": False})[0]
    assert torch.equal(xl.predict(args[0], args[1][None], batch, None), expected)
    other = xl.predict(args[0], args[1][None], batch_of(xl), None)
    assert not torch.equal(other, expected)


def test_a_dropped_caption_of_an_sdxl_is_the_empty_one(xl: FrozenBase) -> None:
    batch, empty = batch_of(xl), batch_of(xl, "")
    dropped = batch.replace_captions(torch.tensor([True]), xl.empty_caption)
    assert torch.equal(dropped.context, empty.context) and torch.equal(dropped.added, empty.added)
    kept = batch.replace_captions(torch.tensor([False]), xl.empty_caption)
    assert torch.equal(kept.context, batch.context) and torch.equal(kept.added, batch.added)
    assert not torch.equal(kept.added, empty.added)


@torch.no_grad()
def test_an_inpainting_unet_reads_what_diffusers_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionInpaintPipeline, channels=9)
    base = FrozenBase(pipe, "cpu")
    recorder = CallRecorder(base.unet, monkeypatch)
    mask = np.zeros((64, 64), bool)
    mask[10:40, 7:30] = True
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
    # the mode of the VAE, which pipelines sample
    monkeypatch.setattr(type(pipe.vae.encode(pixels).latent_dist), "sample", lambda self, *_: self.mode())
    images = {"image": pixels, "mask_image": torch.from_numpy(mask)[None, None].float()}
    pipe("a", **images, height=64, width=64, num_inference_steps=1, guidance_scale=1, output_type="latent")
    (args, given), *_ = recorder.calls
    extra = base.encode_extra(IMAGE, mask)
    assert extra is not None
    torch.testing.assert_close(extra, args[0][0, 4:], **ROUNDING)
    batch = EncodedBatch(args[0][:, :4], base.encode_caption("a").context[None], IMAGE[None], extra=args[0][:, 4:])
    expected = base.unet(*args, **{**given, "return_dict": False})[0]
    assert torch.equal(base.predict(batch.latents, args[1][None], batch, None), expected)
    with pytest.raises(ValueError, match="mask and the masked latents"):
        base.predict(
            batch.latents, args[1][None], batch_of(FrozenBase(tiny.pipeline(StableDiffusionPipeline), "cpu")), None
        )


@torch.no_grad()
def test_latents_are_those_of_either_kind_of_vae(tiny_vae: AutoencoderTiny) -> None:
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 127.5 - 1
    plain = FrozenBase(tiny.pipeline(StableDiffusionPipeline), "cpu")
    vae = plain.pipe.vae
    expected = vae.encode(pixels).latent_dist.mode() * vae.config["scaling_factor"]
    torch.testing.assert_close(plain.encode_latents(IMAGE), expected[0], **ROUNDING)
    small = FrozenBase(tiny.pipeline(StableDiffusionPipeline, vae=tiny_vae), "cpu")
    torch.testing.assert_close(small.encode_latents(IMAGE), tiny_vae.encode(pixels).latents[0], **ROUNDING)


def test_a_unet_with_other_inputs_is_refused() -> None:
    vae, unet = {"latent_channels": 4}, {"in_channels": 4, "addition_embed_type": None}
    assert not reads_masked_image(unet, vae) and reads_masked_image({**unet, "in_channels": 9}, vae)
    with pytest.raises(ValueError, match="reads 8 channels, expected 4, or 9 for inpainting"):
        reads_masked_image({**unet, "in_channels": 8}, vae)
    with pytest.raises(ValueError, match="addition_embed_type 'image'"):
        reads_masked_image({**unet, "addition_embed_type": "image"}, vae)


def test_masks_are_random_and_repeat() -> None:
    masks = [draw_mask(np.random.default_rng(i), 40, 64) for i in range(60)]
    assert all(mask.shape == (40, 64) and mask.dtype == bool and mask.any() for mask in masks)
    assert 4 <= sum(mask.all() for mask in masks) <= 30
    shares = sorted({round(float(mask.mean()), 3) for mask in masks})
    assert len(shares) > 30 and shares[0] < 0.15
    assert all(np.array_equal(mask, draw_mask(np.random.default_rng(i), 40, 64)) for i, mask in enumerate(masks))


def test_a_folder_with_a_tiny_vae_has_a_size_also_where_it_states_no_block_out_channels(
    tiny_vae: AutoencoderTiny, tmp_path: Path
) -> None:
    tiny.pipeline(StableDiffusionPipeline, vae=tiny_vae).save_pretrained(tmp_path / "sd")
    assert PipelineFolder.find(str(tmp_path / "sd")).size == (64, 64)
    config = tmp_path / "sd/vae/config.json"  # as diffusers wrote it at first
    config.write_text(config.read_text().replace('"block_out_channels"', '"something_else"'))
    assert PipelineFolder.find(str(tmp_path / "sd")).size == (64, 64)


def test_a_controlnet_is_trained_beside_an_inpainting_model_of_v_prediction_with_a_tiny_vae(
    tiny_vae: AutoencoderTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i in range(2):
        tiny.random_image(seed=i).save(f"photos/{i}.png")
        Path(f"photos/{i}.txt").write_text("ab"[i])
    pipe = tiny.pipeline(diffusers.StableDiffusionInpaintPipeline, "SD2.1", 9, vae=tiny_vae)
    pipe.scheduler = DDPMScheduler(prediction_type="v_prediction")
    pipe.save_pretrained("sd")
    words = "--map canny --steps 1 --batch 1 --validation 0.5 --size 64x64 --draws 4 --fidelity-images 0"
    assert main(["train", "--model", "sd", "--data", "photos", *words.split(), "-o", "out/"]) == 0
    assert diffusers.ControlNetModel.from_pretrained("out").config["in_channels"] == 4
