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

from ...errors import error_prefix
from ...guidance.contract import AttentionModel, Residuals, Step
from ...guidance.devices import on_device
from ...guidance.hints import HintImages
from ...guidance.run import GuidanceRun
from ...guidance.schedule import Span
from ...guidance.unit import Unit
from ..side_stream import SideStream, open_side_stream
from .host import LdmHost
from .unet_view import LdmUNetView, adapter_block_indices


@dataclass(frozen=True)
class BatchRows:
    """What the host's denoiser is about to ask of the UNet, in however many calls: for each row, in order, which
    picture it belongs to and whether it has the prompt. It is one step of a run: `span`."""

    span: Span
    image_indices: Sequence[int]
    has_prompt: Sequence[bool]

    def __post_init__(self) -> None:
        if len(self.image_indices) != len(self.has_prompt):
            raise ValueError(
                f"{len(self.image_indices)} pictures and {len(self.has_prompt)} marks of rows: one of each a row"
            )


@contextmanager
def guide_ldm(unet: Any, units: Iterable[Unit], model: Any = None) -> Iterator[LdmGuide]:
    """In this context `units` guide the UNet; afterwards it is as before, to the bit.

    `model` is the LatentDiffusion that the UNet belongs to: its alphas_cumprod, its parameterization and its VAE are
    what units need that act after a step. The host says when a run begins (`LdmGuide.begin`) and what each step asks
    (`LdmGuide.announce_step`); a UNet call before that is an error. ValueError, TypeError or FileNotFoundError says
    what cannot act, as in `guide`. RuntimeError when the UNet is called in another thread, or is guided already."""
    guide = LdmGuide(unet, units, model)
    with guide.moved_models, _claim_unet(unet), ExitStack() as handles:
        for handle in guide.install_hooks():
            handles.callback(handle.remove)
        try:
            yield guide
        finally:
            guide.end()


