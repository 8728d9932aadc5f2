"""Reading a diffusers UNet for a ControlNet: weights below LoRAs, other wrappers and quantization, and settings that
weights do not show."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .state_dict.strict import FLOAT8_DTYPES

if TYPE_CHECKING:
    from ..guidance.contract import UNet

ENCODER_PREFIXES = ("conv_in.", "time_embedding.", "add_embedding.", "class_embedding.", "down_blocks.", "mid_block.")
# Where modules that wrap others keep them: peft; diffusers' SplitInferenceModule; torch.compile
WRAPPED_NAMES = ("base_layer", "module", "_orig_mod")
# Whose weights can be read (diffusers 0.42, quantizers/quantization_config.py): they have a function for it
READABLE_QUANTIZATIONS = ("bitsandbytes", "gguf", "quanto", "torchao")
UNQUANTIZED_ADVICE = "this control model needs them: load the base model without quantization"


def get_encoder_tensors(unet: UNet) -> dict[str, Tensor]:
    """Return the UNet's own tensors up to its middle block, as floating-point numbers where they are quantized.

    LoRA layers (peft keeps the weights below them as `base_layer`), motion modules and attention processors are left
    out. Raises ValueError if a LoRA is fused into the weights, they are offloaded or quantized by a library that does
    not give them back, or there is no middle block.
    """
    return {name: read_tensor(layer, part) for name, layer, part in _iter_encoder_parts(unet)}


def get_encoder_shapes(unet: UNet) -> dict[str, Tensor]:
    """Return the tensors of `get_encoder_tensors` without values, on the meta device. Raises ValueError like it."""
    return {name: _make_shape(layer, part) for name, layer, part in _iter_encoder_parts(unet)}


def _iter_encoder_parts(unet: UNet) -> Iterator[tuple[str, Any, str]]:
    """Yield (name of a tensor, layer, name of the tensor in the layer)."""
    unet = getattr(unet, "_orig_mod", unet)  # below torch.compile(unet), which puts this into all names
    if unet.mid_block is None:
        raise ValueError("the UNet has no middle block, which a ControlNet is a copy of too")
    for name, layer, part in _iter_parts(unet):
        if name.startswith(ENCODER_PREFIXES) and ".motion_modules." not in name and ".processor." not in name:
            yield name, layer, part


def _iter_parts(unet: UNet) -> Iterator[tuple[str, Any, str]]:
    if not isinstance(unet, nn.Module):  # a view of one, whose tensors have other names in it
        for name, tensor in unet.state_dict().items():
            part = name.rpartition(".")[2]
            yield name, SimpleNamespace(**{part: tensor}), part
        return
    _check_readable(unet)
    modules = dict(unet.named_modules())
    wrappers = tuple(f"{name}." for name, module in modules.items() if hasattr(module, "base_layer"))
    for path, module in modules.items():
        is_added = f"{path}.".startswith(wrappers) and ".base_layer" not in path and not hasattr(module, "base_layer")
        if is_added or hasattr(module, "base_layer"):
            continue
        name = strip_wrappers(path)
        parts = [part for part, tensor in module.named_parameters(recurse=False) if tensor is not None]
        calls = {
            part: getattr(module, part, None) for part in ("weight", "bias")
        }  # methods of torch's quantized layers
        parts += [part for part, call in calls.items() if inspect.ismethod(call) and call() is not None]
        for part in parts:
            yield f"{name}.{part}" if name else part, module, part


def _check_readable(unet: nn.Module) -> None:
    """Raise ValueError if the weights of a UNet are not there or cannot be read as they act."""
    config: Any = getattr(unet, "config", {}).get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    method = getattr(method, "value", method)
    if method is not None and method not in READABLE_QUANTIZATIONS:
        raise ValueError(f"the UNet is quantized by {method}, and its weights cannot be read; {UNQUANTIZED_ADVICE}")
    for module in unet.modules():
        if getattr(module, "merged", False) and hasattr(module, "base_layer"):
            raise ValueError("a LoRA is fused into the UNet's weights; unfuse it first (pipe.unfuse_lora())")
        registry: Any = getattr(module, "_diffusers_hook", None)
        hook = None if registry is None else registry.get_hook("group_offloading")
        if getattr(getattr(hook, "group", None), "offload_to_disk_path", None) is not None:
            raise ValueError(
                "the UNet's weights are offloaded to disk, and this control model needs them; offload to the CPU"
            )


def read_tensor(layer: Any, part: str) -> Tensor:
    """Return the weight of a layer, such as `(out, in)`, or its bias `(out,)`, as floating-point numbers.

    Where it is quantized, the library that did it gives them back. Raises ValueError where they are offloaded, or
    cannot be read.
    """
    tensor = getattr(layer, part)
    if isinstance(tensor, Tensor) and tensor.is_meta:
        raise ValueError("the UNet's weights are offloaded; copy it before sequential offloading is switched on")
    if part == "weight" and getattr(layer, "qweight", None) is not None:  # quanto's; frozen, or made in each call
        tensor = layer.qweight
    if not isinstance(tensor, Tensor) and callable(tensor):  # torch's own quantization
        tensor = tensor()
    if tensor is None:
        raise ValueError(f"a layer of the UNet has no {part}")
    if type(tensor) not in (Tensor, nn.Parameter):
        tensor = _dequantize(layer, tensor)
    elif tensor.is_quantized:
        tensor = tensor.dequantize()
    is_scaled = tensor.dtype in FLOAT8_DTYPES and hasattr(layer, "scale")
    if not tensor.is_floating_point() or is_scaled:
        kind = f"{type(layer).__module__.partition('.')[0]}'s {type(layer).__name__}"
        raise ValueError(f"the UNet is quantized ({kind}), and its weights cannot be read; {UNQUANTIZED_ADVICE}")
    readable: Tensor = tensor
    return readable


def _dequantize(layer: Any, tensor: Tensor) -> Tensor:
    """Return a tensor of a class of its own as plain numbers; the tensor itself where nothing is known of it."""
    if type(tensor).__name__ == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        plain: Tensor = dequantize_gguf_tensor(tensor)  # type: ignore[no-untyped-call]
        return plain
    if type(tensor).__name__ in ("Params4bit", "Int8Params"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        weight: Tensor = dequantize_bnb_weight(cast(nn.Parameter, tensor), getattr(layer, "state", None))
        return weight
    return tensor if type(tensor).dequantize is Tensor.dequantize else tensor.dequantize()


def _make_shape(layer: Any, part: str) -> Tensor:
    tensor = getattr(layer, part)
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return torch.empty_like(tensor if is_plain and not tensor.is_meta else read_tensor(layer, part), device="meta")


def strip_wrappers(name: str) -> str:
    """Return the name of a module or tensor without the names in which wrappers keep what they wrap."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED_NAMES)


