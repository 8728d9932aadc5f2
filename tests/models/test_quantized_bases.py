"""Base models whose weights are quantized: plain networks act as in diffusers; kinds that read the base's weights read
what its layers compute with, or refuse before anything is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import fakes
import numpy as np
import pytest
import test_control_lora
import test_lllite
import test_transformer_controls as transformers
import tiny
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.hooks import apply_layerwise_casting
from peft import LoraConfig
from torch import nn

from controlnet_ext import Unit, guide
from controlnet_ext.models.base_unet import get_encoder_tensors
from controlnet_ext.models.kinds import control_lora, lllite
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.kinds.transformer import TransformerControlNet


class RoundedTensor(torch.Tensor):
    """What a library's tensor is to others: of a class of its own, with `dequantize`; numbers in eighths."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> RoundedTensor:
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        made.eighths = (values * 8).round().to(torch.int8)
        return made

    def dequantize(self) -> torch.Tensor:
        return self.eighths.float() / 8

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        plain = torch.utils._pytree.tree_map(
            lambda v: v.dequantize() if isinstance(v, cls) else v, (args, kwargs or {})
        )
        return func(*plain[0], **plain[1])


def replace_linears(unet: Any, make: Callable[[nn.Linear], nn.Module]) -> None:
    for module in list(unet.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child))


def quantize_by_stand_in(unet: Any) -> None:
    for module in unet.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(RoundedTensor(module.weight.detach()), requires_grad=False)


def quantize_by_torch(unet: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favor of torchao
        torch.ao.quantization.quantize_dynamic(unet, {nn.Linear}, inplace=True)


def quantize_by_quanto(unet: Any, bits: str = "qint8", is_frozen: bool = True) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    quanto.quantize(unet, weights=getattr(quanto, bits))
    if is_frozen:
        quanto.freeze(unet)


def quantize_by_torchao(unet: Any) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torchao.quantize_(unet, torchao.Int8WeightOnlyConfig())


def quantize_by_bitsandbytes(unet: Any, is_4bit: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def make(linear: nn.Linear) -> nn.Module:
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        if is_4bit:
            made = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
            made.weight = bnb.nn.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
        else:
            made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            made.weight = bnb.nn.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
        made.bias = linear.bias
        return made.to("cpu")

    replace_linears(unet, make)


def quantize_by_gguf(unet: Any) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0

    def make(linear: nn.Linear) -> nn.Module:
        made = GGUFLinear(linear.in_features, linear.out_features, linear.bias is not None, torch.float32)
        packed = torch.from_numpy(gguf.quants.quantize(linear.weight.detach().numpy(), kind))
        made.weight, made.bias = GGUFParameter(packed, quant_type=kind), linear.bias
        return made

    replace_linears(unet, make)


def store_as_float8(unet: Any) -> None:
    apply_layerwise_casting(unet, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=("norm",))


WAYS: dict[str, Callable[[Any], None]] = {
    "a stand-in": quantize_by_stand_in,
    "torch": quantize_by_torch,
    "float8 casting": store_as_float8,
    "quanto int8": quantize_by_quanto,
    "quanto int4": lambda unet: quantize_by_quanto(unet, "qint4"),
    "quanto float8": lambda unet: quantize_by_quanto(unet, "qfloat8"),
    "quanto, not frozen": lambda unet: quantize_by_quanto(unet, is_frozen=False),
    "torchao": quantize_by_torchao,
    "gguf": quantize_by_gguf,
    "bitsandbytes nf4": lambda unet: quantize_by_bitsandbytes(unet, True),
    "bitsandbytes int8": lambda unet: quantize_by_bitsandbytes(unet, False),
}


def quantized(way: str) -> Any:
    unet = tiny.unet()
    WAYS[way](unet)
    return unet


@torch.no_grad()
def effective_tensors(unet: Any) -> dict[str, torch.Tensor]:
    """The weights with which the layers of the encoder compute: for linear layers, what they make of unit vectors."""
    plain, found = tiny.unet(), {}
    for name, layer in plain.named_modules():
        own = unet.get_submodule(name)
        if isinstance(layer, nn.Linear):
            bias = own(torch.zeros(1, layer.in_features))
            found[f"{name}.weight"] = (own(torch.eye(layer.in_features)) - bias).T
            if layer.bias is not None:
                found[f"{name}.bias"] = bias[0]
        elif layer._parameters:
            for part, tensor in own._parameters.items():
                if tensor is not None:
                    found[f"{name}.{part}"] = (
                        tensor.dequantize() if "Weight" in type(tensor).__name__ else tensor.float()
                    )
            if hasattr(own, "qweight") and own.qweight is not None:
                found[f"{name}.weight"] = own.qweight.dequantize()
    return found


def make_difference(theirs: Any) -> dict[str, torch.Tensor]:
    own = tiny.unet().state_dict()
    tensors = {name: t - own[name] if name in own else t for name, t in theirs.state_dict().items()}
    return tensors | {"difference": torch.ones(1)}


def draw(unet: Any, units: list[Unit]) -> torch.Tensor:
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=unet)
    with guide(pipe, units):
        return fakes.run(pipe, steps=1)


def draw_by_diffusers(unet: Any, net: Any) -> torch.Tensor:
    pipe = tiny.pipeline(StableDiffusionControlNetPipeline, unet=unet, controlnet=net)
    return fakes.run(pipe, steps=1, image=tiny.random_image(), height=tiny.SIZE, width=tiny.SIZE)


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_network_acts_as_in_diffusers(way: str) -> None:
    theirs, unet = tiny.control(), quantized(way)
    net = ControlNet.load(theirs.state_dict(), theirs.config)
    assert torch.equal(draw(unet, [Unit(net, tiny.random_image())]), draw_by_diffusers(unet, theirs))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "torch"])  # which replaces layers of one class only
