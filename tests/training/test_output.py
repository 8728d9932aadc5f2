"""What a training writes, read again by diffusers, by `load`, and by the programs that know no other layout."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from killing import Killed, contents, killed_at
from ldm import UNetModel
from networks import all_of, randomised, step_for, theirs_on
from test_ldm_host import guided as guided_in_ldm
from test_ldm_host import inputs as ldm_inputs

from controlnet_ext import Unit, load
from controlnet_ext.files.weights import read_weights
from controlnet_ext.models import WEIGHTS_FILE, ControlFile
from controlnet_ext.models.state_dict import saving
from controlnet_ext.training.bases import EncodedBatch, FrozenBase
from controlnet_ext.training.output import TrainingOutput
from controlnet_ext.training.targets import TargetSettings, find_target
from controlnet_ext.training.work_folder import remove_output_leftovers

METADATA = {"controlnet_ext.map": "edges", "controlnet_ext.steps": "24"}
CARD = "---\nlibrary_name: diffusers\n---\n# A card\n"


@pytest.fixture(scope="module")
def unets() -> dict[str, Any]:
    return {shape: tiny.unet(shape) for shape in ("SD1.5", "SDXL")}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def create(target: str, unet: Any) -> Any:
    torch.manual_seed(0)
    settings = TargetSettings(rank=3 if target == "control-lora" else None)
    net = find_target(target).create(unet, settings)
    return randomised(net) if target != "lllite" else net


def write(net: Any, out: str, **options: Any) -> Path:
    output = TrainingOutput.parse(out)
    output.write(net, METADATA, CARD, **options)
    return output.path


@pytest.mark.parametrize("shape", ["SD1.5", "SDXL"])
@torch.no_grad()
def test_a_folder_of_a_controlnet_is_read_by_diffusers(shape: str, unets: dict[str, Any]) -> None:
    net = create("controlnet", unets[shape])
    path = write(net, "out/")
    assert sorted(os.listdir(path)) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    assert (path / "README.md").read_text() == CARD
    theirs = diffusers.ControlNetModel.from_pretrained(path)
    image, step = np.array(tiny.random_image()), step_for(net)
    for a, b in zip(all_of(net(step, net.hint(image))), theirs_on(theirs, step, image), strict=True):
        assert torch.equal(a, b)
    ours = load(path)
    assert all_equal(ours, net) and ours.map_type == "edges"


@pytest.mark.parametrize("shape", ["SD1.5", "SDXL"])
@torch.no_grad()
def test_a_folder_of_a_t2i_adapter_is_read_by_diffusers(shape: str, unets: dict[str, Any]) -> None:
    net = create("t2i-adapter", unets[shape])
    path = write(net, "out/")
    theirs = diffusers.T2IAdapter.from_pretrained(path)
    image = np.array(tiny.random_image())
    pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    for a, b in zip(net.hint(image), theirs(pixels), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert all_equal(load(path), net)


@pytest.mark.parametrize(
    ("target", "shape", "kind"),
    [
        ("controlnet", "SDXL", "controlnet"),
        ("t2i-adapter", "SD1.5", "t2i_adapter"),
        ("t2i-adapter", "SDXL", "t2i_adapter"),
        ("control-lora", "SDXL", "control_lora"),
        ("lllite", "SDXL", "lllite"),
    ],
)
def test_a_file_is_read_by_load(target: str, shape: str, kind: str, unets: dict[str, Any]) -> None:
    net = create(target, unets[shape])
    path = write(net, "some/out.safetensors")
    assert sorted(os.listdir("some")) == ["out.safetensors", "out.safetensors.md"]
    file = ControlFile.read(path)
    assert file.kind is not None and file.kind.name == kind
    assert METADATA.items() <= file.weights.metadata.items()
    again: Any = load(path)
    again.bind(unets[shape])
    assert all_equal(again, net) and again.map_type == "edges"


def all_equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """True if both have the same tensors under the same names."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("shape", ["SD1.5", "SDXL"])
@torch.no_grad()
def test_a_control_lora_has_the_names_and_shapes_that_comfyui_and_diffusers_read(
    shape: str, unets: dict[str, Any]
) -> None:
    net = create("control-lora", unets[shape])
    tensors = read_weights(write(net, "out.safetensors")).tensors
    assert tensors["lora_controlnet"].numel() == 0
    assert {"input_hint_block.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.bias"} <= tensors.keys()
    assert tensors["input_blocks.1.0.in_layers.2.up"].shape == (32, 3, 1, 1)
    assert tensors["input_blocks.1.0.in_layers.2.down"].shape == (3, 32, 3, 3)
    assert tensors["time_embed.0.up"].shape == (128, 3) and "time_embed.0.bias" in tensors
    # diffusers' loader, which leaves out the biases of layers with factors
    theirs = diffusers.ControlNetModel.from_unet(unets[shape])
    theirs.load_lora_adapter("out.safetensors", prefix=None)
    for name, module in theirs.named_modules():
        if hasattr(module, "base_layer") and module.base_layer.bias is not None:
            module.base_layer.bias.copy_(net.tensors[f"{name}.bias".replace(".", "/")])
    step, image = step_for(net), np.array(tiny.random_image())
    for a, b in zip(all_of(net(step, net.hint(image))), theirs_on(theirs.eval(), step, image), strict=True):
        assert b.std() > 1e-3 and (a - b).abs().max() <= 1e-5 * b.std()