class LdmGuide:
    """The units of one guided UNet, and the run they are in."""

    def __init__(self, unet: Any, units: Iterable[Unit], model: Any = None):
        self._unet, self._unet_view, self._model = unet, LdmUNetView(unet), model
        self._units = list(units)
        self._hint_images = []
        for i, unit in enumerate(self._units, 1):
            with error_prefix(f"unit {i}"):
                self._hint_images.append(_prepare_unit(unit, self._unet_view))
        self.moved_models = ExitStack()  # back to where they were
        self.guided_calls = 0  # UNet calls that were guided
        self._thread = threading.get_ident()
        self._run: GuidanceRun | None = None
        self._rows: BatchRows | None = None
        self._seen_rows = 0  # rows of the present step
        self._host: Any = LdmHost(self._unet_view, model)
        self._total_residuals: Residuals | None = None
        self._side_stream: SideStream | None = None
        self._row_tensors: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}  # rows as tensors: the same in each step
        self._has_attached_units = any(isinstance(unit.model, AttentionModel) for unit in self._units)
        self._adapter_blocks = adapter_block_indices(unet.input_blocks)

    def begin(self, spans: Sequence[Span], pass_index: int) -> None:
        """A run of these steps begins; `turn` counts a picture's runs from 0 (hires fix: the second is 1). ValueError
        when a unit would act in none of the steps."""
        self.end()
        self._host = LdmHost(self._unet_view, self._model)
        self._run = GuidanceRun(self._units, self._hint_images, spans, self._host, pass_index)

    def announce_step(self, rows: BatchRows) -> None:
        """The next step of the run, before the UNet is called for it."""
        self._rows, self._seen_rows = rows, 0

    def end(self) -> None:
        """The run is over."""
        if self._run is not None:
            self._run.detach()
        self._run = self._rows = self._total_residuals = None

    def install_hooks(self) -> Iterator[Any]:
        """Hook the UNet; handles that undo it."""
        blocks = list(self._unet.input_blocks)
        yield self._unet.register_forward_pre_hook(self._before_call, with_kwargs=True)
        yield self._unet.register_forward_hook(lambda *call: self._after_call(call[-1]), always_call=True)
        for place, end in enumerate(self._adapter_blocks):
            yield blocks[end].register_forward_hook(lambda _, __, h, place=place: self._add_to_encoder(h, place))
        yield self._unet.middle_block.register_forward_hook(lambda _, __, h: self._add_to_middle(h))
        for i, block in enumerate(self._unet.output_blocks):
            place = len(blocks) - 1 - i
            yield block.register_forward_pre_hook(lambda _, args, place=place: self._add_to_skip(args, place))

    @property
    def _is_own_thread(self) -> bool:
        """Whether this is the guide's thread; another one's call may have been under way when the hooks came."""
        return threading.get_ident() == self._thread

    def _before_call(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_own_thread:
            raise RuntimeError("the UNet is guided in another thread; wait until that is done")
        if self._run is None or self._rows is None:
            raise RuntimeError("the UNet is called outside of a step that the host announced; no unit can act there")
        step = self._build_step(*args, **kwargs)
        if self._host.step is None:
            for unit in self._units:
                self.moved_models.enter_context(
                    on_device(unit.model, torch.device("cpu") if unit.low_vram else step.x.device)
                )
        elif self._host.step.x.shape != step.x.shape:
            self._run.detach()  # what acts in the attention knows one size
        self._host.step = step
        self._side_stream = None if self._has_attached_units else self._side_stream or open_side_stream(step.x.device)
        total: Residuals | None = None
        with nullcontext() if self._side_stream is None else self._side_stream.activate():
            for residuals in self._run.compute_residuals(step):
                total = residuals if total is None else total + residuals
        self._total_residuals = total
        self.guided_calls += 1

    def _after_call(self, out: Tensor | None) -> Tensor | None:
        """The UNet's output as the units want it, None where it failed."""
        if not self._is_own_thread:
            return out  # of a call that was refused, which may not disturb that of the guide's thread
        self._total_residuals = None
        self._wait_for_residuals()
        step = self._host.step
        if out is None or self._run is None or step is None:
            return out
        self._run.check_finite()
        if not self._run.has_post_step(step):
            return out
        return self._run.apply_post_steps(step, out, self._host.compute_noise_level())

    def _build_step(self, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **_: Any) -> Step:
        assert self._rows is not None
        rows, begin = self._rows, self._seen_rows
        self._seen_rows += len(x)
        t = torch.as_tensor(timesteps, device=x.device).reshape(-1).float()
        t = t.expand(len(x)) if len(t) == 1 else t
        if self._seen_rows > len(rows.image_indices):
            return Step(x, t, context, rows.span, None, y, None)
        key = *rows.has_prompt[begin : self._seen_rows], *rows.image_indices[begin : self._seen_rows], x.device
        if key not in self._row_tensors:
            of = rows.has_prompt[begin : self._seen_rows], rows.image_indices[begin : self._seen_rows]
            self._row_tensors[key] = torch.tensor(of[0], device=x.device), torch.tensor(of[1], device=x.device)
        positive, samples = self._row_tensors[key]
        return Step(x, t, context, rows.span, positive, y, samples, image_count=max(rows.image_indices) + 1)

    def _wait_for_residuals(self) -> None:
        """For the residuals, in the first hook that reads them."""
        if self._side_stream is not None:
            self._side_stream.wait()

    def _add_to_encoder(self, h: Tensor, index: int) -> Tensor | None:
        if self._total_residuals is None or index >= len(self._total_residuals.encoder) or not self._is_own_thread:
            return None
        self._wait_for_residuals()
        return h + self._total_residuals.encoder[index]

    def _add_to_middle(self, h: Tensor) -> Tensor | None:
        last = self._add_to_encoder(h, len(self._adapter_blocks))
        if self._total_residuals is None or self._total_residuals.middle is None or not self._is_own_thread:
            return last
        self._wait_for_residuals()
        return (h if last is None else last) + self._total_residuals.middle

    def _add_to_skip(self, args: tuple[Any, ...], index: int) -> tuple[Any, ...] | None:
        if self._total_residuals is None or not self._total_residuals.skips or not self._is_own_thread:
            return None
        self._wait_for_residuals()
        added, h = self._total_residuals.skips[index], args[0].clone()
        h[:, -added.shape[1] :] += added
        return h, *args[1:]


_guided_unets: set[int] = set()  # UNets, by id
_guided_lock = threading.Lock()


@contextmanager
def _claim_unet(unet: Any) -> Iterator[None]:
    with _guided_lock:
        if id(unet) in _guided_unets:
            raise RuntimeError("the UNet is guided already; put all units into one guide")
        _guided_unets.add(id(unet))
    try:
        yield
    finally:
        with _guided_lock:
            _guided_unets.remove(id(unet))


def _prepare_unit(unit: Any, unet: LdmUNetView) -> HintImages:
    """The maps of a unit that fits the UNet."""
    if not isinstance(unit, Unit):
        raise TypeError(f"a {type(unit).__name__}, expected a Unit")
    unit.model.bind(unet)
    maps = HintImages(unit)
    maps.configure_model(unit.model)
    return maps
