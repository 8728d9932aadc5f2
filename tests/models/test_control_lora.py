"""Control-LoRA: W + up·down on the UNet's own W, which is neither copied nor changed."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNetMotionModel,
)
from networks import all_of, ours, random_image, randomised, reference, step_for, theirs_on, unet
from safetensors.torch import save_file

from controlnet_ext import Unit, cli, guide, models
from controlnet_ext.models.kinds.control_lora import load
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.ldm_keys import to_ldm_keys

MARK = {"lora_controlnet": torch.tensor([])}


def parts(theirs: ControlNetModel, base: torch.nn.Module, rank: int = 3) -> tuple[dict, dict]:
    """A file as Stability's are written (ComfyUI's ControlLoraSave): factors for all matrices that the UNet has too,
    all else whole; and the tensors of the ControlNet that it stands for."""
    draw = torch.Generator().manual_seed(7)
    file, whole, shared = {}, {}, base.state_dict()
    for name, tensor in theirs.state_dict().items():
        if name not in shared or tensor.ndim < 2:
            file[name] = whole[name] = tensor
            continue
        inputs = list(tensor.shape[1:])
        stem = name.removesuffix(".weight")
        up = torch.randn(tensor.shape[0], rank, *[1] * (tensor.ndim - 2), generator=draw) * 0.1
        down = torch.randn(rank, *inputs, generator=draw) * 0.1
        file |= {f"{stem}.up": up, f"{stem}.down": down}
        whole[name] = shared[name] + (up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
    assert any(name.endswith(".up") for name in file)
    return file, whole


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() <= 1e-4 * b.std()


def live() -> int:
    """Bytes in all tensors that there are, but sparse ones, which other tests may have left."""
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [t for t in found if t.layout == torch.strided and not t.is_meta]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def written(file: dict[str, torch.Tensor], theirs: ControlNetModel) -> dict[str, torch.Tensor]:
    """Under ldm's names, which follow from those of the whole network."""
    table = dict(zip(theirs.state_dict(), to_ldm_keys(theirs.state_dict()), strict=True))
    names = {n.removesuffix(".weight"): ldm.removesuffix(".weight") for n, ldm in table.items() if n.endswith("weight")}
    found = {}
    for name, tensor in file.items():
        stem, _, part = name.rpartition(".")
        found[table.get(name) or f"{names[stem]}.{part}"] = tensor
    return found | MARK


@pytest.mark.parametrize("shape", ["SD1.5", "SD2.1", "SDXL"])
@torch.no_grad()
def test_residuals_equal_those_of_the_network_written_out(shape: str, tmp_path: Path) -> None:
    theirs, base = reference(shape), unet(shape)
    file, whole = parts(theirs, base)
    save_file(written(file, theirs), tmp_path / "a.safetensors")
    lora, net = models.load(tmp_path / "a.safetensors"), ControlNet.load(whole, theirs.config)
    assert (lora.architecture, lora.unet_signature) == ("control-lora", net.unet_signature)
    lora.bind(base)
    step = step_for(net)
    for a, b in zip(
        all_of(lora(step, lora.hint(random_image()))), all_of(net(step, net.hint(random_image()))), strict=True
    ):
        assert b.std() >= 0.1
        assert (a - b).abs().max() <= 1e-5 * b.std()  # the product is added as it is made


