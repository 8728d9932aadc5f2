"""What units mean in whole runs, phrase by phrase, where no other file says it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import GREY, WHITE, Pushes, run

from controlnet_ext import Residuals, Span, Step, Unit, Window, guide
from controlnet_ext.guidance.hints import HintImages
from controlnet_ext.guidance.run import GuidanceRun
from controlnet_ext.guidance.schedule import WebuiWindow


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline(StableDiffusionPipeline)


def middles(pipe: Any, units: list[Unit], **given: Any) -> list[list[float] | None]:
    """What each UNet call has added to its middle block, by row; None for nothing."""
    found: list[list[float] | None] = []

    def seen(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        added = kwargs.get("mid_block_additional_residual")
        found.append(None if added is None else [round(value, 4) for value in added.flatten().tolist()])

    with guide(pipe, units):
        handle = pipe.unet.register_forward_pre_hook(seen, with_kwargs=True)
        try:
            run(pipe, **given)
        finally:
            handle.remove()
    return found


def test_a_schedule_is_the_weight_at_each_step(pipe: Any) -> None:
    unit = Unit(Pushes(1.0), WHITE, weight="0.2@0, 1@0.3, 0@0.8")
    weights = [0.2, 0.4667, 0.7333, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert middles(pipe, [unit], steps=10) == [*([w, w] for w in weights), None, None]
    late = Unit(Pushes(1.0), WHITE, weight=lambda fraction: 2 * fraction, window=Window(0.5, 1))
    assert middles(pipe, [late], steps=4) == [None, None, [1.0, 1.0], [1.5, 1.5]]


@pytest.mark.parametrize(
    ("window", "steps"), [((0, 1), range(20)), ((0.2, 0.8), range(4, 17)), ((0, 0), range(1)), ((1, 1), range(0))]
)
def test_webuis_window_holds_steps_that_begin_in_it(window: tuple[float, float], steps: range) -> None:
    """Both ends included, of 20 steps."""
    spans = [Span(i / 20, (i + 1) / 20) for i in range(20)]
    assert [i for i, span in enumerate(spans) if WebuiWindow(*window).contains(span)] == list(steps)


@pytest.mark.parametrize(
    ("window", "steps"), [((0, 1), range(20)), ((0.2, 0.8), range(4, 16)), ((0, 0.04), range(0)), ((0.95, 1), [19])]
)
def test_diffusers_window_holds_steps_that_end_in_it_too(window: tuple[float, float], steps: Any) -> None:
    """Its rule typed out (0.42, pipeline_controlnet.py, controlnet_keep), of 20 steps."""
    start, end = window
    assert [i for i in range(20) if not (i / 20 < start or (i + 1) / 20 > end)] == list(steps)
    assert [i for i in range(20) if Window(start, end).contains(Span(i / 20, (i + 1) / 20))] == list(steps)


def test_only_mid_control_is_a_list_of_layers(pipe: Any) -> None:
    """lllyasviel's option: the skips get nothing, the middle block all."""

    class Middle(Pushes):
        def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
            return Residuals(middle=super().__call__(step, hint).middle)

    with guide(pipe, [Unit(Pushes(), WHITE, layers=[0] * 12 + [1])]):
        layered = run(pipe)
    with guide(pipe, [Unit(Middle(), WHITE)]):
        assert torch.equal(run(pipe), layered)
    with guide(pipe, [Unit(Pushes(), WHITE)]):
        assert (run(pipe) - layered).abs().max() > 1e-2


class Adapter(Pushes):
    """Adds inside the encoder only, in four places."""

    def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
        return Residuals(encoder=super().__call__(step, hint).skips[:4])


class Size:
    pixel_size = (64, 64)


@pytest.mark.parametrize(("model", "count"), [(Pushes(), 13), (Pushes(skips=9), 10), (Adapter(), 4)])
def test_layers_are_13_or_10_or_4(model: Any, count: int) -> None:
    host: Any = Size()
    step = Step(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 2, 2), Span(0, 1))

    def scales(layers: list[float], **given: Any) -> list[float]:
        unit = Unit(model, WHITE, layers=layers, **given)
        (residuals,) = GuidanceRun([unit], [HintImages(unit)], [Span(0, 1)], host).compute_residuals(step)
        return [round(h.item() / model.value, 4) for h in residuals.tensors]

    layers = [0.1 * i for i in range(count)]
    assert scales(layers, weight=0.5) == [round(0.05 * i, 4) for i in range(count)]
    soft = [0.25, 0.62, 0.825, 1.0] if count == 4 else [0.825 ** (count - 1 - i) for i in range(count)]
    assert scales([1.0] * count, mode="prompt") == [round(factor, 4) for factor in soft]
    for wrong in (count - 1, count + 1):
        with pytest.raises(ValueError, match=f"unit 1: layers has {wrong} entries, but the model has {count}"):
            scales([1.0] * wrong)


def test_two_passes_have_two_maps_and_options_of_their_own(pipe: Any) -> None:
    """As hires fix has them: each pass is what it is in a guide of its own."""
    top = np.zeros((10, 10), np.float32)
    top[:5] = 1
    models = [Pushes(), Pushes(-0.3), Pushes(0.1)]
    first = {"weight": 0.7, "window": Window(0, 0.5), "mode": "prompt"}
    second = {"weight": "1@0, 0@1", "mode": "control", "layers": [0.5] * 13, "region": top, "reuse": 2}

    def passes(units: list[Unit], turns: int = 2) -> list[torch.Tensor]:
        sizes, found = ((64, 64), (96, 80)), []
        with guide(pipe, units):
            for height, width in sizes[:turns]:
                seed = torch.Generator().manual_seed(1)
                call = {"height": height, "width": width, "num_inference_steps": 4, "output_type": "latent"}
                found.append(pipe("a cat", generator=seed, **call).images)
        return found

    both = Unit(models[2], GREY)
    found = passes([Unit(models[0], GREY, hires="low", **first), Unit(models[1], WHITE, hires="high", **second), both])
    assert torch.equal(found[0], passes([Unit(models[0], GREY, **first), both], 1)[0])
    assert torch.equal(found[1], passes([Unit(models[1], WHITE, **second), both])[1])
    assert not torch.equal(found[1], passes([both])[1])


def test_guidance_multiplies_the_control_modes_residuals(pipe: Any) -> None:
    """The rows without the prompt get none, so that what the prompt's rows get counts guidance scale times."""
    unit = Unit(Pushes(1.0), WHITE, mode="control")
    assert middles(pipe, [unit], steps=1) == [[0.0, 1.0]]
    assert middles(pipe, [unit], steps=1, guidance_scale=1.0) == [[1.0]]
    assert middles(pipe, [Unit(Pushes(1.0), WHITE, mode="prompt")], steps=1) == [[1.0, 1.0]]


def test_images_of_a_unit_share_its_weight_and_units_add_up(pipe: Any) -> None:
    grey = 128 / 255
    together = Unit(Pushes(1.0), (WHITE, GREY, GREY, GREY), weight=0.8)
    assert middles(pipe, [together], steps=1) == [[pytest.approx(0.2 * (1 + 3 * grey), abs=1e-4)] * 2]
    two = [Unit(Pushes(1.0), WHITE, weight=0.5), Unit(Pushes(2.0), WHITE, weight=-0.1)]
    assert middles(pipe, two, steps=1) == [[0.3, 0.3]]
