"""Everything that hosts share: the units of a guide, the run they are in, and the guided UNet.

A host subclasses `GuideSession`, or uses it as it is. For each UNet call it builds a `Step` in its own way and then:

    guided.claim_call()
    guided.start_call(x, is_new_run)
    total = guided.sum_residuals([session.compute_residuals(step, read_noise_level)], x.device)
    out = ...                    # the UNet's output with `total` added, after guided.wait()
    out = guided.finish_call(out)

inside `with session.enter(unet, GuidedUNet(unet))`, and calls `session.begin_run(spans, host)` whenever a run begins.
`tests/hosts/test_toy_host.py` is a whole host on a bare UNet.

What a call shows decides what it gets, here for all hosts: the whole image has the maps, a part of which somebody tells
the place (`Step.crops`, `crop_maps`) has its part of them, and any other call is refused.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ContextDecorator, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from itertools import chain, count
from numbers import Real
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import error_prefix, quote_value
from ..guidance.after_steps import NoiseLevel
from ..guidance.contract import AttentionModel, Crop, Host, Residuals, Step, UndoStack, UNet
from ..guidance.hints import HintImages
from ..guidance.run import AttachmentStack, GuidanceRun, move_to_device
from ..guidance.schedule import Span
from ..guidance.unit import Unit
from .side_stream import SideStream

P = ParamSpec("P")
T = TypeVar("T")


class GuideContext(ContextDecorator, AbstractContextManager[T]):
    """A context manager that warns when it is thrown away without having been entered, because it then does nothing."""

    _is_used = True  # before `__init__` is done

    def __init__(self, make: Callable[[], AbstractContextManager[T]], name: str):
        self._make, self._name = make, name
        self._context: AbstractContextManager[T] | None = None
        self._is_used = False

    def __enter__(self) -> T:
        self._is_used = True
        self._context = self._make()
        return self._context.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        assert self._context is not None
        return self._context.__exit__(*error)

    def _recreate_cm(self) -> GuideContext[T]:
        """Return the context of one call of the function that this decorates."""
        self._is_used = True
        return GuideContext(self._make, self._name)

    def __del__(self) -> None:
        if not self._is_used:
            warnings.warn(f"{self._name} was not entered and does nothing: with {self._name}: …", stacklevel=2)


def guide_context(function: Callable[P, Iterator[T]]) -> Callable[P, GuideContext[T]]:
    """Make a function that yields once a `GuideContext`, as `contextlib.contextmanager` does."""

    @wraps(function)
    def make_context(*args: P.args, **kwargs: P.kwargs) -> GuideContext[T]:
        return GuideContext(lambda: contextmanager(function)(*args, **kwargs), f"{function.__name__}(...)")

    return make_context


BUSY_MESSAGE = (
    "the UNet is guided in another thread or task; wait until that is done, or give each one a UNet of its own "
    "(asyncio.to_thread takes the guide of its task along)"
)


PLACE_ADVICE = "tell the place with crop_maps(box, image_size) around the call"

Box = tuple[int, int, int, int]
_announced_boxes: ContextVar[tuple[tuple[Box, ...], tuple[int, int]] | None] = ContextVar(
    "announced_boxes", default=None
)


@contextmanager
def crop_maps(boxes: Box | Sequence[Box], image_size: tuple[int, int]) -> Iterator[None]:
    """Tell guides that calls in this context show a part of the image, and cut the maps, regions and masks to it.

    `boxes` is (left, top, right, bottom) in pixels of an image whose `image_size` is (width, height), as in Pillow. A
    list has one box for each row of the UNet's batch, and is repeated if the batch has several times as many rows. The
    part may be drawn at another size than it has in the image. The context is for tiles: of a loop of one's own
    around `pipe` or `pipe.unet`. Raises TypeError for other values, ValueError for a box that is empty or not inside
    the image.
    """
    given = [boxes] if all(isinstance(side, Real) for side in boxes) else boxes
    several = tuple(cast("Box", _read_whole_numbers("box", box, 4)) for box in given)
    width, height = _read_whole_numbers("image_size", image_size, 2)
    for box in several:
        Crop((height, width), box, (1, 1))
    if not several:
        raise ValueError("crop_maps has no box; give one (left, top, right, bottom), or one for each row")
    token = _announced_boxes.set((several, (height, width)))
    try:
        yield
    finally:
        _announced_boxes.reset(token)


def _read_whole_numbers(name: str, values: object, count: int) -> tuple[int, ...]:
    """Return `count` whole numbers as a tuple of int. Raises TypeError for anything else."""
    numbers = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else ()
    if len(numbers) != count or not all(isinstance(number, Real) and float(number).is_integer() for number in numbers):
        raise TypeError(f"{name} {quote_value(values)}: expected {count} whole numbers of pixels")
    return tuple(int(float(number)) for number in numbers)


class GuideSession:
    """The units of one guide, and the run that they are in.

    `unet` is the UNet in diffusers' words. Images are read, and models bound to the UNet, at once. Raises TypeError
    or ValueError, which name the unit by its place from 1, for a unit that cannot act.
    """

    def __init__(self, units: Iterable[Unit], unet: UNet):
        if isinstance(units, Unit):
            raise TypeError("units is one Unit, expected a list of them")
        self.units = list(units)
        self.run_count = 0
        self._hint_images = []
        for i, unit in enumerate(self.units, 1):
            with error_prefix(f"unit {i}"):
                self._hint_images.append(self._prepare_unit(unit, unet))
        self._moved_models = UndoStack()
        self._attachments, self._number = AttachmentStack(), 0
        self._run: GuidanceRun | None = None
        self._are_models_placed = False
        self._post_step: tuple[Step, NoiseLevel] | None = None  # of the present call, if a unit acts after it
        self._run_host: Host | None = None
        self._image_size: tuple[int, int] | None = None
        self._first_of_step: Step | None = None  # the first call of the present step that nobody placed

    def check_unit(self, unit: Unit) -> None:
        """Check that the host can run a unit. Raises ValueError if it cannot. Hosts override it."""

    def _prepare_unit(self, unit: object, unet: UNet) -> HintImages:
        if not isinstance(unit, Unit):
            raise TypeError(f"a {type(unit).__name__}, expected a Unit")
        self.check_unit(unit)
        unit.model.bind(unet)
        hint_images = HintImages(unit)
        hint_images.configure_model(unit.model)
        return hint_images

    @property
    def has_attention_units(self) -> bool:
        """True if a unit acts inside the UNet's attention."""
        return any(isinstance(unit.model, AttentionModel) for unit in self.units)

    @property
    def is_running(self) -> bool:
        """True between `begin_run` and `end_run`."""
        return self._run is not None

    @property
    def has_active_units(self) -> bool:
        """True in a run in which a unit acts."""
        return self._run is not None and self._run.has_active_units

    @contextmanager
    def enter(self, unet: object, create: Callable[[], GuidedUNet]) -> Iterator[GuidedUNet]:
        """Guide `unet`, for which `create()` makes the object unless it is guided already; afterwards everything is as
        before, also where entering or leaving is interrupted.

        On leaving, attention is restored first, then hooks are removed, then models return to their devices. Raises
        RuntimeError if the UNet is guided in another thread or task, or by a host that does not nest.
        """
        undo = UndoStack()
        try:
            try:
                yield self._enter(unet, create(), undo)
            finally:
                undo.close()
        finally:
            undo.close()  # goes on where an interrupt broke it off

    def _enter(self, unet: object, created: GuidedUNet, undo: UndoStack) -> GuidedUNet:
        undo.push(self._moved_models.close)
        undo.push(lambda: self._leave(unet))
        created.sessions.append(self)  # before others see it: a guided UNet without sessions belongs to nobody
        guided = _guided_unets.setdefault(unet, created)
        if guided is not created:
            guided.check_nesting(self)
            guided.sessions.append(self)
        self._attachments, self._number = guided.attachments, next(guided.session_numbers)
        undo.push(lambda: _entered_sessions.set(tuple(ref for ref in _entered_sessions.get() if ref() is not self)))
        _entered_sessions.set((*_entered_sessions.get(), weakref.ref(self)))
        guided.check_owner()  # another thread of a copied context may have entered at the same time
        if guided is created:
            guided.install()
        return guided

    def _leave(self, unet: object) -> None:
        guided = _guided_unets.get(unet)
        if guided is None or self not in guided.sessions:
            return
        self.end_run()
        if guided.sessions == [self]:
            guided.uninstall()
            _guided_unets.pop(unet, None)  # before its sessions are none
        guided.sessions.remove(self)

    def begin_run(
        self,
        spans: Sequence[Span],
        host: Host,
        pass_index: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        """Begin a run of these steps; `pass_index` counts runs from 0, by default those of this session.

        `image_size` is height and width of the whole image in pixels, None for those of the run's first call. Raises
        ValueError if a unit would act in none of the steps.
        """
        self.end_run()
        index = self.run_count if pass_index is None else pass_index
        self._run = GuidanceRun(self.units, self._hint_images, spans, host, index, self._attachments, self._number)
        self._run_host, self._image_size = host, image_size
        self.run_count += 1

    def end_run(self) -> None:
        """End the run, if there is one; restore the UNet's attention."""
        self.detach()
        self._run, self._post_step, self._are_models_placed = None, None, False
        self._run_host = None
        self._image_size, self._first_of_step = None, None

    def compute_residuals(self, step: Step, read_noise_level: Callable[[], NoiseLevel]) -> Iterator[Residuals]:
        """Return an iterator over the residuals of each unit in this step.

        `read_noise_level()` is called if a unit acts after the step. Models move to the device of `step.x` in the
        first step of a run. Raises RuntimeError outside of a run.
        """
        if self._run is None:
            raise RuntimeError("the UNet is called outside of a run; no unit can act there")
        if self._run.has_active_units:
            step = self.place_call(step)
        if not self._are_models_placed:
            self._are_models_placed = True
            for unit in self.units:
                device = torch.device("cpu") if unit.low_vram else step.x.device
                move_to_device(unit.model, device, self._moved_models)
        self._post_step = (step, read_noise_level()) if self._run.has_post_step(step) else None
        return self._run.compute_residuals(step)

    def place_call(self, step: Step) -> Step:
        """Return the step with the part of the image that each row shows, nothing if it shows the whole image.

        Raises ValueError if the call shows a part of which nobody tells the place.
        """
        assert self._run_host is not None
        size = self._run_host.pixel_size
        crops = find_announced_crops(len(step.x), size)
        if crops:
            if step.crops and step.crops != crops:
                raise ValueError("crop_maps tells the place of a call that the pipeline crops itself; use one of them")
            return replace(step, crops=crops)
        if step.crops:
            if len(step.crops) != len(step.x) or any(crop.size != size for crop in step.crops):
                raise ValueError(f"the host places {len(step.crops)} parts for a call of {_describe(step, size)}")
            return step
        if self._image_size is None:
            self._image_size = size
        if size != self._image_size:
            height, width = self._image_size
            raise ValueError(
                f"the model is called with {_describe(step, size)} in a run of {width}x{height} pixels; {PLACE_ADVICE}"
            )
        if step.crops is None:
            self._check_same_image(step)
        return replace(step, crops=())

    def _check_same_image(self, step: Step) -> None:
        """Raise ValueError if a further call of a step shows other latents than the first: tiles of one size do."""
        first = self._first_of_step
        if first is None or first.span != step.span:
            self._first_of_step = step
        elif not _are_rows_known(step.x, first.x):
            raise ValueError(
                "the model is called several times in one step with different latents of the same size, as in a loop "
                f"over tiles; {PLACE_ADVICE}"
            )

    def check_finite(self) -> None:
        """Raise ValueError if the residuals of the present call are not finite."""
        if self._run is not None:
            self._run.check_finite()

    def apply_post_steps(self, out: Tensor) -> Tensor:
        """Return the UNet's output `(B, C, h, w)` of the present call, changed by units that act after it."""
        if self._post_step is None or self._run is None:
            return out
        step, noise_level = self._post_step
        return self._run.apply_post_steps(step, out, noise_level)

    def detach(self) -> None:
        """Restore the UNet's attention from this session's units on; the next step attaches again."""
        self._attachments.detach_from((self._number, 0))


class GuidedUNet:
    """A UNet while it is guided: its sessions in order of entry, what is attached to it, its side stream.

    It belongs to the thread and task that entered the sessions, and to threads to which `asyncio.to_thread` takes their
    context; the calls of one run come from one thread. Hosts that install hooks subclass it: `install` records in
    `undo` what `uninstall` undoes.
    """

    def __init__(self, unet: nn.Module):
        self.unet = unet
        self.sessions: list[GuideSession] = []
        self.session_numbers = count()
        self.attachments = AttachmentStack(self._prepare_copy)
        self.undo = UndoStack()
        self.side_stream: SideStream | None = None
        self._run_thread: int | None = None
        self._call_thread: int | None = None  # of the present call
        self._is_copied_in_call = False
        self._geometry: tuple[object, ...] | None = None

    @property
    def is_in_call(self) -> bool:
        """True in the thread of the present call; a call of another thread may have begun before the guide did."""
        return threading.get_ident() == self._call_thread

    def check_owner(self) -> None:
        """Raise RuntimeError unless all sessions were entered in this thread and task, and no other thread calls."""
        entered = [session for ref in _entered_sessions.get() if (session := ref()) in self.sessions]
        if entered != self.sessions or self._call_thread not in (None, threading.get_ident()):
            raise RuntimeError(BUSY_MESSAGE)

    def check_nesting(self, session: GuideSession) -> None:
        """Check that one more session may enter. Raises RuntimeError if not; hosts that nest override it."""
        self.check_owner()
        raise RuntimeError("the UNet is guided already; put all units into one guide")

    def claim_call(self) -> None:
        """Begin a UNet call in this thread. Raises RuntimeError in another thread or task than the sessions'."""
        self.check_owner()
        self._call_thread, self._is_copied_in_call = threading.get_ident(), False

    def start_call(self, x: Tensor, is_new_run: bool, crops: tuple[Crop, ...] | None = None) -> None:
        """Continue a claimed call with its `x`, whose rows show these parts if the host tells it.

        Attention is restored when the shape of `x` or what it shows changes, or a run begins. Raises RuntimeError in
        another thread than that in which the run began.
        """
        if is_new_run:
            self._run_thread = self._call_thread
        elif self._run_thread not in (None, self._call_thread):
            raise RuntimeError(BUSY_MESSAGE)
        geometry = tuple(x.shape), crops, _announced_boxes.get()
        if is_new_run or geometry != self._geometry:
            self.detach()
            self._geometry = geometry

    def sum_residuals(
        self,
        residuals: Iterable[Iterable[Residuals]],
        device: torch.device,
        initial: Residuals | None = None,
        may_overlap: bool = True,
    ) -> Residuals | None:
        """Return `initial` plus the residuals of all sessions, None if there are none.

        On a CUDA device they are computed on a stream of their own, for which `wait()` waits, unless `may_overlap` is
        False or a unit acts inside the attention, which runs before the residuals are read.
        """
        overlaps = may_overlap and not any(session.has_attention_units for session in self.sessions)
        self.side_stream = (self.side_stream or open_side_stream(device)) if overlaps else None
        total = initial
        with nullcontext() if self.side_stream is None else self.side_stream.activate():
            for each in chain.from_iterable(residuals):
                total = each if total is None else total + each
        return total

    def wait(self) -> None:
        """Wait for the residuals of the present call, before they are read."""
        if self.side_stream is not None:
            self.side_stream.wait()

    def finish_call(self, out: Tensor) -> Tensor:
        """Return the UNet's output `(B, C, h, w)` of the present call, changed by units that act after the step.

        Raises ValueError if residuals of the call are not finite, which waits for the device; RuntimeError if the UNet
        was copied during the call.
        """
        self.wait()
        if self._is_copied_in_call:
            raise RuntimeError(
                "the UNet was copied during its call, which takes units out of it; copy it between calls"
            )
        for session in self.sessions:
            session.check_finite()
        for session in self.sessions:
            out = session.apply_post_steps(out)
        self.end_call()
        return out

    def end_call(self) -> None:
        """End the present call, also one that failed."""
        self._call_thread = None

    def detach(self) -> None:
        """Restore the UNet's attention; units attach again when they act next."""
        self.attachments.close()

    def install(self) -> None:
        """Install the hooks of the host, when the first session enters; hosts that have any override it.

        Copies and pickles of the UNet are plain from here on.
        """
        self.undo.make_copies_plain(self.unet, self._prepare_copy)

    def _prepare_copy(self) -> None:
        """Restore the attention before the UNet is copied. Raises RuntimeError in another thread or task."""
        if self.attachments:
            self.check_owner()
            self._is_copied_in_call = self.is_in_call
            self.detach()

    def uninstall(self) -> None:
        """Undo the hooks of the host, when the last session leaves."""
        self.undo.close()


def find_announced_crops(row_count: int, size: tuple[int, int]) -> tuple[Crop, ...]:
    """Return the part that each row of a call of this height and width shows by `crop_maps`, nothing outside of it.

    Raises ValueError if there is another number of rows than of boxes, or of several times as many.
    """
    announced = _announced_boxes.get()
    if announced is None:
        return ()
    boxes, image_size = announced
    times, odd = divmod(row_count, len(boxes))
    if odd:
        raise ValueError(f"crop_maps has {len(boxes)} boxes for {row_count} rows; give one for each row, or one box")
    return tuple(Crop(image_size, box, size) for box in boxes) * times


def _describe(step: Step, size: tuple[int, int]) -> str:
    return f"{len(step.x)} rows of {size[1]}x{size[0]} pixels"


def _are_rows_known(x: Tensor, others: Tensor) -> bool:
    """Return True if each row of `x` `(B, ...)` is equal to one of `others` `(n, ...)`."""
    return x.shape[1:] == others.shape[1:] and all(any(torch.equal(row, other) for other in others) for row in x)


def check_feature_shape(place: str, features: Tensor, residual: Tensor) -> None:
    """Check that a residual `(B, C, h, w)` belongs to the features `(B, ..., h, w)` of the UNet at this place.

    A residual of 1x1 is the same all over the image. Raises ValueError if rows or size differ, as where an extension
    scales features inside the UNet.
    """
    if residual.ndim == 0:
        return
    size = features.shape[-2:] if residual.shape[-2:] == (1, 1) else residual.shape[-2:]
    if (len(features), *features.shape[-2:]) != (len(residual), *size):
        raise ValueError(
            f"the UNet has features of {_describe_features(features)} at {place}, where residuals of "
            f"{_describe_features(residual)} are to be added: something scales them inside, as Deep Shrink (Kohya's "
            "hires fix) does; switch that off"
        )


def _describe_features(h: Tensor) -> str:
    return f"{len(h)} rows of {h.shape[-1]}x{h.shape[-2]}"


# Without a lock, which an interrupt could leave locked: dict.setdefault is one operation to other threads.
_guided_unets: dict[object, GuidedUNet] = {}
# Contexts are copied for tasks and by asyncio.to_thread, but what they enter afterwards is their own.
_entered_sessions: ContextVar[tuple[weakref.ref[GuideSession], ...]] = ContextVar("entered_sessions", default=())


def open_side_stream(device: torch.device) -> SideStream | None:
    """Return a side stream on a CUDA device, None on devices that have no streams."""
    return SideStream(device, torch.cuda) if device.type == "cuda" else None
