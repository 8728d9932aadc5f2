"""Units in stable-diffusion-webui's own sampling: a wrapper of one request's `sample`, hooks on the UNet while it runs.

The host logs what a script's callback raises and goes on without it, so nothing here relies on a callback to stop a
generation: what cannot be guided is raised by `sample` itself, or by the UNet's next call.

Where a run begins in stable-diffusion-webui: with a picture in its noise, as inpaint_only+lama wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

import numpy as np

from ..guidance.after_steps import Noise
from ..guidance.contract import Span
from ..guidance.unit import Unit
from ..hosts.ldm.guide import LdmGuide, Rows, guide_ldm
from ..hosts.ldm.host import FACTOR, encoded
from ..maps.resize import fit
from ..sdwebui.build import Guided, beginning_of


class Beginning:
    """A request's random numbers (the host's `ImageRNG`), the first of which hold a picture; the others come from the
    request's own again."""

    def __init__(self, p: Any, pixels: np.ndarray):
        self._p, self._pixels, self._rng = p, pixels, p.rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)

    def next(self) -> Any:
        """Noise `(B, C, h, w)` with as much of the picture in it as training has at its last timestep."""
        self._p.rng = self._rng
        noise = self._rng.next()
        height, width = (side * FACTOR for side in noise.shape[-2:])
        picture = encoded(self._p.sd_model, fit(self._pixels, height, width, "crop"), noise.device).to(noise)
        signal = float(self._p.sd_model.alphas_cumprod[-1]) ** 0.5
        return Noise("epsilon", signal, (1 - signal**2) ** 0.5).noisy(picture, noise)


@contextmanager
def beginning_with(p: Any, pixels: np.ndarray | None) -> Iterator[None]:
    """In this context the first noise that the request `p` draws holds the picture (H, W, 3), if there is one."""
    if pixels is None:
        yield
        return
    p.rng = changed = Beginning(p, pixels)
    try:
        yield
    finally:
        if p.rng is changed:
            p.rng = changed._rng


class Refused(ValueError):
    """Why there is no picture, in one line. The host shows it, and its HTTP API looks for `status_code` and `detail` in
    the exception's own attributes."""

    def __init__(self, words: str):
        super().__init__(words)
        self.status_code, self.detail = 422, words


class GuidedSample:
    """`p.sample` of one request, guided by what `made` gives when the sampling begins."""

    def __init__(self, p: Any, made: Callable[[], Sequence[Guided]]):
        self.p, self._sample, self._made = p, p.sample, made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _sentences():
            made = self._made()
            if not made:
                return self._sample(*args, **kwargs)
            hires = bool(getattr(self.p, "enable_hr", False))
            units = [unit for each in made for unit in each.units(hires)]
            with _guided(self.p, units), beginning_with(self.p, beginning_of(made, hires)):
                return self._sample(*args, **kwargs)

    def remove(self, p: Any) -> None:
        """Give `p`, which is this request or a copy of it, its own `sample` back."""
        del p.sample
        if self._sample != p.sample and p is self.p:
            p.sample = self._sample


def guide_samples(p: Any, made: Callable[[], Sequence[Guided]]) -> None:
    """From now on the samples of the request `p` are guided, by nothing where `made` gives none. What `made` raises,
    and what cannot be guided, ends the generation: a ValueError, TypeError or FileNotFoundError as `Refused`."""
    release(p)
    p.sample = GuidedSample(p, made)


def release(p: Any) -> None:
    """Undo `guide_samples`, also on a copy of its request."""
    sample = vars(p).get("sample")
    if isinstance(sample, GuidedSample):
        sample.remove(p)


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError) as error:
        if isinstance(error, Refused) or not _ours(error):
            raise
        raise Refused(f"ControlNet: {error}") from error


def _ours(error: BaseException) -> bool:
    """Whether it was raised in this project, and not by the host's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    root = __name__.partition(".")[0]
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == root


@contextmanager
def _guided(p: Any, units: Sequence[Unit]) -> Iterator[None]:
    from modules import script_callbacks, sd_unet

    if sd_unet.current_unet is not None:
        name = sd_unet.current_option.label if sd_unet.current_option else type(sd_unet.current_unet).__name__
        raise ValueError(
            f"the UNet is replaced by {name!r}, which cannot be guided; choose SD Unet: None in the settings"
        )
    with ExitStack() as guides:
        calls = _Calls(p, units, guides)
        script_callbacks.on_cfg_denoiser(calls.asked)
        guides.callback(script_callbacks.remove_callbacks_for_function, calls.asked)
        calls.enter(p.sd_model)
        yield


class _Calls:
    """What the host's denoiser asks of the UNet, told to the guide."""

    def __init__(self, p: Any, units: Sequence[Unit], guides: ExitStack):
        self._p, self._units, self._guides = p, units, guides
        self._unet: Any = None
        self._guide: LdmGuide | None = None
        self._denoiser: Any = None
        self._spans: list[Span] = []

    def enter(self, model: Any) -> None:
        """Guide this checkpoint's UNet."""
        self._unet = model.model.diffusion_model
        self._guide = self._guides.enter_context(guide_ldm(self._unet, self._units, model))
        self._denoiser = None

    def asked(self, params: Any) -> None:
        """Before each step of the host. An error here would only be logged: the UNet raises it."""
        denoiser = params.denoiser
        if denoiser.p is not self._p:
            return
        try:
            self._told(denoiser, len(params.x))
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        from modules import shared

        def before(*_: Any) -> None:
            raise error

        unet = shared.sd_model.model.diffusion_model
        self._guides.callback(unet.register_forward_pre_hook(before, prepend=True).remove)

    def _told(self, denoiser: Any, rows: int) -> None:
        from modules import shared

        if shared.sd_model.model.diffusion_model is not self._unet:  # the refiner has taken over
            self.enter(shared.sd_model)
        assert self._guide is not None
        if denoiser is not self._denoiser:
            total = max(denoiser.total_steps or self._p.steps, 1)
            self._denoiser, self._spans = denoiser, [Span(i / total, (i + 1) / total) for i in range(total)]
            self._guide.begin(self._spans, int(bool(getattr(self._p, "is_hr_pass", False))))
        self._guide.expect(rows_of(denoiser, rows, self._spans[min(denoiser.step, len(self._spans) - 1)]))


def rows_of(denoiser: Any, rows: int, span: Span) -> Rows:
    """The rows of a step: each picture's prompts (several where the prompt has AND), then each picture's negative
    prompt, which InstructPix2Pix asks for twice. The host may drop the last ones or ask for them in several calls, but
    keeps their order (AUTOMATIC1111 1.10.1, modules/sd_samplers_cfg_denoiser.py, forward)."""
    prompts = [len(each) for each in denoiser.sampler.sampler_extra_args["cond"].batch]
    count = len(prompts)
    positive = [i for i, n in enumerate(prompts) for _ in repeat(None, n)]
    negative, odd = divmod(rows - len(positive), count)
    if odd or negative not in (1, 2):
        raise ValueError(f"the host asks for {rows} rows for {len(positive)} prompts of {count} pictures")
    pictures = [*positive, *[*range(count)] * negative]
    return Rows(span, pictures, [i < len(positive) for i in range(rows)])
