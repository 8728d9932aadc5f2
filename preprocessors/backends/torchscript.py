"""Networks in TorchScript files. These are programs, which no reader makes safe: only a file is run whose hash is the
one written here, so a published program that others have looked at, whoever put it where it lies."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from ...errors import one_line
from ...files.hub import WeightsFile
from .torch import Device

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..library import Library


class TorchscriptNetwork:
    """A program on its device, in its own kind of numbers. `bytes` is its file's size, for the pool that keeps it."""

    def __init__(self, program: torch.jit.ScriptModule, device: str, bytes: int):
        self._program, self._device, self.bytes = program, device, bytes

    def __call__(self, image: np.ndarray) -> tuple[Any, ...]:
        """The program's tensors, on the CPU, for an image (H, W, 3) uint8, given to it as (3, H, W). Raises ValueError
        when it fails."""
        import torch

        x = torch.from_numpy(image).permute(2, 0, 1).to(self._device)
        try:
            with torch.no_grad():
                return tuple(result.cpu() for result in self._program(x))
        except (RuntimeError, torch.jit.Error) as error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            last = str(error).strip().splitlines()[-1][:200]
            raise ValueError(f"the network cannot look at an image of {size}: {last}") from error


def load_torchscript_network(library: Library, file: WeightsFile, device: str | Device) -> TorchscriptNetwork:
    """The network of a file whose sha256 is known, shared and kept as the library's others are. `device` is as in
    torch; its dtype is the file's business. Raises what Library.path does, and ValueError where the file is another,
    torch cannot read it, or torchvision, whose operations such programs call, is missing."""
    name = Device.coerce(device).name
    return library.cache.get_or_create((file, name), lambda: _load_program(library, file, name))


def _load_program(library: Library, file: WeightsFile, device: str) -> TorchscriptNetwork:
    try:
        import torch
        import torchvision  # noqa: F401  it brings nms and the like
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ValueError(f"{file.name} needs torchvision, which does not import: {str(error)[:200]}") from error
    if file.sha256 is None:
        raise ValueError(f"{file.name} is a program without a known sha256, and is not run")
    path, content = library.read_verified(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated
            program = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        last = one_line(error, 300)
        raise ValueError(f"{str(path)!r} cannot be used on the device {device!r:.40}: {last}") from error
    return TorchscriptNetwork(program, device, len(content))
