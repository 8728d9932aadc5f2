"""Tensors of a file into a network: every one of them, of the right shape and finite, or one line that says what is
wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

# Stored, never computed in; with the bits that are all set in what is not finite (NaN; or an exponent of ones)
SMALL = {torch.float8_e4m3fn: 0b0111_1111, torch.float8_e5m2: 0b0111_1100}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, *SMALL)


def fill(net: nn.Module, tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> None:
    """Make `tensors` the weights of `net` without copying them; where their dtypes differ, all become the one that
    holds them all, but float8 stays as it is. ValueError when one is missing, unknown, of another shape, not of a
    floating-point dtype, or not finite. `names` are what the file calls them, where that differs."""
    wanted, called = net.state_dict(), names or {}
    missing = [called.get(name, name) for name in wanted if name not in tensors]
    check_names(missing, [called.get(name, name) for name in tensors if name not in wanted])
    for name, tensor in tensors.items():
        own = called.get(name, name)
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"tensor {own} is {_size(tensor)}, expected {_size(wanted[name])}")
        check_values(own, tensor)
    wide = {name: tensor for name, tensor in tensors.items() if tensor.dtype not in SMALL}
    if wide:
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in wide.values()))
        wide = {name: tensor.to(dtype) for name, tensor in wide.items()}
    net.load_state_dict({**tensors, **wide}, assign=True)


def check_names(missing: Sequence[str], unknown: Sequence[str]) -> None:
    """ValueError that lists tensors which a file lacks, or has and should not."""
    if missing or unknown:
        parts = [f"{_some(some)} {what}" for some, what in ((missing, "missing"), (unknown, "unknown")) if some]
        raise ValueError("the tensors are not those of the network they look like: " + ", ".join(parts))


def check_values(name: str, tensor: Tensor) -> None:
    """ValueError unless the tensor of this name is of floating-point numbers, all of them finite."""
    if tensor.dtype not in FLOATS:
        expected = ", ".join(map(_word, FLOATS))
        raise ValueError(f"tensor {name} is stored as {_word(tensor.dtype)}, expected one of {expected}")
    if not tensor.is_meta and not finite(tensor):
        raise ValueError(f"tensor {name} holds values that are not finite")


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite. A sum tells in one pass without a mask in memory; only a sum that overflows is
    looked at again."""
    bits = SMALL.get(tensor.dtype)
    if bits is not None:
        return _finite_bytes(tensor.cpu().flatten().view(torch.uint8).numpy(), bits)
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _finite_bytes(values: np.ndarray, bits: int) -> bool:
    """Whether no byte has all of these bits, which lie next to each other below the sign: then it is among the largest
    of its sign. A MiB at a time, which stays in the processor's cache for the second look."""
    parts = (values[start : start + 2**20] for start in range(0, len(values), 2**20))
    return not any(part.view(np.int8).max() >= bits or part.max() >= 0x80 + bits for part in parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
