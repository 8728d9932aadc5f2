"""ControlNets in files: names in both layouts, what loads, what is refused and how, and what is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from networks import SHAPES, all_of, ours, random_image, reference, step_for, theirs_on, unet
from safetensors.torch import load_file, save_file

from controlnet_ext import cli, models
from controlnet_ext.generation.recipe import find_control_files, hash_file, hash_weights
from controlnet_ext.models import kinds
from controlnet_ext.models.inspection import inspect
from controlnet_ext.models.kinds.controlnet import ControlNet, detect
from controlnet_ext.models.nn.embeddings import HintEncoder
from controlnet_ext.models.state_dict.compatibility import SDXL_SKIPS
from controlnet_ext.models.state_dict.ldm_keys import to_diffusers_keys, to_ldm_keys
from controlnet_ext.models.state_dict.saving import save_diffusers, save_ldm
from controlnet_ext.models.state_dict.strict import is_tensor_finite
from controlnet_ext.sdwebui.catalog import ModelCatalog

ASSETS = Path(os.environ.get("CONTROLNET_EXT_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))
RESNET = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
BLOCK = [
    *(f"attn{i}.{m}" for i in (1, 2) for m in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")),
    *(f"{m}.{p}" for m in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2") for p in ("weight", "bias")),
    "attn1.to_out.0.bias",
    "attn2.to_out.0.bias",
]


def ldm_names(shape: str) -> set[str]:
    """ldm's names, typed out after its constructor: lllyasviel/ControlNet ed85cd1e25a5, cldm/cldm.py, class ControlNet.

    Levels of two blocks and a downsampling: 1, 2, op 3, 4, 5, op 6, 7, 8 and in SD op 9, 10, 11.
    """
    blocks, attention, depth = {
        "SD1.5": (12, [1, 2, 4, 5, 7, 8], {}),
        "SD2.1": (12, [1, 2, 4, 5, 7, 8], {}),
        "SDXL": (9, [4, 5, 7, 8], {4: 2, 5: 2, 7: 10, 8: 10, "middle": 10}),
        "SDXL mid": (9, [7, 8], {}),
        "SDXL small": (9, [], {"middle": 0}),
    }[shape]
    modules = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "middle_block_out.0"]
    modules += [f"zero_convs.{i}.0" for i in range(blocks)]
    modules += [f"input_hint_block.{i}" for i in range(0, 16, 2)]
    modules += ["label_emb.0.0", "label_emb.0.2"] if shape.startswith("SDXL") else []
    for i in range(1, blocks):
        modules += [f"input_blocks.{i}.0.op"] if i % 3 == 0 else [f"input_blocks.{i}.0.{m}" for m in RESNET]
    modules += [f"input_blocks.{i}.0.skip_connection" for i in (4, 7)]  # where a level is wider than the last
    modules += [f"middle_block.{j}.{m}" for j in (0, 2) for m in RESNET]
    names = {f"{module}.{p}" for module in modules for p in ("weight", "bias")}
    for place, key in [(f"input_blocks.{i}.1", i) for i in attention] + [("middle_block.1", "middle")]:
        names |= {f"{place}.{m}.{p}" for m in ("norm", "proj_in", "proj_out") for p in ("weight", "bias")}
        names |= {f"{place}.transformer_blocks.{k}.{name}" for k in range(depth.get(key, 1)) for name in BLOCK}
    return names


@pytest.mark.parametrize(
    ("shape", "count"), [("SD1.5", 340), ("SD2.1", 340), ("SDXL", 844), ("SDXL mid", 212), ("SDXL small", 140)]
)
def test_ldm_names_are_those_of_the_original(shape: str, count: int) -> None:
    tensors = to_ldm_keys(reference(shape).state_dict())
    assert set(tensors) == ldm_names(shape)
    assert len(tensors) == count


@pytest.mark.parametrize("shape", SHAPES)
def test_names_there_and_back_are_the_same(shape: str) -> None:
    tensors = reference(shape).state_dict()
    back = to_diffusers_keys(to_ldm_keys(tensors))
    assert list(back) == list(tensors)
    assert all(back[name] is tensor for name, tensor in tensors.items())


def test_unequal_levels_go_there_and_back() -> None:
    tensors = ControlNet.from_unet(unet("SD1.5", layers_per_block=(1, 3, 2, 1))).state_dict()
    assert to_diffusers_keys(to_ldm_keys(tensors)).keys() == tensors.keys()
    assert "input_blocks.6.0.op.weight" in to_ldm_keys(tensors)  # 0 conv_in, 1, 2 op, 3, 4, 5, 6 op


def test_names_of_no_controlnet_stay() -> None:
    assert to_ldm_keys({"step": 1}) == to_diffusers_keys({"step": 1}) == {"step": 1}


@pytest.mark.weights
def test_the_published_canny_network_is_built_from_its_own_list_of_tensors() -> None:
    listing = ASSETS / "layouts" / "controlnet_canny_diffusers_keys.json"
    if not listing.exists():
        pytest.skip(f"{listing} is not there; set CONTROLNET_EXT_ASSETS to the folder of test assets")
    shapes = {name: entry["shape"] for name, entry in json.loads(listing.read_text()).items()}
    # one stored value stretched to every shape: the tensors of 1.4 GB are never there
    net = ControlNet.load({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()})
    assert {name: list(t.shape) for name, t in net.state_dict().items()} == shapes
    assert (net.family, net.unet_signature.label, sum(p.numel() for p in net.parameters())) == (
        "sd15",
        "SD1.5",
        361_279_120,
    )
    assert net.net_config.default_heads == (8, 8, 8, 8)
    assert to_diffusers_keys(to_ldm_keys(shapes)) == shapes
    assert to_ldm_keys(shapes).keys() == ldm_names("SD1.5")


def published_sdxl() -> dict[str, torch.Tensor]:
    """The tensors of an SDXL ControlNet, those of the published UNet's encoder with hint encoder and zero convolutions:
    one stored value stretched to every shape."""
    listing = ASSETS / "layouts" / "sdxl_unet_diffusers_keys.json"
    if not listing.exists():
        pytest.skip(f"{listing} is not there; set CONTROLNET_EXT_ASSETS to the folder of test assets")
    shapes = {name: entry["shape"] for name, entry in json.loads(listing.read_text()).items()}
    encoder = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")
    shapes = {name: shape for name, shape in shapes.items() if name.startswith(encoder)}
    zeros = {f"controlnet_down_blocks.{i}": width for i, width in enumerate(SDXL_SKIPS)}
    for name, width in (zeros | {"controlnet_mid_block": 1280}).items():
        shapes |= {f"{name}.weight": [width, width, 1, 1], f"{name}.bias": [width]}
    with torch.device("meta"):
        hint = HintEncoder((3, 16, 32, 96, 256), 320).state_dict()
    shapes |= {f"controlnet_cond_embedding.{name}": list(tensor.shape) for name, tensor in hint.items()}
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


@pytest.mark.weights
def test_a_network_beside_the_published_sdxl_is_built_from_its_list_of_tensors() -> None:
    tensors = published_sdxl()
    net = ControlNet.load(tensors)
    assert (net.family, net.unet_signature.label, net.net_config.default_heads) == ("sdxl", "SDXL", (5, 10, 20))
    assert net.net_config.transformer_depths == ((), (2, 2), (10, 10))
    assert to_ldm_keys(tensors).keys() == ldm_names("SDXL")
    assert sum(p.numel() for p in net.parameters()) == 1_251_014_160


@pytest.mark.weights
def test_a_control_lora_of_the_published_sdxl_is_of_its_family() -> None:
    from controlnet_ext.models.kinds import control_lora

    file = {"lora_controlnet": torch.zeros(0)}
    for name, tensor in to_ldm_keys(published_sdxl()).items():
        own = name.startswith(("input_hint_block", "zero_convs", "middle_block_out"))
        if own or tensor.ndim < 2:
            file[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        file[f"{stem}.up"] = torch.zeros(()).expand(tensor.shape[0], 128, *[1] * (tensor.ndim - 2))
        file[f"{stem}.down"] = torch.zeros(()).expand(128, *tensor.shape[1:])
    assert [kind for kind in models.iter_kinds() if kind.detect(file)] == [control_lora.KIND]
    lora = control_lora.load(file, {})
    assert (lora.family, lora.unet_signature) == ("sdxl", ControlNet.load(published_sdxl()).unet_signature)


LAYOUTS = {
    "diffusers": lambda tensors: tensors,
    "ldm": to_ldm_keys,
    "ldm with prefix": lambda tensors: {f"control_model.{name}": t for name, t in to_ldm_keys(tensors).items()},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_gives_its_tensors_whatever_its_name(
    layout: str, suffix: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = reference("SD2.1").to(dtype).state_dict()
    path = tmp_path / f"anything{suffix}"
    written = LAYOUTS[layout](tensors)
    save_file(written, path) if suffix == ".safetensors" else torch.save(written, path)
    net = models.load(path)
    assert (net.architecture, net.family, net.dtype) == ("controlnet", "sd", dtype)
    assert all(torch.equal(t, tensors[name]) for name, t in net.state_dict().items())
    assert models.load(path, device="cpu", dtype=torch.float32).dtype == torch.float32


def test_lllyasviels_whole_checkpoints_load(tmp_path: Path) -> None:
    theirs = reference("SD1.5")
    rest = {"model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight", "betas"}
    tensors = LAYOUTS["ldm with prefix"](theirs.state_dict()) | {name: torch.ones(1) for name in rest}
    torch.save({"state_dict": tensors, "global_step": 7}, tmp_path / "control_sd15_canny.pth")
    net = models.load(tmp_path / "control_sd15_canny.pth")
    tensors = theirs.state_dict()
    assert all(torch.equal(t, tensors[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_diffusers_folders_go_both_ways(shape: str, tmp_path: Path) -> None:
    """What we write diffusers loads, what it writes we load, and all compute the same, heads included. The tolerance is
    for diffusers, which maps files into memory where weights lie unaligned: another order of sums, measured 1.4e-6."""
    theirs = reference(shape)
    net = ours(theirs)
    save_diffusers(net, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    step, image = step_for(net), random_image()
    expected = theirs_on(theirs, step, image)
    for again in (
        theirs_on(ControlNetModel.from_pretrained(tmp_path / "ours"), step, image),
        *(all_of(n(step, n.hint(image))) for n in (models.load(tmp_path / "ours"), models.load(tmp_path / "theirs"))),
    ):
        assert all((a - b).abs().max() <= 1e-5 * b.std() for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin", "a.pth"])
def test_a_folder_means_diffusers_file_or_its_only_one(name: str, tmp_path: Path) -> None:
    theirs = reference("SD1.5", attention_head_dim=4)
    theirs.save_config(tmp_path)
    save = save_file if name.endswith("safetensors") else torch.save
    save(theirs.state_dict(), tmp_path / name)
    assert models.load(tmp_path).net_config.heads == (4, 4, 4, 4)
    assert models.load(tmp_path / name).net_config.heads == (4, 4, 4, 4)


def test_a_config_among_several_files_is_about_none_of_them(tmp_path: Path) -> None:
    theirs = reference("SD1.5", attention_head_dim=4)
    theirs.save_config(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(theirs.state_dict(), tmp_path / name)
    assert models.load(tmp_path / "a.safetensors").net_config.heads is None
    with pytest.raises(ValueError, match=r"holds 2 weights files; name one, such as 'a\.safetensors'"):
        models.load(tmp_path)


def test_ldm_files_keep_what_tensors_do_not_show(tmp_path: Path) -> None:
    net = ours(reference("SDXL", attention_head_dim=(2, 4, 8), global_pool_conditions=True))
    save_ldm(net, tmp_path / "net.safetensors")
    assert load_file(tmp_path / "net.safetensors").keys() == ldm_names("SDXL")
    assert models.load(tmp_path / "net.safetensors").net_config == net.net_config


def test_pooling_that_was_switched_on_is_kept(tmp_path: Path) -> None:
    net = ours(reference("SD1.5"))
    net.global_average_pooling = True
    save_ldm(net, tmp_path / "shuffle.safetensors")
    assert models.load(tmp_path / "shuffle.safetensors").global_average_pooling


def test_heads_taken_from_a_unet_are_kept(tmp_path: Path) -> None:
    net = ControlNet.load(reference("SD1.5").state_dict())
    save_ldm(net, tmp_path / "guessed.safetensors")
    assert models.load(tmp_path / "guessed.safetensors").net_config.heads is None
    net.bind(unet("SD1.5", attention_head_dim=4))
    save_ldm(net, tmp_path / "settled.safetensors")
    assert models.load(tmp_path / "settled.safetensors").net_config.heads == (4, 4, 4, 4)


def test_a_config_beside_the_file_comes_before_metadata(tmp_path: Path) -> None:
    save_diffusers(ours(reference("SD1.5", attention_head_dim=4)), tmp_path)
    reference("SD1.5", attention_head_dim=2).save_config(tmp_path)
    assert models.load(tmp_path).net_config.heads == (2, 2, 2, 2)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    net = ours(reference("SD1.5"))
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="holds a model already"):
        save_diffusers(net, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    save_diffusers(net, tmp_path, overwrite=True)
    with pytest.raises(FileExistsError):
        save_ldm(net, tmp_path / "config.json")


def test_a_network_that_diffusers_cannot_express_is_refused_before_writing(tmp_path: Path) -> None:
    net = ControlNet.from_unet(unet("SD1.5", layers_per_block=(1, 3, 2, 1)))
    with pytest.raises(ValueError, match="needs equal resnets in all levels"):
        save_diffusers(net, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_tensors_are_not_copied_by_loading() -> None:
    tensors = reference("SD1.5").state_dict()
    net = ControlNet.load(tensors)
    assert all(t.data_ptr() == tensors[name].data_ptr() for name, t in net.state_dict().items())


def test_mixed_dtypes_become_the_one_that_holds_them() -> None:
    tensors = reference("SD1.5").half().state_dict()
    tensors["conv_in.bias"] = tensors["conv_in.bias"].float()
    assert {p.dtype for p in ControlNet.load(tensors).parameters()} == {torch.float32}


def broken(change: str) -> dict[str, torch.Tensor]:
    tensors = reference("SD1.5").state_dict()
    name = "mid_block.resnets.0.conv1.weight"
    match change:
        case "missing":
            del tensors[name], tensors["conv_in.bias"]
        case "unknown":
            tensors |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
        case "misshapen":
            tensors[name] = tensors[name][:, :3]
        case "flat":
            tensors["conv_in.weight"] = tensors["conv_in.weight"].flatten()
        case "nan" | "inf" | "-inf":
            tensors[name][0, 0, 0, 0] = float(change)
        case "whole numbers":
            tensors[name] = tensors[name].to(torch.int64)
        case "float8":
            tensors[name] = torch.full_like(tensors[name], torch.nan).to(torch.float8_e4m3fn)
        case "twice":
            tensors["input_blocks.0.0.bias"] = tensors["conv_in.bias"]
            tensors = {k: t for k, t in tensors.items() if not k.startswith("controlnet_cond")} | {
                "input_hint_block.0.weight": torch.zeros(16, 3, 3, 3)
            }
        case "some transformers":
            tensors = {k: t for k, t in tensors.items() if not k.startswith("down_blocks.0.attentions.1")}
        case "wide":
            tensors["conv_in.weight"] = torch.zeros(2**40, 0, 3, 3)
            tensors["down_blocks.0.resnets.0.conv1.weight"] = torch.zeros(2**40, 0, 3, 3)
        case "empty":
            tensors["conv_in.weight"] = torch.zeros(0, 4, 3, 3)
            tensors["down_blocks.0.resnets.0.conv1.weight"] = torch.zeros(0, 0, 3, 3)
    return tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", r"conv_in\.bias, mid_block\.resnets\.0\.conv1\.weight missing"),
        ("unknown", r"extra\.0, extra\.1, extra\.2 and 2 more unknown"),
        ("misshapen", r"tensor mid_block\.resnets\.0\.conv1\.weight is 96x3x3x3, expected 96x96x3x3"),
        ("flat", r"tensor conv_in\.weight has shape \[1152\], which is too few dimensions"),
        ("nan", r"tensor mid_block\.resnets\.0\.conv1\.weight holds values that are not finite"),
        ("inf", "not finite"),
        ("-inf", "not finite"),
        ("whole numbers", "is stored as int64, expected one of float64, float32, bfloat16, float16, float8"),
        ("float8", "not finite"),
        ("twice", "one tensor twice, under ldm's name and under diffusers'"),
        ("some transformers", "transformers behind some of its resnets only"),
        ("wide", "widths outside 1..65536"),
        ("empty", "widths outside 1..65536"),
    ],
)
def test_broken_files_are_refused_in_one_line_that_begins_with_the_file(
    change: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.pth"
    torch.save(broken(change), path)
    with pytest.raises(ValueError, match=words) as caught:
        models.load(path)
    assert str(caught.value).startswith(f"{str(path)!r}: ")
    assert "\n" not in str(caught.value)


def test_missing_tensors_of_an_ldm_file_have_ldms_names() -> None:
    tensors = LAYOUTS["ldm with prefix"](broken("missing"))
    with pytest.raises(ValueError, match=r"input_blocks\.0\.0\.bias, middle_block\.0\.in_layers\.2\.weight missing$"):
        ControlNet.load(tensors)


def test_large_finite_values_are_finite() -> None:
    tensors = reference("SD1.5").state_dict()
    tensors["conv_in.bias"][:] = 3e38  # whose sum overflows
    assert ControlNet.load(tensors).conv_in.bias is not None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"block_out_channels": [32, 64]}, r"states widths \[32, 64\], but the tensors have \[32, 64, 96, 96\]"),
        ({"block_out_channels": 32}, "states widths 32"),
        ({"attention_head_dim": [8, 8]}, "states heads for 2 levels, but the tensors have 4"),
        ({"attention_head_dim": "8"}, "attention_head_dim is '8', expected a whole number from 1"),
        ({"attention_head_dim": -8}, "attention_head_dim is -8"),
        ({"attention_head_dim": 7}, "width 32 is odd or not a multiple of 32 groups and of 7 heads"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "controlnet_conditioning_channel_order is 'bgr'"),
        ({"act_fn": {}}, "act_fn is {}"),
    ],
)
def test_configs_that_contradict_the_tensors_are_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ControlNet.load(reference("SD1.5").state_dict(), config)


def difference(net: ControlNetModel, base: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """ldm's tensors less those of the UNet that bear the same name."""
    own = base.state_dict()
    return to_ldm_keys({n: t - own[n] if n in own else t for n, t in net.state_dict().items()}) | {
        "difference": torch.ones(1)
    }


