"""Files of a training that its first process writes: the checkpoint, the rows of the log, the best weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.disk import write_atomically
from ..files.safetensors import write_weights
from ..files.weights import read_weights
from ..guidance.contract import ControlModel
from ..models.state_dict.saving import build_metadata
from .optimizers import OptimizerState
from .processes import Processes
from .work_folder import LOG_FILE, read_log

CHECKPOINT_FILE = "checkpoint.safetensors"
BEST_PATTERN = re.compile(r"best_(\d+)\.safetensors")


@dataclass(eq=False)
class TrainingState:
    """All that a training goes on from, to the bit.

    network: the network that learns.
    averaged: its averaged weights, the same object where none are averaged.
    optimizer: state of the optimizer.
    scaler: scale of the losses of float16.
    losses: of the steps since the last row of the log.
    """

    network: nn.Module
    averaged: nn.Module
    optimizer: OptimizerState
    scaler: torch.amp.GradScaler
    losses: list[float] = field(default_factory=list)

    def save(self, path: Path, step: int) -> None:
        """Write it after `step` steps, complete or not at all."""
        learnt, values = self.optimizer.read()
        tensors = {f"{part}.{name}": t for part, net in self._modules().items() for name, t in net.state_dict().items()}
        tensors |= {f"optimizer.{name}": t for name, t in learnt.items()}
        numbers: dict[str, Any] = {
            "optimizer": values,
            "scaler": self.scaler.state_dict(),
            "losses": self.losses,
        }
        metadata = {name: json.dumps(value) for name, value in numbers.items() if value}
        write_weights(path, tensors, {"step": str(step), **metadata}, overwrite=True)

    def restore(self, path: Path, processes: Processes) -> int:
        """Read what the first process finds in the file, if there is one; return the number of steps that are done."""

        def read() -> tuple[dict[str, Tensor] | None, dict[str, str]]:
            if not path.exists():
                return None, {}
            weights = read_weights(path)
            return dict(weights.tensors), dict(weights.metadata)

        tensors, metadata = read() if processes.is_first else (None, {})
        metadata = processes.call_on_first(lambda: metadata)
        if not metadata:
            return 0
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "averaged": {}, "optimizer": {}}
        for name, tensor in processes.share_tensors(tensors).items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        for part, net in self._modules().items():
            net.load_state_dict(groups[part])
        self.optimizer.restore(groups["optimizer"], json.loads(metadata.get("optimizer", "{}")))
        if scale := json.loads(metadata.get("scaler", "{}")):
            self.scaler.load_state_dict(scale)
        self.losses[:] = json.loads(metadata.get("losses", "[]"))
        return int(metadata["step"])

    def _modules(self) -> dict[str, nn.Module]:
        own = {} if self.averaged is self.network else {"averaged": self.averaged}
        return {"network": self.network, **own}


def append_row(row: Mapping[str, float], folder: Path) -> None:
    """Append a row of figures to the log."""
    with (folder / LOG_FILE).open("a") as file:
        file.write(json.dumps(row) + "\n")


def trim_log(folder: Path, step: int) -> None:
    """Remove rows that were written after the checkpoint of this step."""
    log = folder / LOG_FILE
    lines = "".join(json.dumps(row) + "\n" for row in read_log(log) if row["step"] <= step)
    if log.exists() and log.read_text() != lines:
        write_atomically(log, lines.encode(), overwrite=True)


def write_best_weights(folder: Path, network: nn.Module, step: int) -> None:
    """Write the weights of a step beside the best of before: until the checkpoint is written, a kill leaves both.

    The file of a ControlNet is one that `load` reads.
    """
    tensors = {name: t.detach() for name, t in network.state_dict().items()}
    metadata = build_metadata(network) if isinstance(network, ControlModel) else {}
    write_weights(folder / f"best_{step}.safetensors", tensors, {**metadata, "step": str(step)}, overwrite=True)


def remove_best_weights(folder: Path, best_step: float | None) -> None:
    """Remove the best weights of other steps than this, which a kill may have left."""
    for step, path in _list_best(folder).items():
        if step != best_step:
            path.unlink()


def read_best_weights(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Return the step and the averaged weights that the stop rule of a training called best; None where it kept none.

    The names of tensors are those of the network's `state_dict`.
    """
    matches = _list_best(folder)
    return None if not matches else (max(matches), dict(read_weights(matches[max(matches)]).tensors))


def _list_best(folder: Path) -> dict[int, Path]:
    """Return the files of best weights by step."""
    matches = ((BEST_PATTERN.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}
