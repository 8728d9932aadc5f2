"""The processes that train together: this one alone, or those that `accelerate launch` started.

Importing this module loads no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from ..errors import one_line

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(hours=12)  # for the first process, which measures alone; the launcher ends all if it dies
T = TypeVar("T")


def read_rank() -> int:
    """Return the number of this process among those of a launcher, 0 without one."""
    return int(os.environ.get("RANK", 0)) if _is_launched() else 0


def count_processes() -> int:
    """Return the number of processes that a launcher started, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1)) if _is_launched() else 1


def is_first_on_machine() -> bool:
    """Return True for one process of each machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _is_launched() -> bool:
    return "LOCAL_RANK" in os.environ  # what accelerate looks at; RANK alone is also set by others


def check_launch() -> None:
    """Raise ValueError where `accelerate launch` was asked for a way to share weights that a training does not use."""
    for name, variable in (("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"), ("FSDP", "ACCELERATE_USE_FSDP")):
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise ValueError(
                f"train does not use {name}, which accelerate launch was asked for: launch with --multi_gpu"
            )


class Processes:
    """The group of processes that train together, and this one's place in it.

    Each computes the gradients of its part of a batch. The first alone reads and writes files, measures and prints.

    Raises ValueError where another launcher than accelerate's or PyTorch's started them.
    """

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        self.device: torch.device = state.device
        if (self.rank, self.count) != (read_rank(), count_processes()):
            raise ValueError(
                f"accelerate finds process {self.rank} of {self.count}, the environment names {read_rank()} of "
                f"{count_processes()}: start them with accelerate launch or torchrun"
            )

    @property
    def is_first(self) -> bool:
        """True in the process that reads, writes and prints."""
        return self.rank == 0

    def call_on_first(self, function: Callable[[], T]) -> T:
        """Return in every process what `function()` returns in the first, the only one that calls it.

        Raises its exception there, and RuntimeError with its text in the others.
        """
        if self.count == 1:
            return function()
        from torch import distributed

        outcome: list[object] = [None, None]
        failure = None
        if self.is_first:
            try:
                outcome[0] = function()
            except Exception as error:
                failure, outcome[1] = error, one_line(error, 500)
        distributed.broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise RuntimeError(f"process 0: {outcome[1]}")
        return outcome[0]  # type: ignore[return-value]

    def raise_together(self, failure: Exception | None) -> None:
        """Raise this process's failure, and RuntimeError in those processes that have none while another has."""
        if self.count > 1 and self.sum([float(failure is not None)])[0] > 0:
            texts = self.gather(None if failure is None else one_line(failure, 500))
            rank, text = next((i, text) for i, text in enumerate(texts) if text is not None)
            raise failure or RuntimeError(f"process {rank}: {text}")
        if failure is not None:
            raise failure

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over all processes."""
        if self.count == 1:
            return list(numbers)
        import torch

        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by their numbers."""
        if self.count == 1:
            return [value]
        from torch import distributed

        values: list[T] = [value] * self.count
        distributed.all_gather_object(values, value)
        return values

    def share_tensors(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Return in every process the tensors that the first gives, on the CPU; the others give None."""
        if self.count == 1:
            assert tensors is not None
            return tensors
        import torch

        forms = self.call_on_first(lambda: {name: (t.shape, t.dtype) for name, t in (tensors or {}).items()})
        tensors_on_all = {}
        for name, (shape, dtype) in forms.items():
            tensor = torch.empty(shape, dtype=dtype) if tensors is None else tensors[name]
            content = tensor.contiguous().flatten().view(torch.uint8).to(self.device)  # a view of any dtype can be sent
            if content.numel():
                torch.distributed.broadcast(content, 0)
            tensors_on_all[name] = content.cpu().view(dtype).reshape(shape)
        return tensors_on_all
