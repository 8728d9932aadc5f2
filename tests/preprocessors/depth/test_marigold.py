"""Depth and normals by a tiny random Marigold: as by diffusers, drawn again by its seed; and refusals."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cache

import diffusers
import numpy as np
import pytest
import tiny
import torch
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.backends.torch import Device
from controlnet_ext.preprocessors.depth.marigold import MARIGOLD_DEPTH_FILES, MARIGOLD_NORMALS_FILES, load_marigold
from controlnet_ext.preprocessors.depth.normals_of_depth import encode_normals
from controlnet_ext.preprocessors.library import Library
from networks import randomised
from PIL import Image
from safetensors.torch import load_file, save_file

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8).repeat(10, 0).repeat(10, 1)
SETTINGS = {"default_denoising_steps": 2, "default_processing_resolution": 64}


@cache
def pipeline(kind, **settings):
    vae = randomised(deepcopy(tiny.parts("SD2.1")["vae"]), seed=4)
    scheduler = diffusers.DDIMScheduler(**tiny.DDIM, prediction_type="v_prediction", timestep_spacing="trailing")
    parts = tiny.unet("SD2.1", 8), vae, scheduler, tiny.text_encoder(40), tiny.tokenizer()
    pipe = getattr(diffusers, kind)(*parts, **SETTINGS | settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    pipeline("MarigoldDepthPipeline", prediction_type="depth").save_pretrained(root / MARIGOLD_DEPTH_FILES[0].repo)
    pipeline("MarigoldNormalsPipeline", prediction_type="normals").save_pretrained(
        root / MARIGOLD_NORMALS_FILES[0].repo
    )
    return Library([root], download=False, cache_bytes=2**30)


def drawn(kind, image, seed, **options):
    draw = torch.Generator().manual_seed(seed)
    settings = {"prediction_type": "depth" if "Depth" in kind else "normals"}
    return pipeline(kind, **settings)(Image.fromarray(image), generator=draw, **options).prediction[0]


OURS = [
    ({}, {}),
    ({"steps": 3, "seed": 5}, {"num_inference_steps": 3}),
    ({"ensemble": 3, "processing": 0}, {"ensemble_size": 3, "processing_resolution": 0}),
]


@pytest.mark.parametrize(("ours", "theirs"), OURS)
def test_depth_is_that_of_diffusers_and_near_is_white(library, ours, theirs):
    made = preprocess("depth_marigold", IMAGE, library=library, **ours)
    expected = drawn("MarigoldDepthPipeline", IMAGE, ours.get("seed", 0), **theirs)[..., 0]
    assert expected.std() > 0.02 and made.values.dtype == np.float32
    # the same computation with weights channels last; an ensemble's fit ends where its tolerance of 1e-3 is met
    np.testing.assert_allclose(made.values, expected, atol=2e-3 if "ensemble" in ours else 2e-5)
    shade = (made.values.max() - made.values) / np.ptp(made.values)
    assert np.abs(made.pixels16 - shade * 65535).max() < 1.01
    assert made.kind == "depth" and made.pixels[np.unravel_index(made.values.argmin(), (90, 120))].min() == 255


@pytest.mark.parametrize(("ours", "theirs"), OURS)
def test_normals_are_those_of_diffusers_in_controlnets_colours(library, ours, theirs):
    made = preprocess("normal_marigold", IMAGE, library=library, **ours)
    expected = drawn("MarigoldNormalsPipeline", IMAGE, ours.get("seed", 0), **theirs)
    assert expected.std(axis=(0, 1)).min() > 0.02
    off = np.abs(made.values - expected * (-1, 1, 1)).max(axis=2)  # theirs: right, up, to the viewer
    assert (off < 1e-4).mean() > 0.99  # of an ensemble another may be the nearest to the mean
    np.testing.assert_array_equal(made.pixels, encode_normals(made.values))
    np.testing.assert_allclose(np.linalg.norm(made.values, axis=2), 1, atol=1e-5)


def test_a_seed_draws_the_same_again_and_another_another(library):
    one, again, other = (preprocess("depth_marigold", IMAGE, library=library, seed=s).values for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01


def test_every_size_has_depth(library):
    for height, width in ((1, 1), (2, 300), (300, 3), (57, 31)):
        image = np.resize(IMAGE, (height, width, 3))
        made = preprocess("depth_marigold", image, library=library, steps=1)
        assert made.values.shape == (height, width)
    cut = preprocess("depth_marigold", IMAGE, library=library, resolution=80)
    assert cut.pixels.shape == (80, 107, 3) and cut.pixels16.min() == 0 and cut.pixels16.max() == 65535


def test_disparity_is_white_where_it_is_largest(library, tmp_path):
    place = tmp_path / MARIGOLD_DEPTH_FILES[0].repo
    pipeline("MarigoldDepthPipeline", prediction_type="disparity").save_pretrained(place)
    made = preprocess("depth_marigold", IMAGE, library=Library([tmp_path], download=False))
    assert made.pixels16.flat[made.values.argmax()] == 65535 and made.pixels16.flat[made.values.argmin()] == 0


def test_attention_of_old_name_is_read(library, tmp_path):
    pipeline("MarigoldDepthPipeline", prediction_type="depth").save_pretrained(tmp_path / MARIGOLD_DEPTH_FILES[0].repo)
    path = tmp_path / MARIGOLD_DEPTH_FILES[0].repo / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for current, old in names.items():
        tensors = {key.replace(f".{current}.", f".{old}."): tensor for key, tensor in tensors.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
    save_file(tensors, path)
    (tmp_path / "config.json").write_text("{}")  # somebody else's: parts are found by their paths in the model
    made = preprocess("depth_marigold", IMAGE, library=Library([tmp_path], download=False))
    np.testing.assert_array_equal(made.values, preprocess("depth_marigold", IMAGE, library=library).values)


def test_the_command_takes_a_folder_that_diffusers_saved(library, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    command = ["preprocess", "depth_marigold", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--steps", "1"]
    assert main([*command, "--weights", str(library.folders[0] / MARIGOLD_DEPTH_FILES[0].repo), "--no-download"]) == 0
    expected = preprocess("depth_marigold", IMAGE, library=library, steps=1)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected.pixels)


def test_another_folder_is_refused_in_one_line(library, tmp_path):
    pipeline("MarigoldNormalsPipeline", prediction_type="normals").save_pretrained(
        tmp_path / MARIGOLD_DEPTH_FILES[0].repo
    )
    place = tmp_path / MARIGOLD_DEPTH_FILES[0].repo
    other = Library([tmp_path], download=False)
    with pytest.raises(ValueError, match="is a 'MarigoldNormalsPipeline', expected a MarigoldDepthPipeline"):
        load_marigold(other, MARIGOLD_DEPTH_FILES, "MarigoldDepthPipeline", "cpu")
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | {"_class_name": "MarigoldDepthPipeline"}))
    scheduler = place / "scheduler" / "scheduler_config.json"
    kept = scheduler.read_text()
    scheduler.write_text(json.dumps(json.loads(kept) | {"_class_name": "PNDMScheduler"}))
    with pytest.raises(ValueError, match="'PNDMScheduler', expected one of: DDIMScheduler, LCMScheduler"):
        load_marigold(other, MARIGOLD_DEPTH_FILES, "MarigoldDepthPipeline", "cpu")
    scheduler.write_text(kept)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensor for key, tensor in tensors.items() if key != "conv_in.bias"}, weights)
    with pytest.raises(ValueError, match=r"unet' is refused: .*conv_in\.bias") as caught:
        load_marigold(other, MARIGOLD_DEPTH_FILES, "MarigoldDepthPipeline", "cpu")
    assert "\n" not in str(caught.value)
    (place / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there.*marigold-depth-v1-1"):
        load_marigold(other, MARIGOLD_DEPTH_FILES, "MarigoldDepthPipeline", "cpu")


def test_what_is_no_number_is_refused(library):
    model = load_marigold(library, MARIGOLD_NORMALS_FILES, "MarigoldNormalsPipeline", "cpu")
    with pytest.raises(ValueError, match="is no number: compute in float32"):
        replace(model, text_embedding=model.text_embedding * float("nan"))(IMAGE, None, 1, 0, None)
    with pytest.raises(ValueError, match="must be a multiple of 8"):
        preprocess("normal_marigold", IMAGE, library=library, processing=60)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_numbers_draw_nearly_the_same(library, dtype):
    expected = preprocess("depth_marigold", IMAGE, library=library).values
    made = preprocess("depth_marigold", IMAGE, library=library, device=Device("cpu", dtype)).values
    tolerance = 0.02 if dtype == "bfloat16" else 0.002  # 8 and 11 bits of values about 0.5: 4.5e-3 and 6e-4 measured
    np.testing.assert_allclose(made, expected, atol=tolerance)


def test_threads_share_a_model_whose_scheduler_counts_steps(library, tmp_path):
    """An LCMScheduler also draws noise in between."""
    place = tmp_path / MARIGOLD_DEPTH_FILES[0].repo
    theirs = pipeline("MarigoldDepthPipeline", prediction_type="depth")
    theirs.save_pretrained(place)
    lcm = diffusers.LCMScheduler.from_config(theirs.scheduler.config)
    lcm.save_pretrained(place / "scheduler")
    theirs = diffusers.MarigoldDepthPipeline(**theirs.components | {"scheduler": lcm}, prediction_type="depth")
    theirs.set_progress_bar_config(disable=True)
    ready = find("depth_marigold").load("cpu", Library([tmp_path], download=False))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda steps: ready(IMAGE, steps=steps, seed=4).values, (1, 2, 3, 4)))
    for steps, values in zip((1, 2, 3, 4), made, strict=True):
        draw = torch.Generator().manual_seed(4)
        expected = theirs(
            Image.fromarray(IMAGE), num_inference_steps=steps, processing_resolution=64, generator=draw
        ).prediction[0]
        np.testing.assert_allclose(values, expected[..., 0], atol=2e-5)


def test_an_ensemble_without_scipy_is_one_line(library, monkeypatch):
    module = sys.modules[type(pipeline("MarigoldDepthPipeline", prediction_type="depth")).__module__]
    monkeypatch.setattr(module, "is_scipy_available", lambda: False)
    with pytest.raises(ValueError, match=r"an ensemble needs scipy: .*install scipy"):
        preprocess("depth_marigold", IMAGE, library=library, ensemble=3)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("model_index.json", {"default_denoising_steps": "x"}, "default_denoising_steps 'x', expected a whole number"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": None}, "scheduler is refused"),
        ("unet/config.json", {"down_block_types": 7}, "is refused"),
        ("vae/config.json", {"latent_channels": 3}, "is refused"),
    ],
)
def test_a_configuration_of_something_else_is_refused_in_one_line(library, tmp_path, part, changes, words):
    place = tmp_path / MARIGOLD_DEPTH_FILES[0].repo
    shutil.copytree(library.folders[0] / MARIGOLD_DEPTH_FILES[0].repo, place)
    (place / part).write_text(json.dumps(json.loads((place / part).read_text()) | changes))
    with pytest.raises(ValueError, match=words) as caught:
        load_marigold(Library([tmp_path], download=False), MARIGOLD_DEPTH_FILES, "MarigoldDepthPipeline", "cpu")
    assert "\n" not in str(caught.value)
