"""One run of a host, from noise to picture: units and a step in, residuals out.

Residuals that serve several steps of a run: less work, less exact (figures in docs/steering.md).

One unit in one run: where its weights, its rows, its hints and its model come together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .after_steps import Noise
from .contract import Host, Now, Residuals, Span, Step
from .devices import placed
from .hints import Maps
from .unit import PerSample, Unit, named
from .weighting import Region, finite, only, schedule, spread, summed, weighted

if TYPE_CHECKING:
    from torch import Tensor


class Reuse:
    """What a unit's calls gave, before weights, for up to `steps` steps of the run, and only while x has changed by no
    more than `drift` of its norm since. Rows of other pictures, with or without the prompt, or with another prompt have
    residuals of their own."""

    def __init__(self, steps: int, drift: float | None):
        self._steps, self._drift = steps, drift
        self._kept: dict[tuple[Any, ...], tuple[int, Step, list[Residuals]]] = {}

    def find(self, step: Step, index: int) -> list[Residuals] | None:
        """What may serve in this step, the run's `index`-th, from 0."""
        made, then, residuals = self._kept.get(self._key(step), (index, None, None))
        if then is None or not 0 < index - made < self._steps:
            return None
        same = _equal(step.context, then.context) and _equal(step.added, then.added)
        if same and self._drift is not None:
            same = bool((step.x - then.x).norm() <= self._drift * then.x.norm())
        return residuals if same else None

    def keep(self, step: Step, index: int, residuals: list[Residuals]) -> None:
        self._kept[self._key(step)] = index, step, residuals

    def _key(self, step: Step) -> tuple[Any, ...]:
        if step.positive is None or step.samples is None:
            raise ValueError("residuals are reused by row, and the host cannot tell whose row is whose")
        return (*step.x.shape, *step.positive.tolist(), *step.samples.tolist())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    import torch

    return a is b if a is None or b is None else torch.equal(a, b)


