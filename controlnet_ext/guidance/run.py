"""One run of a host, from noise to picture: units and a step in, residuals out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from .acting import Acting
from .contract import Host, Residuals, Span, Step
from .hints import Maps
from .noise import Noise
from .unit import Unit


class Run:
    """What units add in a run whose steps are `spans`; `turn` counts a host's runs from 0. `maps` are those of `units`.

    Units are named by their place, from 1. ValueError when one whose weight is not 0 would act in no step.
    """

    def __init__(self, units: Sequence[Unit], maps: Sequence[Maps], spans: Sequence[Span], host: Host, turn: int = 0):
        self._acting = [
            Acting(f"unit {i}", unit, its, spans, host, turn)
            for i, (unit, its) in enumerate(zip(units, maps, strict=True), 1)
        ]

    def residuals(self, step: Step) -> Iterator[Residuals]:
        """What the units add, in their order; nothing of those that rest or act inside the attention."""
        for acting in self._acting:
            residuals = acting.residuals(step)
            if residuals is not None:
                yield residuals

    def confirm(self) -> None:
        """To be called when the UNet has been: ValueError when what a unit added was not finite."""
        for acting in self._acting:
            acting.confirm()

    def acts_after(self, step: Step) -> bool:
        """Whether a unit does something after this step."""
        return any(acting.acts_after(step) for acting in self._acting)

    def after(self, step: Step, out: Tensor, noise: Noise) -> Tensor:
        """The UNet's output `(B, C, h, w)` for the step, as units that act after it want it; in their order."""
        x, outs = step.x[:, : out.shape[1]].float(), out.float()
        before = x0 = noise.clean(x, outs)
        for acting in self._acting:
            if acting.acts_after(step):
                x0 = acting.after(x0, step)
        return noise.moved(outs, x0 - before).to(out)

    def detach(self) -> None:
        """Undo, last first, what kinds that act in attention did to the UNet; their next step does it again. For
        a host whose batch or size changes, and before the next run."""
        for acting in reversed(self._acting):
            acting.detach()