@torch.no_grad()
def test_residuals_equal_those_of_diffusers_loader_given_the_biases_that_it_leaves_out() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    file, _ = parts(theirs, base)
    hint = theirs.config.conditioning_embedding_out_channels
    net = ControlNetModel.from_unet(base, conditioning_embedding_out_channels=hint)
    net.load_lora_adapter(written(file, theirs), prefix=None)
    for name, module in net.named_modules():
        if hasattr(module, "base_layer") and f"{name}.bias" in file:
            module.base_layer.bias.copy_(file[f"{name}.bias"])  # benchmarks/control_lora_diffusers.py
    lora = load(file | MARK, {})
    lora.bind(base)
    step = step_for(lora)
    for a, b in zip(all_of(lora(step, lora.hint(random_image()))), theirs_on(net, step, random_image()), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.std()


@torch.no_grad()
def test_it_holds_what_the_file_holds_and_the_unet_stays() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in base.state_dict().items()}
    file, _ = parts(theirs, base)
    lora = load(file | MARK, {})
    held = live()
    lora.bind(base)
    assert live() == held
    size = sum(tensor.numel() for tensor in file.values())
    assert sum(p.numel() for p in lora.parameters()) == size < 0.5 * sum(p.numel() for p in theirs.parameters())
    step = step_for(lora)
    hint, held = lora.hint(random_image()), live()
    lora(step, hint)
    assert live() == held  # no layer's weights were kept
    lora.to("cpu", torch.float64)
    assert all(t.dtype == torch.float32 and t.data_ptr() == before[n][1] for n, t in base.state_dict().items())
    assert all(torch.equal(t, before[n][0]) for n, t in base.state_dict().items())


@torch.no_grad()
def test_it_reads_below_lora() -> None:
    from peft import LoraConfig

    theirs, base = reference("SD1.5"), unet("SD1.5")
    file, whole = parts(theirs, base)
    base.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1", "conv_in"], init_lora_weights=False))
    lora, net = load(file | MARK, {}), ControlNet.load(whole, theirs.config)
    lora.bind(base)
    step = step_for(net)
    close(lora(step, lora.hint(random_image())).middle, net(step, net.hint(random_image())).middle)
    base.fuse_lora()
    with pytest.raises(ValueError, match="a LoRA is fused"):
        lora.bind(base)


@torch.no_grad()
def test_a_video_unet_lends_its_spatial_weights() -> None:
    theirs, base = reference("SD1.5", attention_head_dim=4), unet("SD1.5", attention_head_dim=4)
    adapter = MotionAdapter(block_out_channels=(32, 64, 96, 96), motion_num_attention_heads=4, motion_max_seq_length=4)
    file, whole = parts(theirs, base)
    lora, net = load(file | MARK, {}), ControlNet.load(whole, theirs.config)
    lora.bind(UNetMotionModel.from_unet2d(base, adapter))
    with pytest.raises(ValueError, match="settled on is gone"):
        lora(step_for(net), lora.hint(random_image()))
    video = UNetMotionModel.from_unet2d(base, adapter)
    lora.bind(video)
    step = replace(step_for(net, rows=4), frames=2)
    close(lora(step, lora.hint(random_image())).middle, net(step, net.hint(random_image())).middle)


def test_a_unet_without_weights_tells_what_fits() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    lora = load(parts(theirs, base)[0] | MARK, {})
    lora.bind(unet("SD1.5").to("meta"))
    with pytest.raises(ValueError, match="but the model"):
        lora.bind(unet("SD2.1").to("meta"))
    lora.bind(base)
    offloaded = unet("SD1.5").to("meta")
    offloaded.conv_in._hf_hook = object()  # as accelerate's sequential offloading leaves it
    with pytest.raises(ValueError, match="weights are offloaded"):
        lora.bind(offloaded)


@torch.no_grad()
def test_another_unet_is_another_network() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    file, _ = parts(theirs, base)
    lora = load(file | MARK, {})
    step = step_for(lora)
    results = []
    for model in (base, randomised(unet("SD1.5"), seed=9), base):
        lora.bind(model)
        results.append(lora(step, lora.hint(random_image())).middle)
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])


@torch.no_grad()
def test_an_inpainting_unet_lends_the_channels_of_its_latents() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5", in_channels=9)
    plain = {name: t[:, :4] if name == "conv_in.weight" else t for name, t in base.state_dict().items()}

    class Plain:
        def state_dict(self) -> dict[str, torch.Tensor]:
            return plain

    file, whole = parts(theirs, Plain())
    lora, net = load(file | MARK, {}), ControlNet.load(whole, theirs.config)
    lora.bind(base)
    step = step_for(net)
    nine = replace(step, x=torch.cat([step.x, step.x, step.x[:, :1]], dim=1))
    close(lora(nine, lora.hint(random_image())).middle, net(step, net.hint(random_image())).middle)


