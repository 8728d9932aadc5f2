"""Optimizers of a training, each from its own library, and their state as tensors and numbers by name.

Importing this module loads no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

BETAS = (0.9, 0.98)
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}  # that are not among our dependencies
RESET_KEYS = ("params", "lr")  # of a group of parameters, which a run sets by itself


def check_optimizer(name: str) -> None:
    """Raise ValueError with the command that installs its library where the library of an optimizer is missing."""
    package = PACKAGES.get(name)
    if package is None:
        return
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"optimizer {name} needs {package}: pip install {package} ({error})") from error


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> Optimizer:
    """Return an optimizer by its name in `OPTIMIZERS`.

    `adamw` is PyTorch's; `adamw8bit` that of bitsandbytes, whose state takes a quarter; `adafactor` that of
    transformers, with the given rate; `prodigy` that of prodigyopt, which finds the rate by itself, and of which
    `rate` is a factor. The momentum of AdamW has the decays 0.9 and 0.98.
    """
    parameters = list(parameters)
    optimizer: Optimizer
    if name == "adamw8bit":
        bitsandbytes = importlib.import_module("bitsandbytes")
        optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=rate, betas=BETAS, weight_decay=weight_decay)
    elif name == "adafactor":
        from transformers.optimization import Adafactor

        optimizer = Adafactor(
            parameters, lr=rate, weight_decay=weight_decay, scale_parameter=False, relative_step=False
        )
    elif name == "prodigy":
        optimizer = importlib.import_module("prodigyopt").Prodigy(
            parameters, lr=rate, weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True
        )
    else:
        optimizer = _make_adamw(parameters, rate, weight_decay)
    return optimizer


def _make_adamw(parameters: list[nn.Parameter], rate: float, weight_decay: float) -> Optimizer:
    """Return PyTorch's AdamW, in one kernel where the device has one: on a CPU it takes a sixth of the time."""
    from torch.optim import AdamW

    try:
        return AdamW(parameters, rate, betas=BETAS, weight_decay=weight_decay, fused=True)
    except RuntimeError:  # of a CPU before PyTorch 2.4, of other devices
        return AdamW(parameters, rate, betas=BETAS, weight_decay=weight_decay)


class OptimizerState:
    """The state of an optimizer as tensors and as plain values by name, from which it goes on to the bit.

    Names are the keys on the way, joined by dots: `0.exp_avg` is a tensor of the first parameter, `group.0.d` a value
    of the first group of parameters. Of a group, the values that differ from those of a new optimizer are stored.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._new_groups = [dict(group) for group in optimizer.state_dict()["param_groups"]]

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, as views of the live ones, and the other values."""
        state = self._optimizer.state_dict()
        learnt = {str(i): each for i, each in state["state"].items()}
        for i, (group, new) in enumerate(zip(state["param_groups"], self._new_groups, strict=True)):
            changes = {k: v for k, v in group.items() if k not in RESET_KEYS and (k not in new or v != new[k])}
            learnt |= {f"group.{i}": changes} if changes else {}
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        _flatten(learnt, "", tensors, values)
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Give the optimizer what `read` returned of an equal one."""
        fresh = self._optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        groups = [dict(group) for group in fresh["param_groups"]]
        for name, value in (*tensors.items(), *values.items()):
            first, *path = name.split(".")
            place: dict[str, Any] = groups[int(path.pop(0))] if first == "group" else state.setdefault(int(first), {})
            for key in path[:-1]:
                place = place.setdefault(key, {})
            place[path[-1]] = value
        self._optimizer.load_state_dict({**fresh, "state": state, "param_groups": groups})


def _flatten(tree: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    import torch

    for key, value in tree.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{key}.", tensors, values)
        elif isinstance(value, torch.Tensor):
            tensors[f"{prefix}{key}"] = value
        else:
            values[f"{prefix}{key}"] = value
