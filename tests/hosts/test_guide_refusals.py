"""What cannot act is refused in one line: there is never an image without its guidance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from fakes import GREY, Pushes, run

from controlnet_ext import PerSample, Unit, Window, guide
from controlnet_ext.models.kinds.controlnet import ControlNet


@pytest.fixture
def pipe() -> Any:
    return tiny.pipeline(StableDiffusionPipeline)


def refusal(pipe: Any, units: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as refused, guide(pipe, units):
        pytest.fail("nothing may run")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_pipeline_without_a_unet_is_refused_by_name() -> None:
    class FluxPipeline:
        pass

    assert refusal(FluxPipeline(), []).startswith("FluxPipeline has no UNet")


def test_another_unet_is_refused_by_name() -> None:
    video = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 2),
        layers_per_block=1,
    )

    class StableVideoDiffusionPipeline(SimpleNamespace):
        pass

    assert refusal(StableVideoDiffusionPipeline(unet=video), []) == (
        "the UNet of StableVideoDiffusionPipeline is a UNetSpatioTemporalConditionModel, "
        "expected a UNet2DConditionModel or a UNetMotionModel"
    )


def test_the_refiner_is_refused_by_name() -> None:
    parts = tiny.parts("SDXL") | {"text_encoder": None, "tokenizer": None}
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts, scheduler=diffusers.DDIMScheduler(), requires_aesthetics_score=True
    )
    assert "StableDiffusionXLImg2ImgPipeline holds SDXL's refiner" in refusal(pipe, [])


def test_a_net_that_does_not_fit_is_refused_in_words(pipe: Any) -> None:
    theirs = tiny.control("SDXL")
    net = ControlNet.load(theirs.state_dict(), theirs.config)
    assert (
        refusal(pipe, [Unit(Pushes(), GREY), Unit(net, GREY)])
        == "unit 2: the ControlNet has context width 64, but the model has 32"
    )


def test_things_that_are_no_units_are_refused(pipe: Any) -> None:
    assert refusal(pipe, Unit(Pushes(), GREY)) == "units is one Unit, expected a list of them"
    assert refusal(pipe, [Unit(Pushes(), GREY), "canny"]) == "unit 2: a str, expected a Unit"


def test_files_are_read_before_anything_runs(pipe: Any) -> None:
    with (
        pytest.raises(FileNotFoundError, match="unit 2: 'no such map' does not exist"),
        guide(pipe, [Unit(Pushes(), GREY), Unit(Pushes(), "no such map")]),
    ):
        pytest.fail("nothing may run")


@pytest.mark.parametrize("window", [Window(0.4, 0.6), Window(0.3, 0.45), Window(0.8, 1)])
def test_a_window_without_a_step_is_refused_in_the_first_step(pipe: Any, window: Window) -> None:
    models, ends = [Pushes(), Pushes()], []

    def ended(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        ends.append(i)
        return given

    with guide(pipe, [Unit(models[0], GREY), Unit(models[1], GREY, window=window)]):
        with pytest.raises(ValueError, match=f"window {window} of unit 2 holds none of 4 steps"):
            run(pipe, callback_on_step_end=ended)
        assert ends == [] and models[0].steps == []
        run(pipe, steps=10)
    assert len(models[1].steps) in (1, 2)


def test_residuals_of_another_number_are_refused(pipe: Any) -> None:
    with (
        guide(pipe, [Unit(Pushes(skips=11), GREY)]),
        pytest.raises(ValueError, match="for 11 skips, but the UNet has 12"),
    ):
        run(pipe)


def test_another_number_of_maps_than_images_is_refused(pipe: Any) -> None:
    unit = Unit(Pushes(), PerSample([GREY, GREY, GREY]))
    with guide(pipe, [unit]), pytest.raises(ValueError, match="unit 1 has 3 maps for 2 images"):
        run(pipe, ["a cat", "a dog"])
    with guide(pipe, [unit]):
        run(pipe, ["a cat", "a dog", "a bird"])


def test_a_run_of_another_unet_is_noticed(pipe: Any) -> None:
    message = "a run of StableDiffusionPipeline was not guided"
    with pytest.raises(RuntimeError, match=message), guide(pipe, [Unit(Pushes(), GREY)]):
        run(pipe)
        pipe.unet = tiny.unet()
        run(pipe)


def test_a_block_in_which_nothing_runs_is_legal(pipe: Any) -> None:
    with guide(pipe, [Unit(Pushes(), GREY)]):
        pass


def test_another_pipeline_that_shares_the_unet_is_refused(pipe: Any) -> None:
    """Its steps are not those of the pipeline that is guided."""
    parts = {**pipe.components, "requires_safety_checker": False}
    other = StableDiffusionImg2ImgPipeline(**parts)
    other.set_progress_bar_config(disable=True)
    own = StableDiffusionImg2ImgPipeline(**{**parts, "scheduler": diffusers.DDIMScheduler(**tiny.DDIM)})
    run(pipe, steps=4)
    for steps, strength, message in (
        (4, 0.5, "has 4 steps, but from timestep 251 there are 2"),
        (12, 0.8, "UNet call 5"),
    ):
        with guide(pipe, [Unit(Pushes(), GREY)]), pytest.raises(ValueError, match=message):
            run(other, image=tiny.random_image(), steps=steps, strength=strength)
    with guide(pipe, [Unit(Pushes(), GREY)]), pytest.raises(ValueError, match="is none of the scheduler's"):
        run(own, image=tiny.random_image(), steps=7, strength=0.9)


def test_a_unit_for_the_second_run_wants_a_second_run(pipe: Any) -> None:
    model, message = Pushes(), "unit 1 acts in the second run only, but StableDiffusionPipeline ran once"
    with pytest.raises(RuntimeError, match=message), guide(pipe, [Unit(model, GREY, hires="high")]):
        run(pipe)
    with guide(pipe, [Unit(model, GREY, hires="high")]):
        first = run(pipe)
        assert model.steps == []
        assert not torch.equal(run(pipe), first)
    assert len(model.steps) == 4


def test_two_passes_may_have_two_sizes_and_two_units(pipe: Any) -> None:
    models = [Pushes(), Pushes()]
    units = [Unit(models[0], np.array(GREY), hires="low"), Unit(models[1], np.array(GREY), hires="high")]
    with guide(pipe, units):
        run(pipe)
        pipe("a cat", height=128, width=128, num_inference_steps=4, output_type="latent")
    assert [model.hints for model in models] == [[(2, 64, 64, 3)], [(2, 128, 128, 3)]]
