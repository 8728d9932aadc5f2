"""`controlnet-ext generate` with each kind of control file, and again from the image."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from diffusers import ControlNetUnionModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from networks import randomised
from safetensors.torch import save_file
from test_control_lora import parts, written
from test_controlnet_files import difference

from controlnet_ext import ControlMap
from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.generation.recipe_png import read_recipe
from controlnet_ext.guidance.after_steps import ColorFix


def union() -> dict[str, torch.Tensor]:
    narrow = {"num_trans_channel": 32, "num_proj_channel": 32, "conditioning_embedding_out_channels": (8,) * 4}
    return dict(randomised(ControlNetUnionModel(**tiny.SHAPES["SDXL"], **narrow)).state_dict())


@pytest.mark.parametrize("kind", ["control-lora", "difference", "union"])
def test_an_image_is_made_and_made_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipe, shape = (StableDiffusionXLPipeline, "SDXL") if kind == "union" else (StableDiffusionPipeline, "SD1.5")
    tiny.pipeline(pipe, shape).save_pretrained("sd")
    tiny.random_image(size=64).save("photo.png")
    net = tiny.control()
    match kind:
        case "control-lora":
            tensors = written(parts(net, tiny.unet())[0], net)
        case "difference":
            tensors = difference(net, tiny.unet())
        case "union":
            tensors = union()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "control.safetensors")
    words = ["generate", "a cat", "--image", "photo.png", "--steps", "2", "--model", "sd", "-o", "a.png"]
    assert main([*words, "--control", "canny,model=control.safetensors"]) == 0
    assert main(["generate", "--from", "a.png", "-o", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_the_user_says_a_unions_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the image's recipe keeps it; without it the union is refused before any work."""
    monkeypatch.chdir(tmp_path)
    tiny.pipeline(StableDiffusionXLPipeline, "SDXL").save_pretrained("sd")
    tiny.random_image(size=64).save("map.png")
    save_file(union(), "union.safetensors")
    words = ["generate", "a cat", "--steps", "1", "--model", "sd", "--seed", "1", "--control"]
    control = "none,image=map.png,model=union.safetensors"
    assert main([*words, control, "-o", "a.png"]) == 2
    assert "reads no 'other' maps, only pose, depth" in capsys.readouterr().err
    for kind in ("depth", "normals"):
        assert main([*words, f"{control},kind={kind}", "-o", f"{kind}.png"]) == 0
        image = read_recipe(f"{kind}.png").units[0].control_map
        assert isinstance(image, ControlMap) and image.kind == kind
    assert Path("depth.png").read_bytes() != Path("normals.png").read_bytes()
    assert main(["generate", "--from", "depth.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("depth.png").read_bytes()


def test_colours_are_fixed_again_in_an_image_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.pipeline(StableDiffusionPipeline).save_pretrained("sd")
    tiny.random_image(size=64).save("photo.png")
    save_file(tiny.control().state_dict(), "control.safetensors")
    words = ["generate", "a cat", "--steps", "2", "--model", "sd", "--seed", "1", "--image", "photo.png", "--control"]
    for name, control in (("a", "tile_colorfix+sharp,variation=4"), ("b", "none,kind=tile")):
        assert main([*words, f"{control},model=control.safetensors", "-o", f"{name}.png"]) == 0
    assert read_recipe("a.png").units[0].after == ColorFix(4, 1.0)
    assert main(["generate", "--from", "a.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("a.png").read_bytes()
    assert (read_image("a.png") != read_image("b.png")).any()
