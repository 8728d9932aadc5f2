"""What is loaded of a pipeline's folder without diffusers' loader equals what that loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from controlnet_ext.generation.pipeline_folder import PipelineFolder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "sd"
    tiny.pipeline(StableDiffusionPipeline).save_pretrained(folder)
    return folder


def rename(name: str, prefix: str) -> str:
    return prefix + name.removeprefix("text_model.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_the_text_encoder_is_that_of_from_pretrained(
    prefix: str, dtype: torch.dtype, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "sd")
    weights = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    tensors = {rename(name, prefix): tensor for name, tensor in load_file(weights).items()}
    if prefix:  # as in the files of Stable Diffusion 1.5
        tensors |= {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(tensors, weights, {"format": "pt"})
    folder = PipelineFolder.find(str(tmp_path / "sd"))
    state = torch.get_rng_state()
    ours = folder._load_text_encoder(dtype)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = CLIPTextModel.from_pretrained(str(weights.parent), dtype=dtype, local_files_only=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert all(tensor.dtype == theirs.state_dict()[name].dtype for name, tensor in ours.state_dict().items())
    assert not ours.training and ours.config.to_dict() == theirs.config.to_dict() | {
        "_name_or_path": ours.config.to_dict()["_name_or_path"],
        "dtype": ours.config.to_dict().get("dtype"),
    }
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state)
    assert folder.load(dtype, folder.make_scheduler(None)).text_encoder.dtype == dtype


def test_a_text_encoder_of_more_than_its_own_tensors_is_left_to_from_pretrained(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "sd")
    encoder = tmp_path / "sd" / "text_encoder"
    folder = PipelineFolder.find(str(tmp_path / "sd"))
    (encoder / "adapter_config.json").write_text("{}")
    assert folder._load_text_encoder(torch.float32) is None
    (encoder / "adapter_config.json").unlink()
    assert folder._load_text_encoder(torch.float32) is not None
    tensors = load_file(encoder / "model.safetensors")
    save_file({**tensors, "more": torch.zeros(1)}, encoder / "model.safetensors", {"format": "pt"})
    assert folder._load_text_encoder(torch.float32) is None
    (encoder / "model.fp16.safetensors").write_bytes((encoder / "model.safetensors").read_bytes())
    save_file(dict(list(tensors.items())[1:]), encoder / "model.safetensors", {"format": "pt"})
    assert folder._load_text_encoder(torch.float32) is None
    assert folder.load(torch.float32, folder.make_scheduler(None)).text_encoder is not None