class Acting:
    """One unit in one run."""

    def __init__(self, name: str, unit: Unit, maps: Maps, spans: Sequence[Span], host: Host, turn: int):
        self.name, self._unit, self._maps, self._host, self._turn = name, unit, maps, host, turn
        self._model: Any = maps.reader(unit.model)
        self._weights = _weights(name, unit, spans, turn)
        self._prompt_only = unit.mode == "control" or getattr(self._model, "global_average_pooling", False) is True
        self._region: Region | None = None
        self._hints: dict[tuple[Any, ...], list[Any]] = {}
        self._rows: tuple[Tensor | None, Tensor | None] = (None, None)  # step.positive, and what follows from it
        self._reuse = None if unit.reuse == 1 else Reuse(unit.reuse, unit.drift)
        self._latents: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
        self._attached = ExitStack()
        self._is_attached = False
        self._now: Now | None = None
        self._unsure: list[tuple[Sequence[Tensor], Tensor, str]] = []  # what was made in this step, sums, where

    def residuals(self, step: Step) -> Residuals | None:
        """What this unit adds in the step; None when it rests, or acts inside the attention."""
        self._now = None
        self._unsure.clear()
        weight = self._weights[step.span]
        if weight == 0:
            return None
        if self._unit.region is not None and self._region is None:
            self._region = Region(torch.from_numpy(self._unit.region)[None, None].to(step.x.device))
        if self._unit.after is not None:
            self._encoded()  # now: under offload the VAE would push the UNet out that is at work
        if self._unit.low_vram and hasattr(self._model, "on"):
            self._model = self._model.on(step.x.device)
        if hasattr(self._model, "attach"):
            with placed(self._model, step.x.device):
                self._attach(step, weight, self._made(step))
            return None
        rows = self._acting_rows(step)
        if not callable(self._model) or (rows is not None and not len(rows)):
            return None
        part, total = replace(only(step, rows), weight=weight), Residuals()
        made = self._called(part) if self._reuse is None else self._reused(part, self._reuse)
        for residuals in made:
            total += self._weighted(residuals, weight / len(made))
        return spread(total, rows, len(step.x))

    def confirm(self) -> None:
        """ValueError when the last residuals are not finite. Apart from making them, as it waits for the device."""
        unsure, self._unsure = self._unsure, []
        for tensors, total, place in unsure:
            if not finite(tensors, total):
                raise ValueError(f"the residuals of {self.name} are not finite in {place}")

    def acts_after(self, step: Step) -> bool:
        own = self._unit.after is not None or hasattr(self._model, "after_step")
        return own and self._weights[step.span] != 0

    def after(self, x0: Tensor, step: Step) -> Tensor:
        """The clean latents that the unit wants, in the share that its weight and region give it."""
        wanted = x0
        if hasattr(self._model, "after_step"):
            wanted = self._model.after_step(wanted, step)
        if self._unit.after is not None:
            latents, white = self._encoded()
            if len(latents) > 1:
                latents = latents[self._places(len(latents), step, self._pictures(step))]
            wanted = self._unit.after.wanted(wanted, step, latents, white)
        if not finite([wanted]):
            raise ValueError(f"the latents of {self.name} are not finite after {self._place(step)}")
        share = min(max(self._weights[step.span], 0.0), 1.0)
        change = (wanted - x0) * share
        return x0 + (change if self._region is None else change * self._region.like(change))

    def _encoded(self) -> tuple[Tensor, Tensor | None]:
        size = self._host.pixel_size
        if size not in self._latents:
            self._latents[size] = self._maps.latents(self._host)
        return self._latents[size]

    def _place(self, step: Step) -> str:
        steps = list(self._weights)
        return f"step {steps.index(step.span) + 1} of {len(steps)}"

    def detach(self) -> None:
        self._is_attached = False
        self._attached.close()

    def _reused(self, step: Step, reuse: Reuse) -> list[Residuals]:
        index = list(self._weights).index(step.span)
        with named(self.name):
            found = reuse.find(step, index)
        if found is None:
            found = self._called(step)
            reuse.keep(step, index, found)
        return found

    def _called(self, step: Step) -> list[Residuals]:
        """The model's residuals of weight 1, for each call of it."""
        found = []
        with placed(self._model, step.x.device):
            made = self._made(step)
            hints = [made] if getattr(self._model, "together", False) else made
            step = replace(step, weight=step.weight / len(hints))
            for hint in hints:
                residuals: Residuals = self._model(step, hint).map(lambda h, _: h.to(step.x))
                self._unsure.append((residuals.tensors, summed(residuals.tensors), self._place(step)))
                found.append(residuals)
        return found

    def _weighted(self, residuals: Residuals, weight: float) -> Residuals:
        with named(self.name):
            return weighted(residuals, weight, self._unit.mode, self._unit.layers, self._region)

    def _acting_rows(self, step: Step) -> Tensor | None:
        """Indices of the rows on which it acts, None for all."""
        if not self._prompt_only:
            return None
        if step.positive is None:
            raise ValueError(f"{self.name} acts on the prompt's rows only, and the host cannot tell which those are")
        if self._rows[0] is not step.positive:
            index = step.positive.nonzero()[:, 0]
            self._rows = step.positive, None if len(index) == len(step.positive) else index
        return self._rows[1]

    def _made(self, step: Step) -> list[Any]:
        """The hints, one for each image that acts, made once for a size and its rows."""
        size, own = self._host.pixel_size, [isinstance(a, PerSample) for a in self._unit.alternatives]
        pictures = self._pictures(step) if any(own) else ()
        key = *size, len(step.x), pictures
        if key not in self._hints:
            reads_values = getattr(self._model, "reads_values", False)
            maps = zip(self._maps.values() if reads_values else self._maps.at(*size), own, strict=True)
            self._hints[key] = [self._hint(m[self._places(len(m), step, pictures)] if o else m, step) for m, o in maps]
        return self._hints[key]

    def _pictures(self, step: Step) -> tuple[int, ...]:
        if step.samples is None:
            raise ValueError(f"{self.name} has a map for each picture, and the host cannot tell whose row is whose")
        return tuple(step.samples.tolist())

    def _places(self, maps: int, step: Step, pictures: tuple[int, ...]) -> list[int]:
        """Which of as many maps each row has."""
        count = step.pictures or max(pictures) + 1
        if maps == count:
            return list(pictures)
        if maps == count * step.frames:  # rows are whole videos
            return [picture * step.frames + row % step.frames for row, picture in enumerate(pictures)]
        videos = f" of {step.frames} frames" if step.frames > 1 else ""
        raise ValueError(f"{self.name} has {maps} maps for {count} pictures{videos}")

    def _hint(self, maps: np.ndarray, step: Step) -> Any:
        if getattr(self._model, "reads_latents", False):
            if maps.dtype != np.uint8:
                raise ValueError(f"{self.name} reads latents of a picture, which an inpaint mask does not change")
            return self._model.hint(self._host.encode(maps, getattr(self._model, "shifted", True)))
        # A row of its own for each of x's, although they are often equal: convolutions of one row and of several differ
        # in their last bits, and diffusers' pipelines have several.
        rows = np.array(np.broadcast_to(maps, (len(step.x), *maps.shape[1:])))
        hint = self._model.hint(torch.from_numpy(rows) if rows.dtype == np.float32 else rows)
        if isinstance(hint, Tensor) and not finite([hint]):
            raise ValueError(f"the hint of {self.name} is not finite")
        return hint

    def _attach(self, step: Step, weight: float, hints: list[Any]) -> None:
        strength = torch.full((len(step.x),), weight / len(hints), device=step.x.device)
        rows = self._acting_rows(step)
        if rows is not None:
            strength = torch.zeros_like(strength).index_copy(0, rows, strength[rows])
        region = None if self._region is None else self._region.mask
        self._now = Now(step, strength, self._unit.layers, region, self._turn)
        if not self._is_attached:
            self._is_attached = True
            own = threading.get_ident()

            def now() -> Now | None:
                """None to another thread too, whose call was under way when this one attached."""
                return self._now if threading.get_ident() == own else None

            for hint in hints:
                self._attached.enter_context(self._model.attach(self._host, hint, now))


def _weights(name: str, unit: Unit, spans: Sequence[Span], turn: int) -> dict[Span, float]:
    """The unit's weight in each step."""
    weights = dict.fromkeys(spans, 0.0)
    if unit.weight == 0 or unit.passes == ("second" if turn == 0 else "first"):
        return weights
    held = [span for span in spans if unit.window.holds(span)]
    if not held:
        raise ValueError(f"window {unit.window} of {name} holds none of {len(spans)} steps")
    weight: Callable[[float], float] = schedule(unit.weight)
    try:
        weights |= {span: weight(span.begins) for span in held}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    if not any(weights.values()):
        raise ValueError(f"the weight of {name} is 0 in all {len(held)} steps that its window {unit.window} holds")
    return weights


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
