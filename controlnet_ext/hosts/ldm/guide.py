"""Units on an ldm UNet, as stable-diffusion-webui has it: hooks only, no `forward` is replaced.

Residuals are added where ldm's UNet has them (lllyasviel/ControlNet, cldm/cldm.py, ControlledUnetModel): to the middle
block's output, and to the skips, which an output block's input `[h, skip]` holds as its last channels; those of
T2I-Adapters to the output of the encoder block that ends each level.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guidance.contract import Residuals, Span, Step
from ...guidance.devices import placed
from ...guidance.hints import Maps
from ...guidance.run import Run
from ...guidance.unit import Unit, named
from ..side_stream import Beside, beside
from .host import LdmHost
from .unet_view import LdmUNet, adapted


@dataclass(frozen=True)
class Rows:
    """What the host's denoiser is about to ask of the UNet, in however many calls: for each row, in order, which
    picture it belongs to and whether it has the prompt. It is one step of a run: `span`."""

    span: Span
    pictures: Sequence[int]
    prompted: Sequence[bool]

    def __post_init__(self) -> None:
        if len(self.pictures) != len(self.prompted):
            raise ValueError(f"{len(self.pictures)} pictures and {len(self.prompted)} marks of rows: one of each a row")


@contextmanager
def guide_ldm(unet: Any, units: Iterable[Unit], model: Any = None) -> Iterator[LdmGuide]:
    """In this context `units` guide the UNet; afterwards it is as before, to the bit.

    `model` is the LatentDiffusion that the UNet belongs to: its alphas_cumprod, its parameterization and its VAE are
    what units need that act after a step. The host says when a run begins (`LdmGuide.begin`) and what each step asks
    (`LdmGuide.expect`); a UNet call before that is an error. ValueError, TypeError or FileNotFoundError says what
    cannot act, as in `guide`. RuntimeError when the UNet is called in another thread, or is guided already."""
    guide = LdmGuide(unet, units, model)
    with guide.models, _alone(unet), ExitStack() as handles:
        for handle in guide.hooked():
            handles.callback(handle.remove)
        try:
            yield guide
        finally:
            guide.end()


class LdmGuide:
    """The units of one guided UNet, and the run they are in."""

    def __init__(self, unet: Any, units: Iterable[Unit], model: Any = None):
        self._unet, self._view, self._model = unet, LdmUNet(unet), model
        self._units = list(units)
        self._maps = []
        for i, unit in enumerate(self._units, 1):
            with named(f"unit {i}"):
                self._maps.append(_ready(unit, self._view))
        self.models = ExitStack()  # back to where they were
        self.called = 0  # UNet calls that were guided
        self._thread = threading.get_ident()
        self._run: Run | None = None
        self._rows: Rows | None = None
        self._seen = 0  # rows of the present step
        self._host: Any = LdmHost(self._view, model)
        self._total: Residuals | None = None
        self._beside: Beside | None = None
        self._known: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}  # rows as tensors: the same in each step
        self._in_attention = any(hasattr(unit.model, "attach") for unit in self._units)
        self._ends = adapted(unet.input_blocks)

    def begin(self, spans: Sequence[Span], turn: int) -> None:
        """A run of these steps begins; `turn` counts a picture's runs from 0 (hires fix: the second is 1). ValueError
        when a unit would act in none of the steps."""
        self.end()
        self._host = LdmHost(self._view, self._model)
        self._run = Run(self._units, self._maps, spans, self._host, turn)

    def expect(self, rows: Rows) -> None:
        """The next step of the run, before the UNet is called for it."""
        self._rows, self._seen = rows, 0

    def end(self) -> None:
        """The run is over."""
        if self._run is not None:
            self._run.detach()
        self._run = self._rows = self._total = None

    def hooked(self) -> Iterator[Any]:
        """Hook the UNet; handles that undo it."""
        blocks = list(self._unet.input_blocks)
        yield self._unet.register_forward_pre_hook(self._before, with_kwargs=True)
        yield self._unet.register_forward_hook(lambda *call: self._after(call[-1]), always_call=True)
        for place, end in enumerate(self._ends):
            yield blocks[end].register_forward_hook(lambda _, __, h, place=place: self._in_encoder(h, place))
        yield self._unet.middle_block.register_forward_hook(lambda _, __, h: self._in_middle(h))
        for i, block in enumerate(self._unet.output_blocks):
            place = len(blocks) - 1 - i
            yield block.register_forward_pre_hook(lambda _, args, place=place: self._in_decoder(args, place))

    @property
    def _is_own(self) -> bool:
        """Whether this is the guide's thread; another one's call may have been under way when the hooks came."""
        return threading.get_ident() == self._thread

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_own:
            raise RuntimeError("the UNet is guided in another thread; wait until that is done")
        if self._run is None or self._rows is None:
            raise RuntimeError("the UNet is called outside of a step that the host announced; no unit can act there")
        step = self._step(*args, **kwargs)
        if self._host.call is None:
            for unit in self._units:
                self.models.enter_context(placed(unit.model, torch.device("cpu") if unit.low_vram else step.x.device))
        elif self._host.call.x.shape != step.x.shape:
            self._run.detach()  # what acts in the attention knows one size
        self._host.call = step
        self._beside = None if self._in_attention else self._beside or beside(step.x.device)
        total: Residuals | None = None
        with nullcontext() if self._beside is None else self._beside.working():
            for residuals in self._run.residuals(step):
                total = residuals if total is None else total + residuals
        self._total = total
        self.called += 1

    def _after(self, out: Tensor | None) -> Tensor | None:
        """The UNet's output as the units want it, None where it failed."""
        if not self._is_own:
            return out  # of a call that was refused, which may not disturb that of the guide's thread
        self._total = None
        self._wait()
        step = self._host.call
        if out is None or self._run is None or step is None:
            return out
        self._run.confirm()
        if not self._run.acts_after(step):
            return out
        return self._run.after(step, out, self._host.noise())

    def _step(self, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **_: Any) -> Step:
        assert self._rows is not None
        rows, begin = self._rows, self._seen
        self._seen += len(x)
        t = torch.as_tensor(timesteps, device=x.device).reshape(-1).float()
        t = t.expand(len(x)) if len(t) == 1 else t
        if self._seen > len(rows.pictures):
            return Step(x, t, context, rows.span, None, y, None)
        key = *rows.prompted[begin : self._seen], *rows.pictures[begin : self._seen], x.device
        if key not in self._known:
            of = rows.prompted[begin : self._seen], rows.pictures[begin : self._seen]
            self._known[key] = torch.tensor(of[0], device=x.device), torch.tensor(of[1], device=x.device)
        positive, samples = self._known[key]
        return Step(x, t, context, rows.span, positive, y, samples, pictures=max(rows.pictures) + 1)

    def _wait(self) -> None:
        """For the residuals, in the first hook that reads them."""
        if self._beside is not None:
            self._beside.wait()

    def _in_encoder(self, h: Tensor, place: int) -> Tensor | None:
        if self._total is None or place >= len(self._total.encoder) or not self._is_own:
            return None
        self._wait()
        return h + self._total.encoder[place]

    def _in_middle(self, h: Tensor) -> Tensor | None:
        last = self._in_encoder(h, len(self._ends))
        if self._total is None or self._total.middle is None or not self._is_own:
            return last
        self._wait()
        return (h if last is None else last) + self._total.middle

    def _in_decoder(self, args: tuple[Any, ...], place: int) -> tuple[Any, ...] | None:
        if self._total is None or not self._total.skips or not self._is_own:
            return None
        self._wait()
        added, h = self._total.skips[place], args[0].clone()
        h[:, -added.shape[1] :] += added
        return h, *args[1:]


_guided: set[int] = set()  # UNets, by id
_changing = threading.Lock()


@contextmanager
def _alone(unet: Any) -> Iterator[None]:
    with _changing:
        if id(unet) in _guided:
            raise RuntimeError("the UNet is guided already; put all units into one guide")
        _guided.add(id(unet))
    try:
        yield
    finally:
        with _changing:
            _guided.remove(id(unet))


def _ready(unit: Any, unet: LdmUNet) -> Maps:
    """The maps of a unit that fits the UNet."""
    if not isinstance(unit, Unit):
        raise TypeError(f"a {type(unit).__name__}, expected a Unit")
    if hasattr(unit.model, "settle"):
        unit.model.settle(unet)
    maps = Maps(unit)
    maps.reader(unit.model)
    return maps
