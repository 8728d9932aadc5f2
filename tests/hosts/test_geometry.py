"""What a UNet call shows decides what it gets: the map, its own part of it, or a refusal; never anything between."""

from __future__ import annotations

import copy
import functools
from contextlib import nullcontext
from typing import Any

import diffusers
import numpy as np
import pytest
import test_ldm_host
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import Plus, Pushes, run
from hypothesis import given, settings
from hypothesis import strategies as st
from ldm import UNetModel
from test_toy_host import ToyHost
from test_transformer_controls import control as transformer_control
from test_transformer_controls import ours
from test_transformer_geometry import build
from torch import Tensor

from controlnet_ext import PerSample, Residuals, Step, Unit, crop_maps, guide
from controlnet_ext.guidance.after_steps import ColorFix, InpaintRestore
from controlnet_ext.guidance.contract import Crop
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.hosts.session import GuidedUNet, GuideSession, find_announced_crops
from controlnet_ext.models.kinds.controlnet import ControlNet

CANVAS = 128  # pixels: the sides of the whole image
SPANS = test_ldm_host.SPANS


@functools.cache
def net() -> ControlNet:
    theirs = tiny.control()
    return ControlNet.load(theirs.state_dict(), theirs.config)


@functools.cache
def photo(seed: int = 0) -> np.ndarray:
    return np.array(tiny.random_image(seed, CANVAS))


@functools.cache
def region() -> np.ndarray:
    return np.random.default_rng(0).random((CANVAS, CANVAS)).astype(np.float32)


def cut(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def draw(seed: int, rows: int, height: int, width: int) -> Tensor:
    return torch.randn(rows, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))


class HostCalls:
    """Calls of a network in a loop of one's own: each of `calls` is x and the box that is told, or None.

    `knows_size`: the host states the size of the whole image.
    """

    def make_unit(self, pixels: np.ndarray, mask: np.ndarray) -> Unit:
        return Unit(net(), pixels, region=mask)

    def __call__(self, units: list[Unit], calls: list[tuple[Tensor, Any]], knows_size: bool = False) -> list[Tensor]:
        raise NotImplementedError


class DiffusersCall(HostCalls):
    """diffusers' UNet."""

    def __init__(self, scheduler: Any = diffusers.DDIMScheduler) -> None:
        config = diffusers.DDIMScheduler(**tiny.DDIM).config
        self.pipe = tiny.pipeline(StableDiffusionPipeline, scheduler=scheduler.from_config(config, skip_prk_steps=True))

    @torch.no_grad()
    def __call__(self, units: list[Unit], calls: list[tuple[Tensor, Any]], knows_size: bool = False) -> list[Tensor]:
        self.pipe.scheduler.set_timesteps(4)
        found = []
        with guide(self.pipe, units):
            for x, box in calls:
                with nullcontext() if box is None else crop_maps(box, (CANVAS, CANVAS)):
                    found.append(self.call(x, self.pipe.scheduler.timesteps[:1]))
        return found

    def call(self, x: Tensor, t: Tensor) -> Tensor:
        return self.pipe.unet(x, t, torch.ones(len(x), 16, 32)).sample


class TransformerCall(DiffusersCall):
    """The transformer of SD3, whose units have no regions."""

    def __init__(self) -> None:
        self.pipe = build(diffusers.StableDiffusion3Pipeline, "sd3", pos_embed_max_size=32)
        self.net = ours("sd3", transformer_control("sd3", pos_embed_max_size=32))

    def make_unit(self, pixels: np.ndarray, mask: np.ndarray) -> Unit:
        return Unit(self.net, pixels)

    def call(self, x: Tensor, t: Tensor) -> Tensor:
        prompt = {"encoder_hidden_states": torch.ones(len(x), 7, 32), "pooled_projections": torch.ones(len(x), 32)}
        return self.pipe.transformer(hidden_states=x, timestep=t, **prompt).sample