@pytest.mark.parametrize("prefix", ["", "control_model."])
@torch.no_grad()
def test_a_difference_is_the_network_once_the_unet_is_there(prefix: str, tmp_path: Path) -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    base.conv_in.weight.mul_(3)  # not what the network has there
    tensors = {(prefix if n != "difference" else "") + n: t for n, t in difference(theirs, base).items()}
    save_file(tensors, tmp_path / "diff.safetensors")
    net, whole = models.load(tmp_path / "diff.safetensors"), ours(theirs)
    step, hint = step_for(net), net.hint(random_image())
    with pytest.raises(ValueError, match="the weights of the UNet it was made from are missing"):
        net(step, hint)
    with pytest.raises(ValueError, match="the weights of the UNet it was made from are missing"):
        save_ldm(net, tmp_path / "whole.safetensors")
    net.bind(unet("SD1.5").to("meta"))  # only to see whether it fits
    net.bind(base)
    net.bind(base)  # once is enough
    for a, b in zip(all_of(net(step, hint)), all_of(whole(step, whole.hint(random_image()))), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)  # the sums round
    save_ldm(net, tmp_path / "whole.safetensors")
    assert "difference" not in load_file(tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match="added to another model's weights; load it once more"):
        net.bind(unet("SD1.5"))


@torch.no_grad()
def test_a_difference_reads_below_lora_and_leaves_the_file_alone() -> None:
    from peft import LoraConfig

    theirs, base = reference("SD1.5"), unet("SD1.5")
    tensors = difference(theirs, base)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    base.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1", "conv_in"], init_lora_weights=False))
    net = ControlNet.load(tensors)
    net.bind(base)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=0, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@torch.no_grad()
