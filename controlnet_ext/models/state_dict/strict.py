"""Tensors of a file into a network: every one of them, of the right shape and finite, or one line that says what is
wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

# Stored, never computed in; with the bits that are all set in what is not finite (NaN; or an exponent of ones)
FLOAT8_DTYPES = {torch.float8_e4m3fn: 0b0111_1111, torch.float8_e5m2: 0b0111_1100}
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, *FLOAT8_DTYPES)


def load_strict(net: nn.Module, tensors: Mapping[str, Tensor], stored_names: Mapping[str, str] | None = None) -> None:
    """Make `tensors` the weights of `net` without copying them; where their dtypes differ, all become the one that
    holds them all, but float8 stays as it is. ValueError when one is missing, unknown, of another shape, not of a
    floating-point dtype, or not finite. `names` are what the file calls them, where that differs."""
    own_tensors, names = net.state_dict(), stored_names or {}
    missing = [names.get(name, name) for name in own_tensors if name not in tensors]
    check_names(missing, [names.get(name, name) for name in tensors if name not in own_tensors])
    for name, tensor in tensors.items():
        own = names.get(name, name)
        if tensor.shape != own_tensors[name].shape:
            raise ValueError(f"tensor {own} is {_format_shape(tensor)}, expected {_format_shape(own_tensors[name])}")
        check_values(own, tensor)
    wide = {name: tensor for name, tensor in tensors.items() if tensor.dtype not in FLOAT8_DTYPES}
    if wide:
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in wide.values()))
        wide = {name: tensor.to(dtype) for name, tensor in wide.items()}
    net.load_state_dict({**tensors, **wide}, assign=True)


def check_names(missing: Sequence[str], unknown: Sequence[str]) -> None:
    """ValueError that lists tensors which a file lacks, or has and should not."""
    if missing or unknown:
        parts = [f"{_format_names(some)} {what}" for some, what in ((missing, "missing"), (unknown, "unknown")) if some]
        raise ValueError("the tensors are not those of the network they look like: " + ", ".join(parts))


def check_values(name: str, tensor: Tensor) -> None:
    """Check a tensor of any shape. ValueError, with its name, unless it holds floating-point numbers, all of them
    finite."""
    if tensor.dtype not in FLOAT_DTYPES:
        expected = ", ".join(map(_dtype_name, FLOAT_DTYPES))
        raise ValueError(f"tensor {name} is stored as {_dtype_name(tensor.dtype)}, expected one of {expected}")
    if not tensor.is_meta and not is_tensor_finite(tensor):
        raise ValueError(f"tensor {name} holds values that are not finite")


def is_tensor_finite(tensor: Tensor) -> bool:
    """Return True if all values of a tensor, of any shape, are finite. A sum tells in one pass without a mask in
    memory; only a sum that overflows is looked at again."""
    bits = FLOAT8_DTYPES.get(tensor.dtype)
    if bits is not None:
        return _is_finite_float8(tensor.cpu().flatten().view(torch.uint8).numpy(), bits)
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _is_finite_float8(values: np.ndarray, bits: int) -> bool:
    """Return True if no byte has all of these bits, which lie next to each other below the sign: such a byte is among
    the largest of its sign. A MiB at a time, which stays in the processor's cache for the second look."""
    parts = (values[start : start + 2**20] for start in range(0, len(values), 2**20))
    return not any(part.view(np.int8).max() >= bits or part.max() >= 0x80 + bits for part in parts)


def _format_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _format_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