def test_a_network_that_is_quantized_itself_acts_as_diffusers(way: str) -> None:
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict(), theirs.config)
    for each in (theirs, net):
        WAYS[way](each)
    assert torch.equal(draw(tiny.unet(), [Unit(net, tiny.random_image())]), draw_by_diffusers(tiny.unet(), theirs))


@pytest.mark.parametrize("way", WAYS)
def test_kinds_that_read_the_base_read_what_its_layers_compute_with(way: str) -> None:
    """To a thousandth of the control's effect; two also round what their layers read, unit vectors too."""
    theirs, unet = tiny.control(), quantized(way)
    tensors = effective_tensors(unet)
    plain = draw(unet, [])
    for kind in ("difference", "control-lora"):
        whole = theirs.state_dict()
        if kind == "difference":
            file = make_difference(theirs)
            net: Any = ControlNet.load(file, theirs.config)
            whole |= {name: file[name] + tensors[name] for name in whole if name in tensors}
        else:
            file, _ = test_control_lora.parts(theirs, tiny.unet())
            net = control_lora.load(test_control_lora.written(file, theirs), dict(theirs.config))
            for stem in (name.removesuffix(".up") for name in file if name.endswith(".up")):
                base = tensors[f"{stem}.weight"]
                product = file[f"{stem}.up"].flatten(1) @ file[f"{stem}.down"].flatten(1)
                whole[f"{stem}.weight"] = base + product.reshape(base.shape)
        reference = tiny.control()
        reference.load_state_dict(whole)
        expected = draw_by_diffusers(unet, reference)
        found = draw(unet, [Unit(net, tiny.random_image())])
        tolerance = 0.05 if way in ("torch", "bitsandbytes int8") else 1e-3
        assert (found - expected).abs().max() < tolerance * (expected - plain).abs().max(), kind
    copied = ControlNet.from_unet(unet, dtype=torch.float32).state_dict()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.allclose(copied[name], tensors[name], rtol=0, atol=0.02)
    assert all(copied[n].dtype == torch.float32 for n in copied)