class LdmCall(HostCalls):
    """ldm's UNet, whose host announces two rows of the whole image once."""

    def __init__(self) -> None:
        self.unet = UNetModel(tiny.unet())

    @torch.no_grad()
    def __call__(self, units: list[Unit], calls: list[tuple[Tensor, Any]], knows_size: bool = False) -> list[Tensor]:
        found = []
        boxes: list[Any] = []
        with guide_ldm(self.unet, units, find_tiles=lambda: boxes) as guiding:
            guiding.begin(SPANS, 0)
            knows_size |= any(box is not None for _, box in calls)
            size = (CANVAS // 8, CANVAS // 8) if knows_size else None
            guiding.announce_step(BatchRows(SPANS[0], [0, 0], [True, False], size))
            for x, box in calls:
                sides = (8 * x.shape[3], 8 * x.shape[2])
                is_host_telling = box is not None and (box[2] - box[0], box[3] - box[1]) == sides
                boxes[:] = [box] if is_host_telling else []
                with nullcontext() if is_host_telling or box is None else crop_maps(box, (CANVAS, CANVAS)):
                    found.append(self.unet(x, torch.full((len(x),), 751.0), torch.ones(len(x), 16, 32)))
        return found


class BareCall(HostCalls):
    """A bare UNet on `GuideSession`."""

    def __init__(self) -> None:
        self.unet = tiny.unet()

    @torch.no_grad()
    def __call__(self, units: list[Unit], calls: list[tuple[Tensor, Any]], knows_size: bool = False) -> list[Tensor]:
        host, session, found = ToyHost(self.unet, None), GuideSession(units, self.unet), []
        with session.enter(self.unet, lambda: GuidedUNet(self.unet)) as guided:
            session.begin_run(SPANS, host, image_size=(CANVAS, CANVAS) if knows_size else None)
            for x, box in calls:
                host.x, context = x, torch.ones(len(x), 16, 32)
                step = Step(x, torch.full((len(x),), 751), context, SPANS[0])
                with nullcontext() if box is None else crop_maps(box, (CANVAS, CANVAS)):
                    guided.claim_call()
                    guided.start_call(x, is_new_run=not found)
                    total = guided.sum_residuals([session.compute_residuals(step, no_noise_level)], x.device)
                    guided.wait()
                    assert total is not None
                    added = {"down_block_additional_residuals": total.skips}
                    out = self.unet(x, 751, context, **added, mid_block_additional_residual=total.middle).sample
                    found.append(guided.finish_call(out))
        return found


def no_noise_level() -> Any:
    raise AssertionError("no unit acts after a step")


HOSTS = {"diffusers": DiffusersCall, "transformer": TransformerCall, "ldm": LdmCall, "bare": BareCall}
side = st.integers(1, CANVAS // 64).map(lambda n: 64 * n)


@st.composite
def boxes(draw: Any) -> tuple[int, int, int, int]:
    width, height = draw(side), draw(side)
    left, top = draw(st.integers(0, CANVAS - width)), draw(st.integers(0, CANVAS - height))
    return left, top, left + width, top + height


@st.composite
def geometries(draw: Any) -> dict[str, Any]:
    """Tiles, the scale at which they are drawn, and whether their places are told."""
    tiles = draw(st.lists(boxes(), min_size=1, max_size=3, unique=True))
    return {"tiles": tiles, "scale": draw(st.sampled_from([1, 2])), "is_told": draw(st.booleans())}


@functools.cache
def make_host(name: str) -> Any:
    return HOSTS[name]()


def check_geometry(host: str, tiles: list[tuple[int, int, int, int]], scale: int, is_told: bool) -> None:
    call = make_host(host)
    whole = call.make_unit(photo(), region())
    latents = [
        draw(i, 1, scale * (bottom - top), scale * (right - left)).repeat(2, 1, 1, 1)
        for i, (left, top, right, bottom) in enumerate(tiles)
    ]
    if is_told:
        found = call([whole], list(zip(latents, tiles, strict=True)))
        for x, box, out in zip(latents, tiles, found, strict=True):
            by_hand = call.make_unit(cut(photo(), box), cut(region(), box))
            (expected,) = call([by_hand], [(x, None)])
            assert torch.equal(out, expected)
        return
    if host in ("ldm", "bare") and latents[0].shape[2:] != (CANVAS // 8, CANVAS // 8):
        with pytest.raises(ValueError, match=rf"in a run of {CANVAS}x{CANVAS} pixels; tell the place with crop_maps"):
            call([whole], [(latents[0], None)], knows_size=True)
    # nobody tells anything: one call is all that there is, and any further one is refused
    if len(tiles) == 1:
        (out,) = call([whole], [(latents[0], None)])
        assert out.shape == latents[0].shape
        return
    with pytest.raises(ValueError, match="crop_maps"):
        call([whole], [(x, None) for x in latents])


@pytest.mark.parametrize("host", HOSTS)
@given(geometry=geometries())
@settings(derandomize=True, max_examples=4, deadline=None, database=None)
def test_a_part_is_guided_as_by_the_map_cut_by_hand_or_refused(host: str, geometry: dict[str, Any]) -> None:
    check_geometry(host, **geometry)


@pytest.mark.long
@pytest.mark.parametrize("host", HOSTS)
@given(geometry=geometries())
@settings(derandomize=True, max_examples=150, deadline=None, database=None)
def test_many_parts_are_guided_as_by_the_map_cut_by_hand_or_refused(host: str, geometry: dict[str, Any]) -> None:
    check_geometry(host, **geometry)


# -- tiles


def tile_loop(pipe: Any, is_told: bool, with_batch: bool = False) -> list[Tensor]:
    """Two steps over two tiles of a canvas, with guidance in one batch; the outputs of the UNet."""
    pipe.scheduler.set_timesteps(2)
    tiles, found = [(0, 0, 64, 64), (64, 0, 128, 64)], []
    context, size = torch.ones(2, 16, 32), (128, 64)
    for t in pipe.scheduler.timesteps:
        parts = [draw(i, 1, 64, 64) for i in range(2)]
        if with_batch:
            with crop_maps(tiles, size):
                out = pipe.unet(torch.cat(parts * 2), t, context.repeat_interleave(2, dim=0)).sample
            found += [out[::2], out[1::2]]
            pipe.scheduler.step(out[:2], t, torch.cat(parts))
            continue
        for part, box in zip(parts, tiles, strict=True):
            x = torch.cat([part, part])
            if not is_told:
                found.append(pipe.unet(x, t, context).sample)
                continue
            with crop_maps(box, size):
                found.append(pipe.unet(x, t, context).sample)
        pipe.scheduler.step(found[-1][:1], t, parts[-1])
    return found


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
@torch.no_grad()
def test_a_loop_over_tiles_is_refused_unless_it_tells_their_places(scheduler: str) -> None:
    call = DiffusersCall(getattr(diffusers, scheduler))
    model = Pushes()
    with guide(call.pipe, [Unit(model, photo())]), pytest.raises(ValueError, match="as in a loop over tiles; tell"):
        tile_loop(call.pipe, False)
    whole = photo()[:64]
    with guide(call.pipe, [Unit(net(), whole)]):
        found = tile_loop(call.pipe, True)
    for i, left in enumerate((0, 64)):
        with guide(call.pipe, [Unit(net(), np.ascontiguousarray(whole[:, left : left + 64]))]):
            call.pipe.scheduler.set_timesteps(2)
            x = draw(i, 1, 64, 64).repeat(2, 1, 1, 1)
            out = call.pipe.unet(x, call.pipe.scheduler.timesteps[0], torch.ones(2, 16, 32)).sample
        assert torch.equal(out, found[i])


@torch.no_grad()
def test_tiles_of_one_batch_have_a_part_each() -> None:
    pipe, whole = DiffusersCall().pipe, photo()[:64]
    mask = np.zeros_like(whole)
    mask[16:48, 40:100] = 255
    units = [
        Unit(net(), whole, region=region()[:64], mode="control"),
        Unit(InpaintRestore(), whole, inpaint=mask, region=region()[:64]),
        Unit(ColorFix(1), PerSample([whole])),
    ]
    pipe._guidance_scale = 5.0
    with guide(pipe, units[1:2]):
        one_by_one = tile_loop(pipe, True)
    with guide(pipe, units[1:2]):
        together = tile_loop(pipe, True, with_batch=True)
    # batches of two and four rows
    for one, other in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    with guide(pipe, [Unit(net(), whole, region=region()[:64])]):
        one_by_one = tile_loop(pipe, True)
    with guide(pipe, [Unit(net(), whole, region=region()[:64])]):
        together = tile_loop(pipe, True, with_batch=True)
    for one, other in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    assert (one_by_one[0] - one_by_one[1]).abs().max() > 1e-2


@torch.no_grad()
def test_a_pipeline_of_ones_own_that_draws_tiles_is_refused() -> None:
    """Its own `__call__` may do anything between the pipeline and its UNet."""

    class Tiled(StableDiffusionPipeline):
        @torch.no_grad()
        def __call__(self, steps: int) -> None:
            self.scheduler.set_timesteps(steps)
            for t in self.scheduler.timesteps:
                for i in range(2):
                    self.unet(draw(i, 2, 64, 64), t, torch.ones(2, 16, 32))

    pipe = tiny.pipeline(Tiled)
    with guide(pipe, [Unit(Pushes(), photo())]), pytest.raises(ValueError, match="as in a loop over tiles; tell"):
        pipe(2)


@torch.no_grad()
def test_units_that_act_in_no_step_refuse_nothing() -> None:
    pipe = DiffusersCall().pipe
    for units in ([], [Unit(net(), photo(), weight=0)]):
        with guide(pipe, units):
            tile_loop(pipe, False)


def test_kinds_in_the_attention_are_attached_anew_for_each_tile() -> None:
    pipe, model = DiffusersCall().pipe, Plus()
    with guide(pipe, [Unit(model, photo()[:64], region=region()[:64])]):
        tile_loop(pipe, True)
    assert model.hints == [(2, 64, 64, 3)] * 2  # kept for the second step
    regions = {tuple(now.region.shape) for now in model.nows if now is not None}  # type: ignore[union-attr]
    assert regions == {(1, 1, 64, 64)}


def test_a_call_of_another_size_is_refused_in_the_run() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    before = pipe.unet.forward
    sizes = iter([8, 8, 4])

    class Shrinks(torch.nn.Module):
        """A wrapper that calls the UNet for a corner of the latents, of its own accord."""

        def __getattr__(self, name: str) -> Any:
            return getattr(pipe_unet, name)

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            n = next(sizes)
            return pipe_unet(x[..., :n, :n], *args, **kwargs)

    pipe_unet = pipe.unet
    with guide(pipe, [Unit(Pushes(), photo())]):
        object.__setattr__(pipe, "unet", Shrinks())
        try:
            with pytest.raises(ValueError, match="2 rows of 32x32 pixels in a run of 64x64 pixels; tell the place"):
                run(pipe)
        finally:
            object.__setattr__(pipe, "unet", pipe_unet)
    assert pipe.unet.forward == before


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 0, 64), r"box \(0, 0, 0, 64\) is not \(left, top, right, bottom\) inside an image of 128x96 pixels"),
        ((0, 0, 64, 128), "inside an image of 128x96"),
        ((-8, 0, 64, 64), "inside an image of 128x96"),
    ],
)
def test_a_box_outside_of_the_image_is_refused(box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), crop_maps(box, (128, 96)):
        pytest.fail("nothing may run")