def unwrap(module: Any) -> Any:
    """Return what a module wraps, below any LoRA, split inference or torch.compile, or the module itself."""
    while isinstance(module, nn.Module):
        inner = next((m for name, m in module.named_children() if name in WRAPPED_NAMES), None)
        if inner is None:
            break
        module = inner
    return module


def get_layer(unet: UNet, name: str) -> Any:
    """Return the layer of this name, below any LoRA and other wrappers. Raises AttributeError if there is none."""
    if not isinstance(unet, nn.Module):
        return unwrap(unet.get_submodule(name))
    module: Any = unet
    for part in name.split("."):
        module = unwrap(getattr(unwrap(module), part))
    return module


def is_empty(unet: UNet) -> bool:
    """Return True if the UNet has no weights at all: on the meta device, and not offloaded by accelerate."""
    first = get_layer(unet, "conv_in")
    return bool(first.weight.is_meta) and not hasattr(first, "_hf_hook")


def get_heads(unet: UNet) -> tuple[int, ...]:
    """Return the attention heads of each level, the middle block's in place of the last; 1 without attention."""
    levels = [_get_block_heads(block) for block in unet.down_blocks]
    levels[-1] = _get_block_heads(unet.mid_block) or levels[-1]
    return tuple(n or 1 for n in levels)


def get_unet_config(unet: UNet) -> dict[str, Any]:
    """Return the UNet's config, with its heads under the name that diffusers gives their number."""
    return {**unet.config, "num_attention_heads": None, "attention_head_dim": get_heads(unet)}


def _get_block_heads(block: object) -> int | None:
    transformers = map(unwrap, getattr(block, "attentions", None) or ())
    return next((unwrap(b).attn1.heads for t in transformers for b in getattr(t, "transformer_blocks", ())), None)
