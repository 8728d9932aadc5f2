"""The embedded model's folder from what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import standin
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel

from controlnet_ext import load
from controlnet_ext.files.weights import read_weights
from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.models.state_dict.saving import save_ldm
from tools.embedded_model import publish as publishing
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


def draw_image(folder: Path) -> np.ndarray:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a red ring", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    return drawn.images[0]


def test_what_is_published_draws_as_what_was_trained(folders: tuple[Path, Path]) -> None:
    trained, published = map(draw_image, folders)
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


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model of the other layout with two controls, and the command's folder with matrices in fp8."""
    base, out = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("out") / "model"
    standin.save_small(base, ["canny", "depth"])
    files = {"canny": "canny", "pose+depth": "depth"}
    words = [f"--control={names}={base}/controlnet_{control}" for names, control in files.items()]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["publish", str(base), "--fp8", *words, "-o", str(out)])
        patched.setattr(publishing, "MIN_FP8_NUMBERS", 100)
        publishing.main()
        publishing.main()
    return base, out


def test_matrices_in_fp8_are_read_by_diffusers_and_by_us(eight_bits: tuple[Path, Path]) -> None:
    base, out = eight_bits
    assert sorted(path.name for path in out.glob("controlnet_*")) == ["controlnet_canny", "controlnet_pose+depth"]
    for part in ("unet", "controlnet_canny"):
        stored = read_weights(out / part / "diffusion_pytorch_model.safetensors").tensors
        assert {t.dtype for t in stored.values()} == {torch.float8_e4m3fn, torch.float16}
        kind = UNet2DConditionModel if part == "unet" else ControlNetModel
        theirs, trained = (kind.from_pretrained(folder / part).state_dict() for folder in (out, base))
        assert {t.dtype for t in theirs.values()} == {torch.float32}
        for name, tensor in trained.items():
            assert (theirs[name] - tensor).abs().max() <= tensor.abs().max() / 16 + 1e-3, name
    assert np.abs(draw_image(base) - draw_image(out)).max() < 0.2
    net, context = load(out / "controlnet_canny"), torch.randn(1, 77, 128)
    step = Step(torch.randn(1, 4, 8, 8), torch.tensor([500]), context, Span(0, 1))
    assert torch.isfinite(net(step, net.hint(np.full((64, 64, 3), 200, np.uint8))).middle).all()


def test_the_version_grows_with_the_unet_only(eight_bits: tuple[Path, Path], tmp_path: Path) -> None:
    base, out = eight_bits
    first = json.loads((out / "about.json").read_text())
    assert (first["version"], first["earlier"], len(first["styles"])) == (1, {}, 1)
    publish(base, out)  # the UNet in fp16 is another
    second = json.loads((out / "about.json").read_text())
    assert (second["version"], list(second["earlier"].values())) == (2, [1])


def test_a_folder_that_is_too_large_is_refused_with_its_parts(
    eight_bits: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"\d\.\d MB \(.*text_encoder 1\.\d.*\), expected at most 0"):
        publishing.check_size(eight_bits[1])
    with pytest.raises(ValueError, match="'seals=a': expected CONTROL=FILE"):
        publishing.parse_control("seals=a")