def test_a_lllite_has_the_names_of_sd_scripts(unets: dict[str, Any]) -> None:
    tensors = read_weights(write(create("lllite", unets["SDXL"]), "out.safetensors")).tensors
    stem = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    parts = ("conditioning1.0", "conditioning1.2", "down.0", "mid.0", "up.0")
    assert {f"{stem}.{part}.{each}" for part in parts for each in ("weight", "bias")} == {
        name for name in tensors if name.startswith(f"{stem}.")
    }
    assert all(name.startswith("lllite_unet_") for name in tensors)


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ("controlnet", "SD1.5"),
        ("controlnet", "SDXL"),
        ("control-lora", "SD1.5"),
        ("control-lora", "SDXL"),
        ("t2i-adapter", "SD1.5"),
        ("lllite", "SDXL"),
    ],
)
@torch.no_grad()
def test_a_file_guides_the_webuis_unet_as_the_network_was_trained(target: str, shape: str) -> None:
    kind = StableDiffusionXLPipeline if shape == "SDXL" else StableDiffusionPipeline
    base = FrozenBase(tiny.pipeline(kind, shape), "cpu")
    net = randomised(create(target, base.unet))
    x, t, context, y = ldm_inputs(shape)
    pooled, sizes = torch.randn(len(x), 32), torch.full((len(x), 6), 64.0)
    if y is not None:
        y = torch.cat([pooled, base.unet.add_time_proj(sizes.flatten()).reshape(len(x), -1)], dim=1)
    image = np.array(tiny.random_image())
    batch = EncodedBatch(x, context, np.stack([image] * len(x)), added=torch.cat([pooled, sizes], dim=1))
    expected = base.predict(x, t, batch, net)
    unit = Unit(load(write(net, "out.safetensors")), image)
    found = guided_in_ldm(UNetModel(base.unet), [unit], (x, t, context, y))
    assert torch.equal(found, expected)
    assert (found - base.predict(x, t, batch, None)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("out", "target", "says"),
    [
        ("out", "controlnet", r"'out' does not end in \.safetensors, nor in / as a folder"),
        ("out.bin", "controlnet", r"'out\.bin' does not end in \.safetensors"),
        ("out/", "lllite", r"diffusers reads no lllite from a folder: name a \.safetensors file, not 'out'"),
        ("out/", "control-lora", "diffusers reads no control-lora from a folder"),
        ("full/", "controlnet", "'full' holds files already; --overwrite"),
        ("full", "controlnet", "'full' holds files already; --overwrite"),
        (".", "controlnet", "holds files already; --overwrite"),
        ("here.safetensors/", "controlnet", "'here.safetensors' is a file, expected a folder"),
        ("here.safetensors", "controlnet", "'here.safetensors' exists; --overwrite"),
        ("carded.safetensors", "controlnet", "'carded.safetensors.md' exists, where the model card goes"),
    ],
)
def test_what_cannot_be_written_or_would_be_replaced_is_refused(out: str, target: str, says: str) -> None:
    Path("full").mkdir()
    for name in ("full/notes.txt", "here.safetensors", "carded.safetensors.md"):
        Path(name).write_text("mine")
    with pytest.raises((ValueError, FileExistsError), match=says):
        TrainingOutput.parse(out).check(find_target(target), overwrite=False, is_resumed=False)


def test_a_readme_that_is_of_no_model_is_not_replaced() -> None:
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"'mine/README\.md' is of no model"):
        TrainingOutput.parse("mine/").check(find_target("controlnet"), overwrite=True, is_resumed=False)


def test_overwriting_replaces_the_model_and_nothing_else(unets: dict[str, Any]) -> None:
    net = create("t2i-adapter", unets["SD1.5"])
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    for text in ("full/", "out.safetensors"):
        write(net, text, overwrite=True)
        with pytest.raises(FileExistsError):
            write(net, text)
        TrainingOutput.parse(text).check(find_target("t2i-adapter"), overwrite=True, is_resumed=False)
        write(net, text, overwrite=True)
    assert Path("full/notes.txt").read_text() == "mine" and len(os.listdir("full")) == 4
    assert all_equal(load("full"), net)


class OneLayer(torch.nn.Linear):
    """A network of one tensor and a bias."""

    LAYOUTS = {"ldm": dict, "diffusers": dict}  # noqa: RUF012

    def config(self) -> dict[str, Any]:
        return {"_class_name": "OneLayer"}


@pytest.mark.parametrize("out", ["out.safetensors", "out/"])
def test_an_output_is_whole_or_not_there_at_any_kill(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "build_metadata", lambda net: {})
    torch.manual_seed(0)
    net, output = OneLayer(2, 2), TrainingOutput.parse(out)
    weights = output.path / WEIGHTS_FILE if output.is_folder else output.path
    for count in itertools.count():
        (tmp_path / str(count)).mkdir()
        monkeypatch.chdir(tmp_path / str(count))
        output.work_folder.mkdir()
        (output.work_folder / "lock").touch()
        try:
            with killed_at(count, monkeypatch):
                output.write(net, METADATA, CARD)
            break
        except Killed:
            if weights.exists():
                assert output.card.read_text() == CARD and (output.path / "config.json").exists() == output.is_folder
                continue
        remove_output_leftovers(output.work_folder, output.path, output.temp_prefix)
        output.check(find_target("controlnet"), overwrite=False, is_resumed=True)
        output.write(net, METADATA, CARD)
        assert all(torch.equal(t, net.state_dict()[name]) for name, t in read_weights(weights).tensors.items())
        assert not [name for name in contents(".") if name.endswith(".part")]
    assert count > 8


def test_a_full_disk_leaves_neither_card_nor_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "build_metadata", lambda net: {})
    write_bytes = os.write

    def fail(descriptor: int, content: Any) -> int:
        if len(content) < 20:  # a tensor
            raise OSError(28, "No space left on device")
        return write_bytes(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        for out in ("out/", "out.safetensors"):
            with pytest.raises(OSError, match=r"No space left on device: '.*\.safetensors'"):
                write(OneLayer(2, 2), out)
    assert os.listdir() == []
