"""How much a configuration may ask for: nobody has looked at its numbers, and a network of a million layers or widths
takes hours and all memory before it turns out not to be the one whose weights lie beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_COUNT = 2**16  # no count in the configurations of published networks of pictures is larger, but of words
_SPARE = 1000  # tensors that a network may have beside twice those of its file


def check_numbers(name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Raises ValueError, beginning with `name`, if a whole number in the settings, or the sum of a list of them, is
    over 65,536 and over the longest side of the tensors."""
    sides = (side for tensor in (tensors or {}).values() for side in tensor.shape)
    most = max(_COUNT, max(sides, default=0))
    for key, value in values(settings):
        if isinstance(value, list):
            value = sum(one for one in value if isinstance(one, int))
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{name} has {value!s:.40} for {key!r:.80}, expected at most {most}")


def values(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value in the settings with its key, also those in dicts and lists there."""
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((key, one) for one in value)


@contextmanager
def no_larger_than(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """While a network is built in this thread: ValueError as soon as it has far more parameters than there are
    tensors, or far larger ones."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    most = 2 * len(tensors) + _SPARE
    largest = 2 * sum(tensor.numel() for tensor in tensors.values()) + 2**20
    thread = threading.get_ident()
    sizes: dict[tuple[int, str], int] = {}  # by module and name: loading puts other tensors in their places
    total = 0

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal total
        if parameter is None or threading.get_ident() != thread:
            return
        place = id(module), name
        total += parameter.numel() - sizes.get(place, 0)
        sizes[place] = parameter.numel()
        if len(sizes) > most or total > largest:
            raise ValueError(f"its configuration asks for more than the {len(tensors)} tensors in its file of weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
