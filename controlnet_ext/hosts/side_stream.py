"""A CUDA stream for the units' networks, beside the UNet's encoder, which needs none of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, SupportsIndex

import torch
from torch import Tensor


class SideStream:
    """A stream for the residuals of a UNet call. `cuda` is torch.cuda.

    Each stream waits for the other once in a call: this one for all work that the caller has queued, the caller's for
    the results before it reads them. Memory that either frees and uses again is therefore free, and nothing need be
    recorded.
    """

    def __init__(self, device: torch.device, cuda: ModuleType):
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)
        self._has_work = False

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Run the computations of this context on the side stream."""
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        self._has_work = True
        with self._cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """Make the caller's stream wait for the results. The CPU does not wait."""
        if self._has_work:
            self._cuda.current_stream(self._device).wait_stream(self._stream)
            self._has_work = False


class LazyResiduals(tuple[Tensor, ...]):
    """A tuple of residuals that waits for the side stream when the UNet reads the first of them.

    That happens after the UNet's last encoder block. A copy, such as accelerate makes, waits when it is made.
    """

    def __new__(cls, tensors: Iterable[Tensor], wait: Callable[[], None] = lambda: None) -> LazyResiduals:
        self = super().__new__(cls, tensors)
        self._wait = wait
        return self

    _wait: Callable[[], None]

    def __iter__(self) -> Iterator[Tensor]:
        self._wait()
        return super().__iter__()

    def __getitem__(self, index: SupportsIndex | slice[Any, Any, Any]) -> Any:
        self._wait()
        return super().__getitem__(index)