@pytest.mark.parametrize("way", ["a stand-in", "torch", "quanto int8", "torchao", "bitsandbytes nf4"])
def test_a_lllite_acts_in_front_of_quantized_layers(way: str) -> None:
    pipe = tiny.pipeline(StableDiffusionXLPipeline, "SDXL", unet=tiny.unet("SDXL"))
    WAYS[way](pipe.unet)
    tensors, plain = test_lllite.weights(), fakes.run(pipe, steps=1)
    with torch.no_grad(), test_lllite.by_hand(pipe, tensors, np.asarray(tiny.random_image()), 1.0):
        expected = fakes.run(pipe, steps=1)
    with guide(pipe, [Unit(lllite.load(tensors, {}), tiny.random_image())]):
        found = fakes.run(pipe, steps=1)
    # torch's rounds what its layers read, which may fall to the other side
    assert (found - expected).abs().max() < (0.1 if way == "torch" else 1e-3) * (expected - plain).abs().max()


@pytest.mark.parametrize("way", ["a stand-in", "float8 casting", "torchao"])
def test_weights_below_a_lora_on_a_quantized_base_are_the_bases(way: str) -> None:
    unet = quantized(way)
    without = get_encoder_tensors(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))
    below = get_encoder_tensors(unet)
    assert below.keys() == without.keys() and all(torch.equal(below[n].float(), without[n].float()) for n in below)


def test_a_copy_to_train_of_a_float8_base_is_float32() -> None:
    copied = ControlNet.from_unet(quantized("float8 casting"))
    assert {p.dtype for p in copied.parameters()} == {torch.float32}


class PackedLinear(nn.Linear):
    """A layer of a library that nobody knows: whole numbers and a factor."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.bias = linear.bias
        self.factor = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.factor).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.factor, self.bias)


class ScaledLinear(PackedLinear):
    """The same in float8, whose numbers mean something else without their scale."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.scale = self.factor
        self.weight = nn.Parameter(self.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize("layer", [PackedLinear, ScaledLinear])
def test_a_base_whose_weights_cannot_be_read_is_refused_by_kinds_that_read_them(layer: Any) -> None:
    theirs, unet = tiny.control(), tiny.unet()
    replace_linears(unet, layer)
    plain_net = ControlNet.load(theirs.state_dict(), theirs.config)
    assert torch.equal(draw(unet, [Unit(plain_net, tiny.random_image())]), draw_by_diffusers(unet, theirs))
    file = test_control_lora.written(test_control_lora.parts(theirs, tiny.unet())[0], theirs)
    nets = [
        ControlNet.load(make_difference(theirs), theirs.config),
        control_lora.load(file, dict(theirs.config)),
    ]
    said = f"the UNet is quantized .*{layer.__name__}.*: load the base model without quantization"
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=unet)
    for net in nets:
        with pytest.raises(ValueError, match=f"^unit 1: {said}"), guide(pipe, [Unit(net, tiny.random_image())]):
            raise AssertionError("entered")
    with pytest.raises(ValueError, match=said):
        ControlNet.from_unet(unet)
    with guide(tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet()), [Unit(nets[0], tiny.random_image())]):
        pass  # it has not been changed, and is added to another base


def test_a_base_that_names_an_unknown_library_is_refused() -> None:
    unet = tiny.unet()
    unet.register_to_config(quantization_config={"quant_method": "sdnq"})
    with pytest.raises(ValueError, match="the UNet is quantized by sdnq, and its weights cannot be read"):
        get_encoder_tensors(unet)


def test_weights_offloaded_to_disk_are_refused(tmp_path: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    unet = tiny.unet()
    apply_group_offloading(
        unet, torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path), use_stream=False
    )
    with pytest.raises(ValueError, match="are offloaded to disk"):
        get_encoder_tensors(unet)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_an_sd3_network_takes_the_patches_of_a_quantized_base(is_quantized: bool) -> None:
    """SD3.5's large networks have none of their own."""
    base, net = (
        transformers.BASES["sd3"](**transformers.SHAPES["sd3"]),
        transformers.control("sd3", use_pos_embed=False),
    )
    own = base.pos_embed.proj
    expected = (own.weight.detach() * 8).round() / 8 if is_quantized else own.weight.detach()
    if is_quantized:
        own.weight = nn.Parameter(RoundedTensor(own.weight.detach()), requires_grad=False)
    assert net.pos_embed is None
    TransformerControlNet(net, "sd3").bind(base)
    assert torch.equal(net.pos_embed.proj.weight, expected)
    assert torch.equal(net.pos_embed.pos_embed, base.pos_embed.pos_embed)