def test_float8_is_kept_and_computes_in_the_dtype_of_x(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = reference("SD1.5")
    stored = {name: t.to(dtype) if t.ndim > 1 else t.half() for name, t in theirs.state_dict().items()}
    save_file(stored, tmp_path / "small.safetensors")
    net = models.load(tmp_path / "small.safetensors")
    net.bind(unet("SD1.5"))
    assert {p.dtype for p in net.parameters()} == {dtype, torch.float16}
    theirs.load_state_dict({name: t.float() for name, t in stored.items()})
    step = step_for(net)
    for a, b in zip(all_of(net(step, net.hint(random_image()))), theirs_on(theirs, step, random_image()), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
    half = models.load(tmp_path / "small.safetensors", dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


@torch.no_grad()
def test_float8_that_is_not_finite_is_told_from_all_that_is() -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        every = torch.arange(256, dtype=torch.uint8).view(dtype)
        for value in every:
            assert is_tensor_finite(value.reshape(1)) == bool(value.float().isfinite())
        assert not is_tensor_finite(every)
        assert not is_tensor_finite(every[3:])  # at an odd place
        good = every[every.float().isfinite()]
        assert (
            is_tensor_finite(good)
            and is_tensor_finite(good[1:])
            and is_tensor_finite(good[:0])
            and is_tensor_finite(good.reshape(2, -1).T)
        )
        large = good.repeat(3000)
        large[-4000:-3999] = every[-1:]
        assert not is_tensor_finite(large)


@torch.no_grad()
def test_any_network_can_be_kept_in_float8(tmp_path: Path) -> None:
    save_ldm(ours(reference("SD1.5")), tmp_path / "net.safetensors")
    net = models.load(tmp_path / "net.safetensors", dtype=torch.float8_e4m3fn)
    whole = models.load(tmp_path / "net.safetensors")
    sizes = [sum(p.numel() * p.element_size() for p in some.parameters()) for some in (net, whole)]
    assert sizes[0] * 4 == sizes[1]
    step = step_for(net)
    a, b = (some(step, some.hint(random_image())).middle for some in (net, whole))
    assert (a - b).std() < 0.2 * b.std()  # three bits of mantissa


def test_a_shuffle_map_switches_pooling_on_where_nothing_is_stated() -> None:
    theirs = reference("SD1.5")
    unstated, stated = ControlNet.load(theirs.state_dict()), ours(theirs)  # diffusers' config says false
    assert unstated.global_average_pooling is None
    assert unstated.for_map_types(["shuffle"]).global_average_pooling is True
    assert unstated.for_map_types(["shuffle"]).conv_in is unstated.conv_in
    assert unstated.for_map_types(["edges"]) is unstated
    assert stated.for_map_types(["shuffle"]) is stated
    assert unstated.global_average_pooling is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.diffusion_model.out.2.weight", "a Stable Diffusion checkpoint"),
        ("unet.up_blocks.1.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("up_blocks.1.resnets.0.conv1.weight", "a UNet"),
        ("output_blocks.1.0.out_layers.0.weight", "a UNet"),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "a VAE"),
        ("text_model.final_layer_norm.weight", "a text encoder"),
        ("what.is.this", "something unknown, with tensors what.is.this"),
    ],
)
def test_other_files_are_called_what_they_are(name: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "controlnet.safetensors"
    save_file({name: torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=f"{path.name}' is not a control model but {words}"):
        models.load(path)


@pytest.mark.parametrize(
    "other", ["task_embedding", "lora_controlnet", "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"]
)
def test_other_kinds_with_the_same_hint_encoder_are_not_claimed(other: str) -> None:
    names = {"controlnet_cond_embedding.conv_in.weight", "controlnet_down_blocks.0.weight"}
    assert detect(names)
    assert not detect(names | {other})


def test_finding_models_loads_no_torch() -> None:
    code = "import sys, controlnet_ext.models; from controlnet_ext.models.state_dict import compatibility; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_two_kinds_that_claim_one_file_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greedy.py").write_text(
        "from .. import ModelKind\nKIND = ModelKind('greedy', lambda names: True, lambda tensors, config: None)\n"
    )
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    save_file(reference("SD1.5").state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"by two kinds of control model: .*controlnet and .*greedy"):
        models.load(tmp_path / "net.safetensors")


@pytest.mark.parametrize("name", ["", "missing.safetensors", "a/b/c", "owner/repository", "-/--", "x\0y"])
def test_what_is_nowhere_is_not_found(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist|in the Hugging Face cache"):
        models.load(name)


def test_a_repository_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    save_diffusers(ours(reference("SD1.5")), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert models.load("owner/name").net_config.heads == (8, 8, 8, 8)


def test_a_whole_pipeline_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is a whole pipeline; give the folder of the control model"):
        models.load(tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of a ControlNet in parts, as diffusers writes them, with its index."""
    folder = tmp_path / "parts"
    reference("SD1.5").save_pretrained(folder, max_shard_size="5MB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 2
    return folder


INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize("renamed", [INDEX, "diffusion_pytorch_model.safetensors.index.fp16.json", "x.index.json"])
@torch.no_grad()
def test_weights_in_parts_load_from_their_folder_and_from_their_index(parts: Path, renamed: str) -> None:
    (parts / INDEX).rename(parts / renamed)
    whole = ours(reference("SD1.5"))
    for given in (parts, parts / renamed):
        net = models.load(given)
        assert isinstance(net, ControlNet) and net.net_config.heads == (8, 8, 8, 8)  # of config.json
        for (name, a), (other, b) in zip(net.named_parameters(), whole.named_parameters(), strict=True):
            assert name == other and torch.equal(a, b)
    found = inspect(parts)
    assert (found.files, found.problem) == (len(list(parts.glob("*.safetensors"))), None)
    assert found.bytes == sum(part.stat().st_size for part in parts.glob("*.safetensors"))
    assert find_control_files(str(parts)).keys() == {
        "weights",
        "config.json",
        *(path.name for path in parts.glob("*-of-*")),
    }


def test_the_hash_of_weights_in_parts_covers_each_of_them(parts: Path) -> None:
    hashes = {hash_weights(parts / INDEX)}
    for path in sorted(parts.glob("*-of-*")):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        hashes.add(hash_weights(parts / INDEX))
    assert len(hashes) == 1 + len(list(parts.glob("*-of-*")))
    whole = sorted(parts.glob("*-of-*"))[0]
    assert hash_weights(whole) == hash_file(whole)


def test_pickled_weights_in_parts_load_too(tmp_path: Path) -> None:
    state = reference("SD1.5").state_dict()
    names = sorted(state)
    places = {name: f"pytorch_model-0000{1 + (i % 2)}-of-00002.bin" for i, name in enumerate(names)}
    for part in set(places.values()):
        torch.save({name: state[name] for name in names if places[name] == part}, tmp_path / part)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    net = models.load(tmp_path)
    assert all(torch.equal(own, state[name]) for name, own in net.state_dict().items())


def test_one_part_is_refused_with_the_name_of_the_index(parts: Path) -> None:
    part = sorted(parts.glob("*-of-*"))[1]
    with pytest.raises(ValueError, match=rf"is part 2 of \d+: give the index, '.*{re.escape(INDEX)}'"):
        models.load(part)
    (parts / INDEX).unlink()
    with pytest.raises(
        ValueError, match=r"is part 2 of \d+: give the index of all parts, \*\.index\.json, which is not"
    ):
        models.load(part)
    with pytest.raises(FileNotFoundError, match=r"holds weights in several parts without their index, \*\.index\.json"):
        models.load(parts)


def test_parts_that_do_not_belong_together_are_refused(parts: Path) -> None:
    first, second = sorted(parts.glob("*-of-*"))[:2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=rf"is not the index of '{first.name}': '.*' is in one of them only"):
        models.load(parts)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"names '{first.name}', which is not beside it"):
        models.load(parts)
    first.write_bytes(kept)
    index = json.loads((parts / INDEX).read_text())
    for weight_map, says in (
        ({"a": "../x"}, "names '../x', which is no file beside it"),
        ({"a": 5}, "names '5', which is not beside it"),
        ({}, "is no index of weights"),
        ([], "is no index of weights"),
        (None, "is no index of weights"),
    ):
        (parts / INDEX).write_text(json.dumps(index | {"weight_map": weight_map}))
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            models.load(parts / INDEX)


def test_several_models_in_parts_in_one_folder_are_refused(parts: Path) -> None:
    for name in ("a", "b"):
        (parts / f"{name}.index.json").write_bytes((parts / INDEX).read_bytes())
    (parts / INDEX).unlink()
    with pytest.raises(ValueError, match=r"holds several models; name one, such as 'a\.index\.json'"):
        models.load(parts)
    assert models.load(parts / "b.index.json").architecture == "controlnet"


def test_a_server_lists_weights_in_parts_once(parts: Path) -> None:
    catalog = ModelCatalog([str(parts.parent)], "other")
    assert [name.rpartition(" [")[0] for name in catalog.names] == ["diffusion_pytorch_model"]
    assert catalog.load(catalog.names[0], "cpu", torch.float32).architecture == "controlnet"


PREFIXES = ["module.", "_orig_mod.", "controlnet.module.", "model.", "model.controlnet._orig_mod.", "a.b.c.d.e.f.g.h."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", ["diffusers", "ldm", "lightning"])
@torch.no_grad()
def test_one_prefix_of_all_names_is_left_out_and_told(prefix: str, layout: str, tmp_path: Path, capsys: Any) -> None:
    state = reference("SD1.5").state_dict()
    if layout != "diffusers":
        save_ldm(ours(reference("SD1.5")), tmp_path / "ldm.safetensors")
        state = load_file(tmp_path / "ldm.safetensors")
    own = "control_model." if layout == "lightning" else ""
    tensors = {f"{prefix}{own}{name.removeprefix('control_model.')}": tensor for name, tensor in state.items()}
    save_file(tensors, path := tmp_path / "net.safetensors")
    net = models.load(path)
    for (name, a), (other, b) in zip(net.named_parameters(), ours(reference("SD1.5")).named_parameters(), strict=True):
        assert name == other and torch.equal(a, b)
    found = inspect(path)
    assert (found.prefix, found.problem, found.architecture) == (prefix, None, "controlnet")
    assert cli.main(["inspect", str(path)]) == 0
    assert f"prefix: {prefix} (of all names of tensors; left out)\n" in capsys.readouterr().out


def test_names_of_a_kind_as_they_stand_have_no_prefix(tmp_path: Path) -> None:
    save_ldm(ours(reference("SD1.5")), tmp_path / "net.safetensors")
    tensors = {
        f"control_model.{name.removeprefix('control_model.')}": t
        for name, t in load_file(tmp_path / "net.safetensors").items()
    }
    save_file(tensors, tmp_path / "net.safetensors")
    assert inspect(tmp_path / "net.safetensors").prefix is None


def test_a_prefix_of_only_some_names_is_not_left_out(tmp_path: Path) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in reference("SD1.5").state_dict().items()}
    save_file({**tensors, "other": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is not a control model but"):
        models.load(tmp_path / "net.safetensors")


def test_an_empty_folder_has_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no weights; expected diffusion_pytorch_model\.safetensors"):
        models.load(tmp_path)
