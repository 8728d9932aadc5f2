"""`controlnet-ext inspect` and `convert`: what a file is, and the same numbers in another layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import diffusers
import pytest
import torch
from networks import SHAPES, ours, reference
from safetensors.torch import load_file, save_file

from controlnet_ext import cli, models
from controlnet_ext.maps.control_map import MAP_KINDS
from controlnet_ext.models.inspection import PUBLISHED_HASHES
from controlnet_ext.models.state_dict.foreign import TRANSFORMER_CONTROLNETS, describe_foreign
from controlnet_ext.models.state_dict.ldm_keys import to_ldm_keys
from controlnet_ext.models.state_dict.saving import save_diffusers, save_ldm

# The networks of newer bases as diffusers has them, as small as they go
SMALL = {
    "Qwen-Image": {"num_layers": 1, "attention_head_dim": 128, "num_attention_heads": 1},
    "Z-Image": {"control_layers_places": [0], "control_refiner_layers_places": [0], "dim": 128, "n_heads": 1}
    | {"n_kv_heads": 1, "n_refiner_layers": 1, "control_in_dim": 16},
    "Hunyuan-DiT": {"num_attention_heads": 2, "attention_head_dim": 8, "transformer_num_layers": 4, "sample_size": 8}
    | {"patch_size": 2, "in_channels": 4, "hidden_size": 16, "mlp_ratio": 1},
    "Sana": {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "caption_channels": 8},
}


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_a_controlnet_is_described(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = reference("SD1.5").half().state_dict()
    path = tmp_path / "some file.safetensors"
    save_file(to_ldm_keys(tensors) if layout == "ldm" else tensors, path)
    assert cli.main(["inspect", str(path)]) == 0
    found = lines(capsys)
    assert found["file"] == repr(str(path))
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found["architecture"], found["family"], found["layout"]) == ("controlnet", "sd", layout)
    assert (found["dtype"], found["format"], found["tensors"]) == ("float16", "safetensors", str(len(tensors)))
    assert found["parameters"] == f"{sum(t.numel() for t in tensors.values()):,}"
    assert (found["map"], found["heads"]) == ("unknown", "1 1 1 1 (likely)")
    assert found["global average pooling"].startswith("unstated")
    assert "what" not in found and "problem" not in found


def test_json_is_one_object_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.pth"
    torch.save(reference("SDXL small").state_dict(), path)
    save_diffusers(ours(reference("SDXL")), tmp_path / "folder")
    assert cli.main(["inspect", "--json", str(path), str(tmp_path / "folder")]) == 0
    small, full = map(json.loads, capsys.readouterr().out.splitlines())
    assert (small["format"], small["details"]["transformer blocks"]) == ("pickle", "0 0 0 0")
    assert (full["layout"], full["details"]["transformer blocks"]) == ("diffusers", "0 2 10 10")
    assert full["details"]["heads"] == "1 2 4 (stated)"


def test_the_map_is_what_the_metadata_or_a_known_hash_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "depth.safetensors"  # the name says nothing
    save_ldm(ours(reference("SD1.5")), path)
    cli.main(["inspect", str(path)])
    assert lines(capsys)["map"] == "unknown"
    monkeypatch.setitem(PUBLISHED_HASHES, hashlib.sha256(path.read_bytes()).hexdigest(), ("edges", "canny", "a list"))
    cli.main(["inspect", str(path)])
    assert lines(capsys)["map"] == "edges (from the hash of canny in a list)"
    assert cli.main(["convert", str(path), str(tmp_path / "folder"), "--to", "diffusers"]) == 0
    cli.main(["inspect", str(tmp_path / "folder")])
    assert lines(capsys)["map"] == "edges (from the file's metadata)"
    again = ["convert", str(tmp_path / "folder"), str(tmp_path / "b.safetensors"), "--to", "ldm", "--map", "depth"]
    assert cli.main(again) == 0
    cli.main(["inspect", str(tmp_path / "b.safetensors")])
    assert lines(capsys)["map"].startswith("depth")


def test_known_hashes_are_hashes_of_kinds() -> None:
    assert all(len(digest) == 64 and int(digest, 16) for digest in PUBLISHED_HASHES)
    assert {kind for kind, _, _ in PUBLISHED_HASHES.values()} <= set(MAP_KINDS)
    assert len({name for _, name, _ in PUBLISHED_HASHES.values()}) == len(PUBLISHED_HASHES) == 34


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", ["SD1.5", "SD2.1", "SDXL", "SDXL mid", "SDXL small"])
def test_layouts_there_and_back_are_equal_to_the_bit(shape: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: t.to(dtype) for name, t in reference(shape).state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    a, b, c = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c"))
    assert cli.main(["convert", a, b, "--to", "ldm"]) == 0
    assert cli.main(["convert", b, c, "--to", "diffusers"]) == 0
    back = load_file(Path(c) / "diffusion_pytorch_model.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in back.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8))


def test_pooling_is_stated_by_converting(tmp_path: Path) -> None:
    save_file(reference("SD1.5").state_dict(), tmp_path / "shuffle.safetensors")
    words = ["convert", str(tmp_path / "shuffle.safetensors"), str(tmp_path / "pooled"), "--to", "diffusers"]
    assert cli.main([*words, "--pooled", "--map", "shuffle"]) == 0
    assert json.loads((tmp_path / "pooled" / "config.json").read_text())["global_pool_conditions"] is True
    assert models.load(tmp_path / "pooled").global_average_pooling is True


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--to", "onnx"], "--to 'onnx': .* is a controlnet file, which can be of diffusers, ldm"),
        (["--to", "ldm", "--map", "canny"], "--map 'canny' is none of: edges"),
        (["--to", "ldm", "OUT.pth"], r"OUT\.pth' does not end in \.safetensors"),
        (["--to", "ldm", "IN"], "exists; --overwrite replaces it"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    words: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    save_file(reference("SD1.5").state_dict(), "in.safetensors")
    words = ["in.safetensors" if word == "IN" else word for word in words]
    target = [] if len(words) % 2 else ["out.safetensors"]
    assert cli.main(["convert", "in.safetensors", *target, *words]) == 2
    assert re.search(reason, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_unknown_tensors_are_a_problem_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(reference("SD1.5").state_dict() | {"extra.1": torch.zeros(1)}, tmp_path / "net.safetensors")
    assert cli.main(["inspect", str(tmp_path / "net.safetensors")]) == 1
    found = lines(capsys)
    assert found["architecture"] == "controlnet"
    assert found["problem"].endswith("extra.1 unknown")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (["model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight"], "a Stable Diffusion"),
        (["lora_unet_mid_block.lora_down.weight"], "a LoRA"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["nonsense"], "something unknown, with tensors nonsense"),
    ],
)
def test_other_files_are_called_what_they_are(
    tensors: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({name: torch.zeros(1) for name in tensors}, tmp_path / "a.safetensors")
    assert cli.main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    found = lines(capsys)
    assert found["what"].startswith(words)
    assert "map" not in found and "architecture" not in found


def test_no_file_and_no_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("hello, this is no file of weights")
    assert cli.main(["inspect", str(tmp_path / "a.txt")]) == 2
    assert cli.main(["inspect", str(tmp_path / "b.txt")]) == 2
    assert "neither safetensors nor of torch.save" in capsys.readouterr().err


@pytest.mark.parametrize("base", TRANSFORMER_CONTROLNETS)
def test_networks_for_newer_bases_are_named(base: str, tmp_path: Path) -> None:
    _, network, pipeline = TRANSFORMER_CONTROLNETS[base]
    assert hasattr(diffusers, pipeline)
    with torch.device("meta"):
        names = list(getattr(diffusers, network)(**SMALL[base]).state_dict())
    assert describe_foreign(names).startswith(f"a ControlNet for {base}, a transformer, which guide does not reach")
    assert not [kind for kind in models.iter_kinds() if kind.detect(names)]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"use diffusers.{pipeline} with diffusers.{network}"):
        models.load(tmp_path / "a.safetensors")


def test_the_shapes_of_all_published_layouts_are_of_one_kind_each() -> None:
    for shape in SHAPES:
        for names in (reference(shape).state_dict(), to_ldm_keys(reference(shape).state_dict())):
            assert [kind.name for kind in models.iter_kinds() if kind.detect(names)] == ["controlnet"]
