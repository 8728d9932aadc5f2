"""The embedded model's topology at its real widths, random in every tensor, through its file in ldm's layout:
diffusers' single-file loader builds the wider networks, with 32 groups, from the yaml."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from networks import randomised
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet_ext import models
from controlnet_ext.embedded.captions import make_text_encoder, make_tokenizer
from controlnet_ext.embedded.export_ldm import export_model, get_width_and_heads
from controlnet_ext.embedded.wide import compute_width_factor
from controlnet_ext.files.weights import read_weights
from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.saving import save_diffusers
from tools.embedded_model.train_base import make_noise_scheduler, make_unet
from tools.embedded_model.train_vae import make_vae

# fp32 sums of other lengths; found on a CPU: 4e-7 of the largest value for the UNet, 7e-7 for the autoencoder, 6e-7 for
# the ControlNet. With any rule of `wide` changed so that the result is another one it is at least 2e-2.
CLOSE = 1e-5


def difference(a, b):
    """The largest, as a fraction of the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    words = make_tokenizer(folder / "words")
    vae, text, unet = make_vae(), make_text_encoder(words), make_unet()
    vae.register_to_config(scaling_factor=0.75)
    # Rounded to fp16, so that the file, which is fp16, holds the same numbers.
    parts = [randomised(part, seed).half().float() for seed, part in enumerate((vae, text, unet))]
    pipe = StableDiffusionPipeline(
        parts[0], parts[1], words, parts[2], make_noise_scheduler(), None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder / "model")
    net = randomised(ControlNet.from_unet(unet), seed=3).half().float()
    save_diffusers(net, folder / "model" / "controlnet_canny")
    return SimpleNamespace(folder=folder / "model", vae=vae, text=text, unet=unet, words=words, net=net)


@pytest.fixture(scope="module")
def files(narrow, tmp_path_factory):
    return export_model(narrow.folder, tmp_path_factory.mktemp("ldm"))


def from_file(kind, file):
    settings = str(file.with_suffix(".yaml"))
    return kind.from_single_file(str(file), original_config=settings, local_files_only=True).eval()


@torch.no_grad()
def test_the_wider_unet_computes_the_same(narrow, files):
    wide = from_file(UNet2DConditionModel, files[0])
    assert (wide.config["block_out_channels"], wide.config["norm_num_groups"]) == ([256] * 4, 32)
    draw = torch.Generator().manual_seed(0)
    for t, length, size in (([0, 1, 500, 999], 77, (8, 8)), ([250], 154, (8, 16))):
        x = torch.randn(len(t), 4, *size, generator=draw)
        t, context = torch.tensor(t), torch.randn(len(t), length, 128, generator=draw)
        expected = narrow.unet(x, t, context).sample
        assert expected.std() > 0.1
        assert difference(wide(x, t, context).sample, expected) < CLOSE


@torch.no_grad()
def test_the_wider_autoencoder_computes_the_same(narrow, files):
    wide = from_file(AutoencoderKL, files[0])
    assert (wide.config["block_out_channels"], wide.config["norm_num_groups"]) == ([128, 128, 256, 256], 32)
    assert wide.config["scaling_factor"] == 0.75
    draw = torch.Generator().manual_seed(0)
    x, latents = torch.rand(2, 3, 64, 48, generator=draw) * 2 - 1, torch.randn(2, 4, 8, 6, generator=draw)
    for given, expected in zip(
        (wide.encode(x).latent_dist.parameters, wide.decode(latents).sample),
        (narrow.vae.encode(x).latent_dist.parameters, narrow.vae.decode(latents).sample),
        strict=True,
    ):
        assert expected.std() > 0.1 and difference(given, expected) < CLOSE


@torch.no_grad()
def test_the_wider_controlnet_gives_the_same_residuals_and_zeros(narrow, files):
    stated = yaml.safe_load(files[1].with_suffix(".yaml").read_text())["model"]
    assert stated["target"] == "cldm.cldm.ControlLDM"
    own = stated["params"]["control_stage_config"]["params"]
    assert (own["model_channels"], own["num_heads"], own["hint_channels"]) == (256, 4, 3)
    wide = models.load(files[1], dtype=torch.float32)  # heads and groups from the metadata
    draw = torch.Generator().manual_seed(0)
    step = Step(
        x=torch.randn(2, 4, 8, 8, generator=draw),
        t=torch.tensor([3, 700]),
        context=torch.randn(2, 77, 128, generator=draw),
        span=Span(0, 1),
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    given, expected = (net(step, net.hint(image)) for net in (wide, narrow.net))
    pairs = list(zip((*given.skips, given.middle), (*expected.skips, expected.middle), strict=True))
    assert len(pairs) == 13
    for a, b in pairs:
        assert a.shape[1] == 256 and (a[:, 64:] == 0).all()
        assert b.std() > 0.1 and difference(a[:, :64], b) < CLOSE


@torch.no_grad()
def test_the_text_folder_holds_the_same_words_and_encoder(narrow, files):
    stated = yaml.safe_load(files[0].with_suffix(".yaml").read_text())["model"]["params"]
    folder = Path(stated["cond_stage_config"]["params"]["version"])
    assert folder.is_absolute()
    words, text = CLIPTokenizer.from_pretrained(folder), CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    for prompt in ("", "a red circle and a blue star, on a green ground", "A CAT, (seen) in 2024!", "a circle " * 50):
        expected = narrow.words(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
        given = words(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
        assert torch.equal(given, expected) and given.shape == (1, 77)
        assert torch.equal(text(given).last_hidden_state, narrow.text(given).last_hidden_state)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert vocabulary[",</w>"] == words.convert_tokens_to_ids(",</w>")  # by which webui finds commas


def test_the_file_holds_the_text_encoder_under_the_names_that_hosts_look_for(narrow, files):
    prefix = "cond_stage_model.transformer.text_model."
    tensors = read_weights(files[0]).tensors
    held = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    assert torch.equal(held.pop("embeddings.position_ids"), torch.arange(77)[None])
    own = {name.removeprefix("text_model."): t.half() for name, t in narrow.text.state_dict().items()}
    assert held.keys() == own.keys() and all(torch.equal(held[name], t) for name, t in own.items())


def test_weights_are_fp16_and_nothing_is_overwritten_silently(narrow, files):
    assert [path.name for path in files] == ["shapes.safetensors", "shapes_canny.safetensors"]
    dtypes = {t.dtype for path in files for t in read_weights(path).tensors.values()}
    assert dtypes == {torch.float16, torch.int64}  # positions
    with pytest.raises(FileExistsError, match="exists already"):
        export_model(narrow.folder, files[0].parent)


def test_what_ldm_cannot_be_is_refused():
    with pytest.raises(ValueError, match="12 groups: expected a divisor"):
        compute_width_factor(12)
    uneven = UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), attention_head_dim=4, cross_attention_dim=8)
    with pytest.raises(ValueError, match=r"widths \[32, 64\] and heads \[4\]"):
        get_width_and_heads(uneven)