def test_a_half_precision_lora_computes_in_half_precision() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    lora = load({n: t.bfloat16() for n, t in parts(theirs, base)[0].items()} | MARK, {})
    lora.bind(base)
    step = step_for(lora)
    with torch.no_grad():
        assert lora(step, lora.hint(random_image())).middle.dtype == torch.float32
    assert lora._get_net().dtype == torch.bfloat16


def test_a_guided_pipeline_equals_diffusers_with_the_network_written_out() -> None:
    import tiny

    control, base = tiny.control(), tiny.unet()
    file, whole = parts(control, base)
    control.load_state_dict(whole)
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=base)
    theirs = tiny.pipeline(StableDiffusionControlNetPipeline, unet=base, controlnet=control)
    given = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent"}
    expected = theirs("a b", image=tiny.random_image(1), generator=torch.Generator().manual_seed(0), **given).images
    with guide(pipe, [Unit(load(file | MARK, {}), tiny.random_image(1))]):
        found = pipe("a b", generator=torch.Generator().manual_seed(0), **given).images
    close(found, expected)


def test_shuffle_maps_are_pooled() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    lora = load(parts(theirs, base)[0] | MARK, {})
    lora.bind(base)
    step = step_for(lora)
    with torch.no_grad():
        shapes = [
            some(step, some.hint(random_image())).skips[0].shape[2:] for some in (lora, lora.for_map_types(["shuffle"]))
        ]
    assert shapes == [(8, 8), (1, 1)]
    assert lora.global_average_pooling is None


def test_what_it_is_and_needs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, base = reference("SDXL"), unet("SDXL")
    save_file(written(parts(theirs, base)[0], theirs), tmp_path / "a.safetensors")
    assert cli.main(["inspect", "--json", str(tmp_path / "a.safetensors")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["architecture"], found["layout"], found["details"]["rank"]) == ("control-lora", "ldm", 3)
    lora = models.load(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"bind\(unet\) comes first"):
        lora.hint(random_image())
    with pytest.raises(ValueError, match="but the model"):
        lora.bind(unet("SD1.5"))
    assert cli.main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b"), "--to", "diffusers"]) == 2
    assert "a control-lora file, which can be of ldm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv_in.up": None}, r"tensor conv_in\.down has no counterpart"),
        ({"conv_in.up": torch.zeros(32, 5)}, r"conv_in\.up \[32, 5\] and \.down \[3, 4, 3, 3\] are no factors"),
        ({"conv_in.up": torch.zeros(30, 3)}, r"tensors conv_in\.up and \.down make \[30, 36\] of \[32, 4, 3, 3\]"),
        ({"conv_in.down": torch.full((3, 4, 3, 3), torch.nan)}, "not finite"),
        ({"conv_in.bias": torch.zeros(7)}, r"tensor conv_in\.bias is \[7\], expected \[32\]"),
        ({"controlnet_cond_embedding.conv_out.bias": None}, r"controlnet_cond_embedding\.conv_out\.bias missing"),
        ({"controlnet_mid_block.weight": None}, "tensors of the first layer or of the zero convolutions are missing"),
        ({"extra.weight": torch.zeros(1)}, r"extra\.weight unknown"),
    ],
)
def test_broken_files_are_refused(change: dict[str, torch.Tensor | None], words: str) -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    file = {n: t for n, t in ({**parts(theirs, base)[0], **change} | MARK).items() if t is not None}
    with pytest.raises(ValueError, match=words):
        load(file, {}).bind(base)


def test_the_unet_may_be_gone() -> None:
    theirs, base = reference("SD1.5"), unet("SD1.5")
    lora = load(parts(theirs, base)[0] | MARK, {})
    lora.bind(base)
    step = step_for(lora)
    del base
    gc.collect()
    with torch.no_grad(), pytest.raises(ValueError, match="settled on is gone"):
        lora(step, lora.hint(random_image()))
    assert ours(theirs) is not None