@pytest.mark.parametrize(
    ("boxes", "size", "message"),
    [
        ((0, 0, 64), (128, 96), r"box \(0, 0, 64\): expected 4 whole numbers of pixels"),
        ((0, 0, 64, 64.5), (128, 96), r"box \(0, 0, 64, 64.5\): expected 4 whole numbers of pixels"),
        ([(0, 0, 64, 64), "64"], (128, 96), "box '64': expected 4 whole numbers"),
        ((0, 0, 64, 64), 128, "image_size 128: expected 2 whole numbers"),
    ],
)
def test_what_is_no_box_is_refused(boxes: Any, size: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message), crop_maps(boxes, size):
        pytest.fail("nothing may run")


def test_boxes_of_other_libraries_are_read() -> None:
    with crop_maps(np.array([0, 8, 64, 72]), (np.int64(128), 96.0)):  # type: ignore[arg-type]
        assert find_announced_crops(2, (64, 64)) == (Crop((96, 128), (0, 8, 64, 72), (64, 64)),) * 2


def test_another_number_of_boxes_than_rows_is_refused() -> None:
    pipe = DiffusersCall().pipe
    pipe.scheduler.set_timesteps(2)
    with (
        guide(pipe, [Unit(Pushes(), photo())]),
        crop_maps([(0, 0, 64, 64)] * 3, (128, 128)),
        pytest.raises(ValueError, match="crop_maps has 3 boxes for 2 rows"),
    ):
        pipe.unet(draw(0, 2, 64, 64), pipe.scheduler.timesteps[0], torch.ones(2, 16, 32))


