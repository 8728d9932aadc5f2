"""What can be trained: a file a target, found by being there. The file `t2i_adapter.py` is the target `t2i-adapter`.

A module of a target defines `TARGET`, a `TrainingTarget`. Importing this module loads no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import suggest_names

if TYPE_CHECKING:
    from ...guidance.contract import UNet
    from ...models.nn.execution import LayerwiseOffload

DEFAULT_TARGET = "controlnet"


@dataclass(frozen=True)
class TargetSettings:
    """Settings of a network: the file `control` to train further, None for a fresh one, and its `rank` where the target
    has one (None: its default)."""

    control: Path | None = None
    rank: int | None = None


class TrainingTarget:
    """A kind of network that can be trained; the base class of every target.

    The network is one of our control models, so that the same object guides in a training and in `guide`.
    """

    architecture: str
    """That of its control models, as in "controlnet"."""
    diffusers_class: str | None = None
    """The class of diffusers that reads it from a folder, None if there is none."""

    def check(self, unet: UNet, settings: TargetSettings) -> None:
        """Check that a network with these settings can be trained beside a UNet, which may have no weights.

        Raises ValueError, or FileNotFoundError, in one line if not.
        """

    def create(self, unet: UNet, settings: TargetSettings) -> LayerwiseOffload:
        """Return the network, in float32, bound to a UNet with weights, all of it to be trained.

        Random numbers come from torch's global generator. Raises ValueError as `check` does.
        """
        raise NotImplementedError(f"{type(self).__name__} creates nothing")


def list_targets() -> list[str]:
    """Return the names of all targets, the default first."""
    found = [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]
    return sorted(found, key=lambda name: (name != DEFAULT_TARGET, name))


def find_target(name: str) -> TrainingTarget:
    """Return the target of a name. Raises ValueError with the nearest names if there is none."""
    if name not in list_targets():
        raise ValueError(suggest_names(f"unknown target {name!r:.80}", name, list_targets()))
    target: TrainingTarget = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TARGET
    return target
