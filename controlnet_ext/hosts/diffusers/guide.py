"""Units in diffusers pipelines: a pre-hook on the UNet, which the pipeline does not notice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from torch import Tensor

from ...errors import error_prefix
from ...guidance.after_steps import NoiseLevel
from ...guidance.contract import AttentionModel, Residuals, Step
from ...guidance.devices import on_device
from ...guidance.hints import HintImages
from ...guidance.run import GuidanceRun
from ...guidance.schedule import Span
from ...guidance.unit import Unit
from ...models.kinds.transformer import TransformerControlNet
from .hook import install_hook, is_compiled, unwrap_compiled
from .host import DiffusersHost, read_noise_level
from .transformer_call import TRANSFORMER_NAMES
from .unet_call import StepCounter, UNetCall, find_prompted_copies, identify_rows

CPU = torch.device("cpu")
REFINER_ADDED_WIDTH = (
    2560  # width of its added vector: 1280 of the pooled prompt, 5 x 256 of sizes and score; the base has 6 x 256
)


@contextmanager
def guide(pipe: Any, units: Iterable[Unit]) -> Iterator[None]:
    """Calls of `pipe` in this context are guided by `units`; afterwards pipe, UNet and models are as before.

    `pipe` is any diffusers pipeline whose UNet is a UNet2DConditionModel or a UNetMotionModel: text, images,
    inpainting, SDXL, video; or whose transformer is SD3's, Flux's, Qwen-Image's or Z-Image's. It may be compiled,
    offloaded or carry LoRAs. Each call of it is one run, with its own fractions and hints. Guides nest: residuals add
    up in order of entry, after those that the pipe itself passes.
    A model on another device works on the pipe's, and goes back in the end.

    Images are read on entering. ValueError, TypeError or FileNotFoundError says what cannot act: a model that does
    not fit the UNet, a pipeline without a UNet, a window that holds no step (in the run's first step), a hint or
    residuals that are not finite (in that step). RuntimeError: another thread guides or calls the UNet; or, when the
    block ends, a run of the pipe's scheduler did not come through this UNet, or none came in which a unit may act, so
    that a picture has no guidance. A block in which nothing runs is legal."""
    unet = _get_guidable_unet(pipe)
    guiding = GuideSession(pipe, unet, units)
    with guiding.moved_models, install_hook(get_denoiser(pipe), guiding):
        yield
        guiding.check_all_guided()


class GuideSession:
    """One guide: its units, and the run they are in."""

    def __init__(self, pipe: Any, unet: Any, units: Iterable[Unit]):
        if isinstance(units, Unit):
            raise TypeError("units is one Unit, expected a list of them")
        self._units = list(units)
        self._hint_images = []
        for i, unit in enumerate(self._units, 1):
            with error_prefix(f"unit {i}"):
                self._hint_images.append(_prepare_unit(unit, unet, is_compiled(get_denoiser(pipe))))
        self.moved_models = ExitStack()  # back to where they were
        self._pipe, self._host = pipe, DiffusersHost(pipe, unet)
        self._last_schedule = pipe.scheduler, pipe.scheduler.timesteps
        self._run_count = 0
        self._run: tuple[GuidanceRun, StepCounter] | None = None
        self._cached_rows: tuple[Any, Any] = (None, None)
        self._post_step_call: tuple[Step, NoiseLevel] | None = None  # the present one, if a unit acts after it
        self._span: Span | None = None
        self._shared_residuals: list[Residuals] = []  # of a step, for its further calls

    def observe(self, call: UNetCall) -> bool:
        """Take note of a UNet call; whether a run begins with it."""
        begins = self._run is None or self._pipe.scheduler.timesteps is not self._run[1].timesteps
        self._last_schedule = self._pipe.scheduler, self._pipe.scheduler.timesteps
        self._host.observe(call, begins)
        return begins

    def compute_residuals(self, call: UNetCall, is_new_run: bool) -> Iterator[Residuals]:
        """What each unit adds in this UNet call."""
        if is_new_run or self._run is None:
            self._run = None
            clock = StepCounter(self._pipe, call.find_timestep(self._pipe.scheduler))
            for unit in self._units:
                self.moved_models.enter_context(on_device(unit.model, CPU if unit.low_vram else call.x.device))
            self._run = GuidanceRun(self._units, self._hint_images, clock.spans, self._host, self._run_count), clock
            self._run_count += 1
        run, clock = self._run
        before, self._span, self._post_step_call = self._span, clock.advance(), None
        span = self._span
        if call.shares_residuals and span is before and not is_new_run:
            return iter(self._shared_residuals)
        key = find_prompted_copies(self._pipe), len(call.x)
        if is_new_run or self._cached_rows[0] != key:
            self._cached_rows = key, identify_rows(key[0], call)
        step = call.build_step(span, *(self._cached_rows[1] if not clock.has_repeated_steps else (None, None)))
        if run.has_post_step(step):
            self._post_step_call = step, read_noise_level(self._pipe.scheduler, call.t.flatten()[0].item())
        if call.shares_residuals:
            self._shared_residuals = list(run.compute_residuals(step))
            return iter(self._shared_residuals)
        return run.compute_residuals(step)

    def check_finite(self) -> None:
        """ValueError when what a unit added in this UNet call was not finite."""
        if self._run is not None:
            self._run[0].check_finite()

    @property
    def has_attached_units(self) -> bool:
        """Whether a unit acts inside the UNet's attention."""
        return any(isinstance(unit.model, AttentionModel) for unit in self._units)

    def apply_post_steps(self, out: Tensor) -> Tensor:
        """The UNet's output as the units want it."""
        if self._post_step_call is None or self._run is None:
            return out
        (step, noise), frames = self._post_step_call, out.ndim == 5
        flat = out.transpose(1, 2).flatten(0, 1) if frames else out  # as in Call
        flat = self._run[0].apply_post_steps(step, flat, noise)
        return flat.unflatten(0, (len(out), -1)).transpose(1, 2) if frames else flat

    @property
    def is_last_step(self) -> bool:
        """Whether the present UNet call is the last of its run."""
        return self._run is not None and self._run[1].is_last_step

    def detach(self) -> None:
        """Undo what units did to the UNet's attention."""
        if self._run is not None:
            self._run[0].detach()

    def check_all_guided(self) -> None:
        """RuntimeError when a picture was made that a unit should have guided and could not."""
        name, (scheduler, timesteps) = type(self._pipe).__name__, self._last_schedule
        if self._units and scheduler is self._pipe.scheduler and timesteps is not scheduler.timesteps:
            raise RuntimeError(f"a run of {name} was not guided: it called another UNet than it had on entering")
        for i, unit in enumerate(self._units, 1):
            if self._run_count == 1 and unit.passes == "second" and unit.weight != 0:
                raise RuntimeError(f"unit {i} acts in the second run only, but {name} ran once")


def _prepare_unit(unit: Any, unet: Any, is_unet_compiled: bool) -> HintImages:
    """The maps of a unit that fits the UNet."""
    if not isinstance(unit, Unit):
        raise TypeError(f"a {type(unit).__name__}, expected a Unit")
    if is_unet_compiled and isinstance(unit.model, AttentionModel):
        raise ValueError(
            f"{unit.model.architecture} acts inside the UNet's attention, where torch.compile does not notice it; "
            "guide the UNet as it was before"
        )
    if type(unet).__name__ in TRANSFORMER_NAMES:
        _check_for_transformer(unit, type(unet).__name__)
    unit.model.bind(unet)
    maps = HintImages(unit)
    maps.configure_model(unit.model)
    return maps


def _check_for_transformer(unit: Unit, kind: str) -> None:
    """ValueError on what acts on UNets only."""
    if not isinstance(unit.model, TransformerControlNet):
        raise ValueError(f"a {unit.model.architecture} for {unit.model.family} guides UNets, but the model is a {kind}")
    asked = {
        f"mode {unit.mode!r}": unit.mode != "balanced",
        "layers": unit.layers is not None,
        "region": unit.region is not None,
        "inpaint": unit.inpaint is not None,
        "after": unit.after is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ValueError(f"{name} of a unit acts on UNets only, but the model is a {kind}")


def get_denoiser(pipe: Any) -> Any:
    """The pipeline's UNet, or where it has none its transformer."""
    unet = getattr(pipe, "unet", None)
    return getattr(pipe, "transformer", None) if unet is None else unet


def _get_guidable_unet(pipe: Any) -> Any:
    """The UNet of a pipeline that can be guided."""
    name, unet = type(pipe).__name__, unwrap_compiled(get_denoiser(pipe))
    if unet is None:
        raise ValueError(
            f"{name} has no UNet; guide works on Stable Diffusion, its videos, Flux, Qwen-Image and Z-Image"
        )
    if type(unet).__name__ in TRANSFORMER_NAMES:
        return unet
    if hasattr(pipe, "get_views"):
        raise ValueError(f"{name} asks the UNet for parts of the picture, of which each would have the whole map")
    if not isinstance(unet, UNet2DConditionModel | UNetMotionModel):
        kind = type(unet).__name__
        raise ValueError(f"the UNet of {name} is a {kind}, expected a UNet2DConditionModel or a UNetMotionModel")
    config: Any = unet.config  # type: ignore[union-attr]
    if config["projection_class_embeddings_input_dim"] == REFINER_ADDED_WIDTH or pipe.config.get(
        "requires_aesthetics_score"
    ):
        raise ValueError(f"{name} holds SDXL's refiner, for which there are no ControlNets; guide the base pipeline")
    return unet
