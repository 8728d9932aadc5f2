"""What a guided step is made of, and what hosts and control models promise each other: no torch needed to import
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


class Span(NamedTuple):
    """Where one step lies in its run, as fractions 0..1: it begins and ends."""

    start: float
    end: float


@dataclass(frozen=True)
class Window:
    """The part of a run in which a unit acts, as fractions 0..1. TypeError or ValueError on anything else."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"window {name} {value!r} is {type(value).__name__}, expected a number 0..1")
            if not 0 <= value <= 1:  # NaN neither
                raise ValueError(f"window {name} {value} is outside 0..1")
        if self.start > self.end:
            raise ValueError(f"window start {self.start} lies behind its end {self.end}")

    def contains(self, span: Span) -> bool:
        """Whether the whole step lies in the window: diffusers' rule (0.42, pipeline_controlnet.py, controlnet_keep).
        A host with sd-webui-controlnet's rule, where a step acts if it begins in the window, gives spans without
        length."""
        return span.start >= self.start and span.end <= self.end

    def __str__(self) -> str:
        return f"{self.start:g}..{self.end:g}"


@dataclass(frozen=True, eq=False)
class Step:
    """One UNet call as the host saw it.

    `x (B, C, h, w)`, `t (B,)` timesteps, `context (B, T, D)` prompt embeddings. `positive (B,)` is True on the
    prompt's rows, None when the host cannot tell. `added (B, 2816)` is SDXL's vector (ldm's `y`). `samples (B,)` is
    the index of the picture each row belongs to; `pictures` is how many there are, None when the call has
    rows of all. With `frames` > 1 the batch is flattened video, B = pictures x frames. `weight` is the one with which
    a unit's residuals are multiplied afterwards, for networks that weigh something inside too."""

    x: Tensor
    t: Tensor
    context: Tensor
    span: Span
    positive: Tensor | None = None
    added: Tensor | None = None
    samples: Tensor | None = None
    frames: int = 1
    image_count: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a control model adds to a UNet: one tensor per skip (first encoder block first), one for the middle block,
    and what T2I-Adapters add inside the encoder. Values are never changed in place."""

    skips: tuple[Tensor, ...] = ()
    middle: Tensor | None = None
    encoder: tuple[Tensor, ...] = ()

    def map(self, f: Callable[[Tensor, int], Tensor]) -> Residuals:
        """Residuals with `f(tensor, depth)` applied; depth counts skips from 0, the middle block comes after the last
        skip."""
        return Residuals(
            tuple(f(r, i) for i, r in enumerate(self.skips)),
            None if self.middle is None else f(self.middle, len(self.skips)),
            tuple(f(r, i) for i, r in enumerate(self.encoder)),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.skips, *(() if self.middle is None else (self.middle,)), *self.encoder)

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(
            _add_tuples(self.skips, other.skips),
            _add_optional(self.middle, other.middle),
            _add_tuples(self.encoder, other.encoder),
        )


@dataclass(frozen=True, eq=False)
class Activation:
    """How a unit acts in the present UNet call, for kinds that touch attention: `strength (B,)` is its weight on each
    row (0 on rows that its mode leaves out), `layers` the unit's factors, `region (1, 1, H, W)` in 0..1 at the size
    the user gave, `turn` counts the runs from 0."""

    step: Step
    strength: Tensor
    layers: Sequence[float] | None
    region: Tensor | None
    pass_index: int


class Host(Protocol):
    """What a control model may ask of the host that runs it."""

    @property
    def unet(self) -> Any: ...

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width of the picture in the making."""

    @property
    def generator(self) -> torch.Generator:
        """Random numbers on the CPU, the same in every run that starts from the same noise; the host's own are
        untouched."""

    def encode(self, image: np.ndarray, apply_vae_shift: bool = True) -> Tensor:
        """Latents `(B, C, h, w)`, scaled as the UNet sees them, of RGB uint8 `(H, W, 3)` or `(B, H, W, 3)`; where the
        VAE has a shift, without it if not `shifted`."""

    def iter_attentions(self) -> Iterable[tuple[str, Any, str]]:
        """The UNet's attention modules over pixels in the order in which they run: name, module, and place, which is
        "input", "middle" or "output"."""


class ControlModel(Protocol):
    """Reads a map. `architecture` names its kind and `family` ("sd15", "sdxl", …) its base, for messages.

    It either is called, `model(step, hint) -> Residuals` of weight 1 with a row for each of x's, or it has `attach`
    (`AttachedModel`). One that has `bind(unet)` is asked first whether it fits the UNet, and raises ValueError if
    not. One that has `reads(kinds)` is asked for itself as it reads maps of these kinds (one for each image that acts,
    None: unknown), and raises ValueError if it does not. One with `together = True` is called once with a list of the
    hints of all images that act, instead of once for each. One with `reads_latents = True` is given latents of the maps
    for `hint`, as `Host.encode` makes them, with its `shifted` if it has one; one with `reads_values = True` the maps'
    `values`.
    `global_average_pooling = True` confines it to the prompt's rows. One with `on(device)` is asked for itself as it
    computes there while its weights stay where they are, layer by layer, for units with `low_vram`."""

    architecture: str
    family: str

    def hint(self, image: Any) -> Any:
        """The hint for calls, made once a run: of RGB uint8 `(H, W, 3)`, or `(B, H, W, 3)` with a picture for each row,
        or of floats `(B, 3, H, W)` in 0..1, -1 where to repaint; already at the host's pixel size."""


class AttachedModel(ControlModel, Protocol):
    """A kind that acts inside the UNet's attention. It wraps processors, never replaces them, and what it did is undone
    when the context ends. `now()` is None while the unit rests: then the UNet must do what it does without it."""

    def attach(
        self, host: Host, hint: Any, get_activation: Callable[[], Activation | None]
    ) -> AbstractContextManager[Any]: ...


def _add_optional(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _add_tuples(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True)) if a and b else a or b
