"""Units in stable-diffusion-webui's own sampling: a wrapper of one request's `sample`, and hooks on the UNet while it
runs.

The host logs the errors of a script's callback and goes on, so nothing here relies on a callback to stop a generation:
errors are raised by `sample` itself, or by the UNet's next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np

from ..guidance.after_steps import NoiseLevel
from ..guidance.schedule import Span
from ..guidance.unit import Unit
from ..hosts.ldm.guide import BatchRows, LdmGuide, guide_ldm
from ..hosts.ldm.host import VAE_SCALE_FACTOR, encode_ldm_image
from ..hosts.session import Box
from ..maps.resize import fit
from ..sdwebui.build import BuiltUnit, find_initial_noise_image


class ImageNoiseRNG:
    """Random numbers of a request (the host's `ImageRNG`) whose first noise contains an image; the request's own
    generator makes all others."""

    def __init__(self, p: Any, pixels: np.ndarray):
        self._p, self._pixels, self._rng = p, pixels, p.rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)

    def next(self) -> Any:
        """Return noise `(B, C, h, w)` with as much of the image in it as training has at its last timestep."""
        self._p.rng = self._rng
        noise = self._rng.next()
        height, width = (side * VAE_SCALE_FACTOR for side in noise.shape[-2:])
        latents = encode_ldm_image(self._p.sd_model, fit(self._pixels, height, width, "crop"), noise.device).to(noise)
        signal = float(self._p.sd_model.alphas_cumprod[-1]) ** 0.5
        return NoiseLevel("epsilon", signal, (1 - signal**2) ** 0.5).add_noise(latents, noise)


@contextmanager
def inject_initial_noise(p: Any, pixels: np.ndarray | None) -> Iterator[None]:
    """Make the first noise of the request `p` contain the image (H, W, 3), in this context; None changes nothing."""
    if pixels is None:
        yield
        return
    p.rng = rng = ImageNoiseRNG(p, pixels)
    try:
        yield
    finally:
        if p.rng is rng:
            p.rng = rng._rng


class TileHint:
    """One axis of the hint of a stand-in for a ControlNet, by which Tiled Diffusion tells the places of its tiles.

    That extension (pkuliyi2015/multidiffusion-upscaler-for-automatic1111 @ 22798f6, tile_methods/abstractdiffusion.py)
    reads `hint_cond` `(1, C, H, W)` of the whole image, and before each UNet call sets it to the parts that belong to
    the call, `(rows, C, h, w)`, or back to the whole. Here each pixel has its own place along the axis as its value,
    so that a part tells where it was cut out. `axis` is -1 for columns, -2 for rows.
    """

    def __init__(self, p: Any, axis: int):
        self._p, self._axis = p, axis
        self.places: list[int] = []
        """The first column or row of each of the parts, nothing for the whole image."""
        self.part_size = (0, 0)
        """Height and width of the parts in pixels."""

    @property
    def hint_cond(self) -> Any:
        """The places of all pixels of the image, `(1, 1, H, W)`, without memory for each."""
        import torch

        size = int(self._p.height), int(self._p.width)
        places = torch.arange(size[self._axis], dtype=torch.int16)
        return (places if self._axis == -1 else places[:, None]).expand(1, 1, *size)

    @hint_cond.setter
    def hint_cond(self, parts: Any) -> None:
        """Take note of the parts `(rows, 1, h, w)` that belong to the next UNet call."""
        self.part_size = tuple(parts.shape[-2:])
        is_whole = self.part_size == (int(self._p.height), int(self._p.width))
        self.places = [] if is_whole else parts[:, 0, 0, 0].tolist()


class TiledNetwork:
    """A stand-in for the control network of a request `p`, for Tiled Diffusion to find."""

    def __init__(self, p: Any):
        self.control_params = (TileHint(p, -1), TileHint(p, -2))

    def find_tiles(self) -> list[Box]:
        """Return the boxes of the tiles in the present UNet call, in its order, nothing for the whole image."""
        columns, rows = self.control_params
        height, width = columns.part_size
        corners = dict.fromkeys(zip(columns.places, rows.places, strict=True))
        return [(left, top, left + width, top + height) for left, top in corners]


class GuidanceError(ValueError):
    """The reason why there is no image, in one line. The host shows it, and its HTTP API reads `status_code` and
    `detail` from the exception's own attributes."""

    def __init__(self, message: str):
        super().__init__(message)
        self.status_code, self.detail = 422, message


class GuidedSampler:
    """A replacement of one request's `sample`, guided by the units that `build_units` returns when the sampling
    begins."""

    def __init__(self, p: Any, build_units: Callable[[], Sequence[BuiltUnit]], network: TiledNetwork):
        self.p, self._original_sample, self._build_units, self._network = p, p.sample, build_units, network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _wrap_errors():
            built_units = self._build_units()
            if not built_units:
                return self._original_sample(*args, **kwargs)
            hires = bool(getattr(self.p, "enable_hr", False))
            units = [unit for each in built_units for unit in each.split_by_pass(hires)]
            noise_image = find_initial_noise_image(built_units, hires)
            with _guide_units(self.p, units, self._network), inject_initial_noise(self.p, noise_image):
                return self._original_sample(*args, **kwargs)

    def restore(self, p: Any) -> None:
        """Give `p`, which is this request or a copy of it, its own `sample` back."""
        del p.sample
        if self._original_sample != p.sample and p is self.p:
            p.sample = self._original_sample


def guide_sampling(p: Any, build_units: Callable[[], Sequence[BuiltUnit]]) -> TiledNetwork:
    """Guide the samples of the request `p` by the units that `build_units` returns; an empty list guides nothing.
    Errors end the generation; those of this project that refuse something are raised as GuidanceError. Return what
    tells the places of tiles, if another extension draws the image in tiles.
    """
    stop_guiding(p)
    network = TiledNetwork(p)
    p.sample = GuidedSampler(p, build_units, network)
    return network


def stop_guiding(p: Any) -> None:
    """Undo `guide_sampling`, also on a copy of its request."""
    sample = vars(p).get("sample")
    if isinstance(sample, GuidedSampler):
        sample.restore(p)


@contextmanager
def _wrap_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
        if isinstance(error, GuidanceError) or not _is_own_error(error):
            raise
        raise GuidanceError(f"ControlNet: {error}") from error


def _is_own_error(error: BaseException) -> bool:
    """True if the error was raised in this project, and not by the host's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    root = __name__.partition(".")[0]
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == root


@contextmanager
def _guide_units(p: Any, units: Sequence[Unit], network: TiledNetwork) -> Iterator[None]:
    from modules import script_callbacks, sd_unet

    if sd_unet.current_unet is not None:
        name = sd_unet.current_option.label if sd_unet.current_option else type(sd_unet.current_unet).__name__
        raise ValueError(
            f"the UNet is replaced by {name!r}, which cannot be guided; choose SD Unet: None in the settings"
        )
    with ExitStack() as guides:
        calls = _DenoiserBridge(p, units, guides, network)
        script_callbacks.on_cfg_denoiser(calls.on_cfg_denoiser)
        guides.callback(script_callbacks.remove_callbacks_for_function, calls.on_cfg_denoiser)
        calls.guide_checkpoint(p.sd_model)
        yield


class _DenoiserBridge:
    """The connection from the host's denoiser to the guide: it announces each step's rows."""

    def __init__(self, p: Any, units: Sequence[Unit], exit_stack: ExitStack, network: TiledNetwork):
        self._p, self._units, self._exit_stack, self._network = p, units, exit_stack, network
        self._unet: Any = None
        self._guide: LdmGuide | None = None
        self._denoiser: Any = None
        self._spans: list[Span] = []

    def guide_checkpoint(self, model: Any) -> None:
        """Guide this checkpoint's UNet."""
        self._unet = model.model.diffusion_model
        self._guide = self._exit_stack.enter_context(
            guide_ldm(self._unet, self._units, model, self._network.find_tiles)
        )
        self._denoiser = None

    def on_cfg_denoiser(self, params: Any) -> None:
        """Announce a step of the host. An error here would only be logged, so the UNet raises it."""
        denoiser = params.denoiser
        if denoiser.p is not self._p:
            return
        try:
            self._announce_step(denoiser, params.x)
        except Exception as error:
            self._raise_in_unet(error)

    def _raise_in_unet(self, error: Exception) -> None:
        from modules import shared

        def before(*_: Any) -> None:
            raise error

        unet = shared.sd_model.model.diffusion_model
        self._exit_stack.callback(unet.register_forward_pre_hook(before, prepend=True).remove)

    def _announce_step(self, denoiser: Any, x: Any) -> None:
        from modules import shared

        if shared.sd_model.model.diffusion_model is not self._unet:  # the refiner has taken over
            self.guide_checkpoint(shared.sd_model)
        assert self._guide is not None
        if denoiser is not self._denoiser:
            total = max(denoiser.total_steps or self._p.steps, 1)
            self._denoiser, self._spans = denoiser, [Span(i / total, (i + 1) / total) for i in range(total)]
            self._guide.begin(self._spans, int(bool(getattr(self._p, "is_hr_pass", False))))
        self._guide.announce_step(
            replace(
                describe_batch_rows(denoiser, len(x), self._spans[min(denoiser.step, len(self._spans) - 1)]),
                latent_size=tuple(x.shape[-2:]),
            )
        )


def describe_batch_rows(denoiser: Any, row_count: int, span: Span) -> BatchRows:
    """Return the rows of a step: each image's prompts (several where the prompt has AND), then each image's negative
    prompt, twice for InstructPix2Pix. The host may drop the last rows or split them over several calls, but keeps
    their order (AUTOMATIC1111 1.10.1, modules/sd_samplers_cfg_denoiser.py, forward). Raises ValueError for another
    number of rows."""
    prompts = [len(each) for each in denoiser.sampler.sampler_extra_args["cond"].batch]
    count = len(prompts)
    positive = [i for i, n in enumerate(prompts) for _ in repeat(None, n)]
    negative, odd = divmod(row_count - len(positive), count)
    if odd or negative not in (1, 2):
        raise ValueError(f"the host asks for {row_count} rows for {len(positive)} prompts of {count} images")
    images = [*positive, *[*range(count)] * negative]
    return BatchRows(span, images, [i < len(positive) for i in range(row_count)])