# -- features that are scaled inside the UNet


def halve(_: Any, args: tuple[Any, ...], *more: Any) -> Any:
    h = torch.nn.functional.interpolate(args[0], scale_factor=0.5)
    return ((h, *args[1:]), *more) if more else (h, *args[1:])


@pytest.mark.parametrize("kind", ["controlnet", "adapter"])
def test_features_that_are_halved_inside_are_named(kind: str) -> None:
    """diffusers' community pipeline kohya_hires_fix and the webui's extensions do it."""

    class Adapts(Pushes):
        def __call__(self, step: Step, hint: Tensor) -> Residuals:
            sizes = [(32, 8), (64, 4), (64, 2), (64, 1)]
            return Residuals(encoder=tuple(step.x.new_ones(len(step.x), c, n, n) for c, n in sizes))

    model: Any = net() if kind == "controlnet" else Adapts()
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet())
    handle = pipe.unet.down_blocks[1].register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"hidden_states": kwargs["hidden_states"][..., ::2, ::2]}),
        with_kwargs=True,
    )
    place = "skip 5" if kind == "controlnet" else "encoder level 2"
    with guide(pipe, [Unit(model, photo())]), pytest.raises(ValueError, match=f"at {place}, where .* Deep Shrink"):
        run(pipe)
    handle.remove()
    ldm = UNetModel(tiny.unet())
    ldm.input_blocks[4].register_forward_pre_hook(halve)
    with guide_ldm(ldm, [Unit(net(), photo())]) as guiding, pytest.raises(ValueError, match="Deep Shrink"):
        guiding.begin(SPANS, 0)
        guiding.announce_step(BatchRows(SPANS[0], [0, 0], [True, False]))
        ldm(draw(0, 2, 128, 128), torch.full((2,), 751.0), torch.ones(2, 16, 32))


def test_a_tiled_vae_changes_nothing() -> None:
    """It does not call the UNet."""
    pipe = tiny.pipeline(StableDiffusionPipeline, vae=copy.deepcopy(tiny.parts()["vae"]))
    with guide(pipe, [Unit(net(), photo())]):
        expected = run(pipe)
        pipe.vae.enable_tiling()
        assert torch.equal(run(pipe), expected)
