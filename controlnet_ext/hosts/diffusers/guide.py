"""Units in diffusers pipelines: hooks on the UNet or transformer, plain or under torch.compile, which the pipeline does
not notice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn

from ...guidance.contract import AttentionModel, Crop, Residuals
from ...guidance.schedule import Span
from ...guidance.unit import Unit
from ...models.kinds.transformer import TransformerControlNet
from ..session import GuidedUNet, GuideSession, check_feature_shape, find_announced_crops, guide_context
from .host import (
    DenoiserCall,
    DiffusersHost,
    Pipeline,
    PipelineCall,
    StepCounter,
    UNetCall,
    find_prompted_copies,
    identify_rows,
    read_noise_level,
)
from .transformer_call import CALL_TYPES, TRANSFORMER_NAMES

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


class UNetHook(GuidedUNet):
    """A UNet or transformer with a hook before and one after each call; guides nest in one thread."""

    sessions: list[PipelineSession]  # type: ignore[assignment]
    _residuals: Residuals | None = None  # of the present call

    def check_nesting(self, session: GuideSession) -> None:
        """Check that one more session may enter. Raises RuntimeError in another thread or task."""
        self.check_owner()
        if not isinstance(session, PipelineSession) or session.denoiser is not self.unet:
            raise RuntimeError(
                "the UNet is guided already, but compiled otherwise; nested guides need the same pipeline"
            )

    def add_residuals(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """Return the arguments of a call with residuals, as forward pre-hooks give them; None to change nothing.

        Raises RuntimeError in another thread or task than the sessions'.
        """
        self.claim_call()
        call = make_call(unwrap_compiled(self.unet), args, kwargs)
        begins = [session.observe(call) for session in self.sessions]
        self.start_call(call.x, any(begins))
        own = call.pipeline_residuals
        parts = (session.guide_call(call, new) for session, new in zip(self.sessions, begins, strict=True))
        # a compiled UNet reads its arguments in an order of its own
        total = self.sum_residuals(parts, call.x.device, own, may_overlap=not is_compiled(self.unet))
        if total is own or total is None:
            return None
        if total.encoder:
            self.wait()
        self._residuals = total
        return call.add_residuals(total, self.side_stream)

    def handle_result(self, result: Any) -> Any:
        """Return the result of a call, changed by units that act after the step; `result` is None if the call failed.

        Attention is restored when a run ends: the pipeline may then put back processors of its own, as those for
        perturbed attention guidance do.
        """
        if not self.is_in_call:
            return result  # of a refused call
        self._residuals = None
        is_failed = True
        try:
            self.wait()
            if result is not None:
                changed = self.finish_call(result[0])
                if changed is not result[0]:
                    result = (changed, *result[1:]) if isinstance(result, tuple) else type(result)(sample=changed)
                is_failed = False
        finally:
            self.end_call()
            if is_failed or any(session.is_last_step for session in self.sessions):
                self.detach()
        return result

    def install(self) -> None:
        """Install the hooks."""
        super().install()
        compiled = getattr(self.unet, "_compiled_call_impl", None)
        if compiled is None:
            self.undo.register_forward_pre_hook(
                self.unet, lambda _, *given: self.add_residuals(*given), with_kwargs=True
            )
            self.undo.register_forward_hook(self.unet, lambda *given: self.handle_result(given[-1]), always_call=True)
            if not is_compiled(self.unet):
                self._watch_features()
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            result = None
            try:
                args, kwargs = self.add_residuals(args, kwargs) or (args, kwargs)
                result = compiled(*args, **kwargs)
            finally:
                result = self.handle_result(result)
            return result

        # unet.compile() compiles a module's hooks with it, and does not notice those that come later
        self.undo.push(lambda: setattr(self.unet, "_compiled_call_impl", compiled))
        self.unet._compiled_call_impl = call

    def _watch_features(self) -> None:
        """Install hooks that compare the UNet's features with the residuals, before they are added."""
        place = 0
        for level, block in enumerate(getattr(self.unet, "down_blocks", ())):
            if level == 0:
                self.undo.register_forward_hook(self.unet.conv_in, lambda *given: self._check_skips(0, (given[-1],)))
                place = 1
            if getattr(block, "has_cross_attention", False):  # it adds an adapter's residuals before its downsampler
                self.undo.register_forward_pre_hook(block, partial(self._check_adapter, level), with_kwargs=True)
            else:
                self.undo.register_forward_hook(
                    block, lambda *given, level=level: self._check_adapter(level, None, given[-1], {})
                )
            self.undo.register_forward_hook(block, lambda *given, place=place: self._check_skips(place, given[-1][1]))
            place += len(block.resnets) + bool(block.downsamplers)
        if getattr(self.unet, "mid_block", None) is not None:
            self.undo.register_forward_hook(self.unet.mid_block, lambda *given: self._check_middle(given[-1]))

    def _check_skips(self, first: int, features: Sequence[Tensor]) -> None:
        if self._residuals is not None and self.is_in_call:
            for i, (skip, residual) in enumerate(zip(features, self._residuals.skips[first:], strict=False), first):
                check_feature_shape(f"skip {i + 1}", skip, residual)

    def _check_adapter(self, level: int, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._residuals is not None and level < len(self._residuals.encoder) and self.is_in_call:
            features = args[0] if args else kwargs["hidden_states"]
            check_feature_shape(f"encoder level {level + 1}", features, self._residuals.encoder[level])

    def _check_middle(self, features: Tensor) -> None:
        if self._residuals is not None and self._residuals.middle is not None and self.is_in_call:
            check_feature_shape("the middle block", features, self._residuals.middle)


def make_call(unet: ModelMixin, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DenoiserCall:
    """Return the call of a UNet or a transformer with these arguments."""
    kind: type[DenoiserCall] = CALL_TYPES.get(type(unet).__name__, UNetCall)
    return kind(unet, args, kwargs)


def is_compiled(unet: nn.Module) -> bool:
    """Return True if torch.compile has the UNet, or blocks of it."""
    compiled = (getattr(module, "_compiled_call_impl", None) for module in unwrap_compiled(unet).modules())
    return unwrap_compiled(unet) is not unet or any(call is not None for call in compiled)


def unwrap_compiled(unet: nn.Module) -> Any:
    """Return the UNet inside of `torch.compile(unet)`, or `unet` itself."""
    return getattr(unet, "_orig_mod", unet)


# width of its added vector: 1280 of the pooled prompt, 5 x 256 of sizes and score; the base has 6 x 256
REFINER_ADDED_WIDTH = 2560


@guide_context
def guide(pipe: Any, units: Iterable[Unit]) -> Iterator[None]:
    """Guide the calls of `pipe` in this context by `units`; afterwards pipe, UNet and models are as before.

    `pipe` is any diffusers pipeline whose UNet is a UNet2DConditionModel or a UNetMotionModel (text, images,
    inpainting, SDXL, video), or whose transformer is that of SD3, Flux, Qwen-Image or Z-Image. It may be compiled,
    offloaded or carry LoRAs. Each call of it is one run, with its own fractions and hints. Guides nest: residuals add
    up in order of entry, after those that the pipe itself passes. A model on another device moves to the pipe's, and
    returns in the end. Images are read on entering.

    Raises ValueError, TypeError or FileNotFoundError for what cannot act: a model that does not fit the UNet, a
    pipeline without a UNet, a window that holds no step (in the first step of the run), a hint or residuals that are
    not finite (in that step). Raises RuntimeError when another thread or task guides or calls the UNet; or, at the end
    of the block, when a run of the pipe's scheduler did not pass through this UNet, or when there was no run in which a
    unit may act. A block without any run is legal.
    """
    unet = _get_guidable_unet(pipe)
    session = PipelineSession(pipe, unet, units)
    with session.enter(unet, lambda: UNetHook(session.denoiser)):
        yield
        session.check_all_guided()


class PipelineSession(GuideSession):
    """The units of one guide of a pipeline, and the run that they are in.

    The hook on the UNet calls `observe` and `guide_call` before each UNet call, and `apply_post_steps` after it.
    """

    def __init__(self, pipe: Pipeline, unet: ModelMixin, units: Iterable[Unit]):
        self.denoiser = get_denoiser(pipe)
        self._transformer_name = type(unet).__name__ if type(unet).__name__ in TRANSFORMER_NAMES else None
        super().__init__(units, unet)
        self._pipe, self._host = pipe, DiffusersHost(pipe, unet)
        self._last_schedule = pipe.scheduler, pipe.scheduler.timesteps
        self._counter: StepCounter | None = None
        self._span: Span | None = None
        self._cached_rows: tuple[Any, Any] = (None, None)  # what identifies rows, and they
        self._shared_residuals: list[Residuals] = []  # of a step, for its further calls with as many rows
        self._shared_x: Tensor | None = None
        self._shared_place: tuple[Crop, ...] = ()

    def check_unit(self, unit: Unit) -> None:
        """Check that a unit can act on this UNet or transformer. Raises ValueError if it cannot."""
        if isinstance(unit.model, AttentionModel) and is_compiled(self.denoiser):
            raise ValueError(
                f"{unit.model.architecture} acts inside the UNet's attention, where torch.compile does not notice it; "
                "guide the UNet as it was before"
            )
        if self._transformer_name is not None:
            _check_for_transformer(unit, self._transformer_name)

    def observe(self, call: DenoiserCall) -> bool:
        """Take note of a UNet call before anything is computed. Return True if a run begins with it."""
        begins = self._counter is None or self._pipe.scheduler.timesteps is not self._counter.timesteps
        self._last_schedule = self._pipe.scheduler, self._pipe.scheduler.timesteps
        self._host.observe(call, begins)
        return begins

    def guide_call(self, call: DenoiserCall, is_new_run: bool) -> Iterable[Residuals]:
        """Return an iterable of the residuals of each unit in this UNet call."""
        if is_new_run or self._counter is None or not self.is_running:
            self._counter = None
            counter = StepCounter(self._pipe, call.find_timestep(self._pipe.scheduler))
            self.begin_run(counter.spans, self._host)
            self._counter, is_new_run = counter, True
        t = call.find_timestep(self._pipe.scheduler)
        before, self._span = self._span, self._counter.advance(t)
        if not self.has_active_units:
            return ()
        pipeline_call = PipelineCall.find(self._pipe)
        crops = pipeline_call.locate(len(call.x), self._host.pixel_size)
        if call.shares_residuals and self._span is before and not is_new_run and self._shares_residuals(call, crops):
            return self._shared_residuals
        key = find_prompted_copies(self._pipe), len(call.x)
        if is_new_run or self._cached_rows[0] != key:
            self._cached_rows = key, identify_rows(key[0], call)
        rows = (None, None) if self._counter.has_repeated_steps else self._cached_rows[1]
        step = call.build_step(self._span, *rows)
        residuals = self.compute_residuals(
            replace(step, crops=crops, images_per_prompt=pipeline_call.images_per_prompt),
            lambda: read_noise_level(self._pipe.scheduler, t.flatten()[0].item()),
        )
        if not call.shares_residuals:
            return residuals
        self._shared_residuals = list(residuals)
        self._shared_x, self._shared_place = call.x, self._find_announced_crops(call)
        return self._shared_residuals

    def _shares_residuals(self, call: DenoiserCall, crops: tuple[Crop, ...] | None) -> bool:
        """Return True if a further call of a step has the residuals of the one before: it has as many rows, and the
        pipeline itself calls it, or about the same latents."""
        if self._shared_x is None or call.x.shape != self._shared_x.shape:
            return False
        if crops is not None:
            return True
        return torch.equal(call.x, self._shared_x) and self._shared_place == self._find_announced_crops(call)

    def _find_announced_crops(self, call: DenoiserCall) -> tuple[Crop, ...]:
        return find_announced_crops(len(call.x), self._host.pixel_size)

    def apply_post_steps(self, out: Tensor) -> Tensor:
        """Return the UNet's output `(B, C, h, w)`, or `(B, C, F, h, w)` of a video, as units want it."""
        if self._post_step is None or out.ndim != 5:  # Z-Image gives a list, which no unit changes
            return super().apply_post_steps(out)
        flat = out.transpose(1, 2).flatten(0, 1)  # as in UNetCall
        changed = super().apply_post_steps(flat)
        return out if changed is flat else changed.view(len(out), -1, *changed.shape[1:]).transpose(1, 2)

    @property
    def is_last_step(self) -> bool:
        """True if the present UNet call is the last of its run."""
        return self._counter is not None and self._counter.is_last_step

    def check_all_guided(self) -> None:
        """Raise RuntimeError if the pipeline made an image that a unit should have guided and could not."""
        name, (scheduler, timesteps) = type(self._pipe).__name__, self._last_schedule
        is_new_run = scheduler is self._pipe.scheduler and timesteps is not scheduler.timesteps
        if self.units and is_new_run and getattr(self._pipe, "num_timesteps", None) == 0:
            raise RuntimeError(
                f"a run of {name} had no step that a unit could guide: raise strength or num_inference_steps"
            )
        if self.units and is_new_run:
            raise RuntimeError(f"a run of {name} was not guided: it called another UNet than it had on entering")
        for i, unit in enumerate(self.units, 1):
            if self.run_count == 1 and unit.hires == "high" and unit.weight != 0:
                raise RuntimeError(f"unit {i} acts in the second run only, but {name} ran once")


def _check_for_transformer(unit: Unit, kind: str) -> None:
    """Raise ValueError on units that act on UNets only."""
    if not isinstance(unit.model, TransformerControlNet):
        raise ValueError(f"a {unit.model.architecture} for {unit.model.family} guides UNets, but the model is a {kind}")
    unet_only = {
        f"mode {unit.mode!r}": unit.mode != "balanced",
        "layers": unit.layers is not None,
        "region": unit.region is not None,
        "inpaint": unit.inpaint is not None,
        "after": unit.after is not None,
    }
    for name, is_set in unet_only.items():
        if is_set:
            raise ValueError(f"{name} of a unit acts on UNets only, but the model is a {kind}")


def get_denoiser(pipe: Pipeline) -> Any:
    """Return the UNet of a pipeline, or its transformer if it has none."""
    unet = getattr(pipe, "unet", None)
    return getattr(pipe, "transformer", None) if unet is None else unet


def _get_guidable_unet(pipe: Pipeline) -> Any:
    """The UNet of a pipeline that can be guided."""
    name, unet = type(pipe).__name__, unwrap_compiled(get_denoiser(pipe))
    if unet is None:
        raise ValueError(
            f"{name} has no UNet; guide works on Stable Diffusion, its videos, Flux, Qwen-Image and Z-Image"
        )
    if type(unet).__name__ in TRANSFORMER_NAMES:
        return unet
    if hasattr(pipe, "get_views"):
        raise ValueError(f"{name} asks the UNet for parts of the image, of which each would have the whole map")
    if not isinstance(unet, UNet2DConditionModel | UNetMotionModel):
        kind = type(unet).__name__
        raise ValueError(f"the UNet of {name} is a {kind}, expected a UNet2DConditionModel or a UNetMotionModel")
    config: Any = unet.config  # type: ignore[union-attr]
    if config["projection_class_embeddings_input_dim"] == REFINER_ADDED_WIDTH or pipe.config.get(
        "requires_aesthetics_score"
    ):
        raise ValueError(f"{name} holds SDXL's refiner, for which there are no ControlNets; guide the base pipeline")
    return unet
