"""`controlnet-ext generate` with each kind of control file, and again from the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from diffusers import ControlNetUnionModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from networks import randomised
from safetensors.torch import save_file
from test_control_lora import parts, written
from test_controlnet_files import difference

from controlnet_ext.cli import main


@pytest.mark.parametrize("kind", ["control-lora", "difference", "union"])
def test_a_picture_is_made_and_made_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipe, shape = (StableDiffusionXLPipeline, "SDXL") if kind == "union" else (StableDiffusionPipeline, "SD1.5")
    tiny.pipeline(pipe, shape).save_pretrained("sd")
    tiny.picture(size=64).save("photo.png")
    net = tiny.control()
    match kind:
        case "control-lora":
            tensors = written(parts(net, tiny.unet())[0], net)
        case "difference":
            tensors = difference(net, tiny.unet())
        case "union":
            narrow = {"num_trans_channel": 32, "num_proj_channel": 32, "conditioning_embedding_out_channels": (8,) * 4}
            tensors = randomised(ControlNetUnionModel(**tiny.SHAPES["SDXL"], **narrow)).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "control.safetensors")
    words = ["generate", "a cat", "--image", "photo.png", "--steps", "2", "--model", "sd", "-o", "a.png"]
    assert main([*words, "--control", "canny,model=control.safetensors"]) == 0
    assert main(["generate", "--from", "a.png", "-o", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
