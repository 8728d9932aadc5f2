"""The embedded model's folder from what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import standin
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline

from controlnet_ext import load
from controlnet_ext.files.weights import read_weights
from controlnet_ext.models.state_dict.saving import save_ldm
from tools.embedded_model.publish import publish, publish_control


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What was trained, and what was published of it, the second time over the first."""
    base, out = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("out")
    standin.save(base)
    said = {"controlnet_ext.map": "edges", "other": "not ours"}
    save_ldm(load(base / "controlnet_canny"), base / "canny.safetensors", extra_metadata=said)
    for _ in range(2):
        publish(base, out)
        publish_control(base / "canny.safetensors", out / "controlnet_canny")
    return base, out


def picture(folder: Path) -> np.ndarray:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a red ring", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    return drawn.images[0]


def test_what_is_published_draws_as_what_was_trained(folders: tuple[Path, Path]) -> None:
    trained, published = map(picture, folders)
    assert np.abs(trained - published).max() < 0.02  # rounded to fp16


def test_the_control_net_is_diffusers_own_and_rounded_once(folders: tuple[Path, Path]) -> None:
    _, out = folders
    theirs = ControlNetModel.from_pretrained(out / "controlnet_canny").state_dict()
    trained = load(folders[0] / "controlnet_canny").state_dict()
    assert all(torch.equal(theirs[name], t.half().float()) for name, t in trained.items())
    said = read_weights(out / "controlnet_canny" / "diffusion_pytorch_model.safetensors").metadata
    assert said["controlnet_ext.map"] == "edges"
    assert "other" not in said


def test_files_are_small_readable_and_name_no_machine(folders: tuple[Path, Path]) -> None:
    _, out = folders
    files = [path for path in out.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)
    assert sum(path.stat().st_size for path in files) < 22e6
    for path in files:
        if path.suffix == ".json":
            assert "_name_or_path" not in json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            floats = {t.dtype for t in read_weights(path).tensors.values() if t.is_floating_point()}
            assert floats == {torch.float16}, path
