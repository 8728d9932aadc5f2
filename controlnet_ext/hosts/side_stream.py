"""The units' networks on a CUDA stream of their own, beside the UNet's encoder, which needs nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class SideStream:
    """A stream for what a UNet call is given. `cuda` is torch.cuda.

    Each stream waits for the other once a call: this one for all that the caller has begun, the caller's for the
    results before it reads them. So memory that either frees and uses again is free, and nothing need be recorded."""

    def __init__(self, device: torch.device, cuda: Any):
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)
        self._has_work = False

    @contextmanager
    def activate(self) -> Iterator[None]:
        """What is computed in this context runs on the stream of its own."""
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        self._has_work = True
        with self._cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """From here on the caller's stream may read what was computed. The processor does not wait."""
        if self._has_work:
            self._cuda.current_stream(self._device).wait_stream(self._stream)
            self._has_work = False


class LazyResiduals(tuple[Tensor, ...]):
    """Residuals that are waited for when a UNet reads the first of them: after its last encoder block, whatever other
    tools have made of that. A copy, as accelerate makes one, was waited for when it was made."""

    def __new__(cls, tensors: Iterable[Tensor], wait: Callable[[], None] = lambda: None) -> LazyResiduals:
        self = super().__new__(cls, tensors)
        self._wait = wait
        return self

    _wait: Callable[[], None]

    def __iter__(self) -> Iterator[Tensor]:
        self._wait()
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        self._wait()
        return super().__getitem__(index)


def open_side_stream(device: torch.device) -> SideStream | None:
    """None on a device that has no streams."""
    return SideStream(device, torch.cuda) if device.type == "cuda" else None
