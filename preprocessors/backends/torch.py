"""A network where it runs: on one device, in one kind of number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import check_choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NETWORK_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Device:
    """A device as torch names it, "cpu", "cuda", "cuda:1", "mps", and the numbers in which networks compute there."""

    name: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, NETWORK_DTYPES)

    @staticmethod
    def coerce(device: str | torch.device | Device) -> Device:
        """`device` itself, or float32 on the device that it names (text, or a torch.device)."""
        return device if isinstance(device, Device) else Device(str(device))


class Network:
    """A module on its device. Calls take and give tensors in float32 on the CPU, and need no care for gradients.

    Weights and inputs lie channels last: PiDiNet on one thread of a CPU takes 0.65 of the time."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype, bytes: int):
        self.module, self.device, self.dtype, self.bytes = module, device, dtype, bytes

    @staticmethod
    def from_module(module: nn.Module, device: Device) -> Network:
        """The module in evaluation mode on `device`, in its numbers. Raises ValueError when there is no such device
        here."""
        import torch

        dtype = getattr(torch, device.dtype)
        try:
            place = torch.device(device.name)
            module = module.to(place, dtype).eval().requires_grad_(False)
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
            raise ValueError(f"device {device.name!r:.40} cannot be used: {str(error).splitlines()[0]}") from error
        tensors = [*module.parameters(), *module.buffers()]
        return Network(module, place, dtype, sum(t.numel() * t.element_size() for t in tensors))

    def __call__(self, *inputs: Tensor) -> Any:
        """The module's result of these inputs, which are first moved to its device and, if they are floats, its
        numbers. Tensors in a tuple, list or dict come back too; the rest as it is."""
        import torch

        def there(x: Tensor) -> Tensor:
            layout = torch.channels_last if x.ndim == 4 else torch.preserve_format
            return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype, memory_format=layout)

        with torch.inference_mode():
            return _to_cpu(self.module(*map(there, inputs)))


def _to_cpu(result: object) -> Any:
    import torch

    if isinstance(result, torch.Tensor):
        return result.float().cpu() if result.is_floating_point() else result.cpu()
    if isinstance(result, dict):
        return {key: _to_cpu(value) for key, value in result.items()}
    if isinstance(result, (tuple, list)):
        return type(result)(map(_to_cpu, result))
    return result
