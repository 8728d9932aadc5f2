"""After a guide all is as it was: hooks, attributes, processors, weights and outputs, whatever happened inside."""

from __future__ import annotations

import threading
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import GREY, Plus, Pushes, run, state
from peft import LoraConfig
from test_guide_histories import SKIPS, pipeline

from controlnet_ext import ControlModel, Unit, Window, guide
from controlnet_ext.hosts import session
from controlnet_ext.models.kinds.controlnet import ControlNet


@pytest.fixture
def pipe() -> Any:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    run(pipe)  # which gives it attributes of its own
    return pipe


def untouched(pipe: Any, before: dict[str, Any], plain: torch.Tensor) -> bool:
    return state(pipe) == before and not session._guided_unets and torch.equal(run(pipe), plain)


def test_nothing_stays_behind(pipe: Any) -> None:
    before, plain = state(pipe), run(pipe)
    with guide(pipe, [Unit(Pushes(), GREY), Unit(Plus(), GREY)]):
        assert state(pipe) != before
        assert (run(pipe) - plain).abs().max() > 1e-3
    assert untouched(pipe, before, plain)


def test_hooks_of_others_keep_their_place(pipe: Any) -> None:
    seen: list[str] = []
    first = pipe.unet.register_forward_pre_hook(lambda *_: seen.append("first"))
    with guide(pipe, [Unit(Pushes(), GREY)]):
        second = pipe.unet.register_forward_pre_hook(lambda *_: seen.append("second"))
        run(pipe, steps=1)
    run(pipe, steps=1)
    assert seen == ["first", "second"] * 2
    first.remove()
    second.remove()


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("where", ["model", "unet", "middle of the unet", "callback"])
def test_an_exception_at_any_call_leaves_nothing(where: str, k: int) -> None:
    pipe = pipeline()
    run(pipe)  # which gives it attributes of its own
    before, plain = state(pipe), run(pipe)
    calls = 0

    def fails(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == k + 1:
            raise Broken
        return _[-1] if where == "callback" else None

    module = {"unet": pipe.unet, "middle of the unet": pipe.unet.mid_block.attentions[0]}.get(where)
    handle = module.register_forward_hook(fails) if module else None
    given = {"callback_on_step_end": fails} if where == "callback" else {}
    model = Pushes(fails_at=k if where == "model" else None, skips=SKIPS)
    with (
        pytest.raises((Broken, KeyError)),
        guide(pipe, [Unit(Plus(), GREY)]),
        guide(pipe, [Unit(model, GREY), Unit(Plus(), GREY)]),
    ):
        run(pipe, **given)
    if handle:
        handle.remove()
    assert untouched(pipe, before, plain)


def test_a_run_that_failed_can_be_repeated_in_the_same_guide(pipe: Any) -> None:
    with guide(pipe, [Unit(Pushes(), GREY), Unit(Plus(), GREY)]):
        right = run(pipe)
    model = Pushes(fails_at=2)
    with guide(pipe, [Unit(model, GREY), Unit(Plus(), GREY)]):
        with pytest.raises(KeyError):
            run(pipe)
        model.fails_at = None
        assert torch.equal(run(pipe), right)


@pytest.mark.parametrize("place", ["weight", "hint", "residuals"])
def test_what_is_not_finite_stops_the_run_in_that_step(pipe: Any, place: str) -> None:
    theirs = tiny.control()
    net = ControlNet.load(theirs.state_dict(), theirs.config)
    model: Any = net
    if place == "weight":
        net.mid_block.resnets[0].conv1.weight.data[3, 2, 1, 1] = float("nan")
    elif place == "hint":
        net.controlnet_cond_embedding.conv_out.bias.data[5] = float("inf")
    else:
        model = Pushes(value=float("inf"))
    message = "the hint of unit 2" if place == "hint" else r"the residuals of unit 2 are not finite in step 3 of 4"
    before, plain = state(pipe), run(pipe)
    units = [Unit(Pushes(), GREY), Unit(model, GREY, window=Window(0.5, 1))]
    with pytest.raises(ValueError, match=message), guide(pipe, units):
        run(pipe)
    assert untouched(pipe, before, plain)


def test_another_thread_is_refused_in_one_line(pipe: Any) -> None:
    unet, outcomes = pipe.unet, []

    def guided() -> torch.Tensor:
        with guide(pipe, [Unit(Pushes(), GREY)]):
            return run(pipe)

    def called() -> torch.Tensor:
        return unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 16, 32)).sample

    def other() -> None:
        for attempt in (guided, called):
            try:
                outcomes.append(attempt())
            except RuntimeError as error:
                outcomes.append(str(error))

    def elsewhere() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with guide(pipe, [Unit(Pushes(), GREY)]):
        right = run(pipe)
        elsewhere()
        assert outcomes == [session.BUSY_MESSAGE] * 2
        assert torch.equal(run(pipe), right)
    elsewhere()
    assert torch.equal(outcomes[2], right) and isinstance(outcomes[3], torch.Tensor)


@pytest.mark.parametrize("way", ["compile(unet)", "unet.compile()"])
def test_a_compiled_unet_is_guided_and_as_before(way: str) -> None:
    pipe = pipeline()
    unet, unit = pipe.unet, Unit(Pushes(skips=SKIPS), GREY)
    with guide(pipe, [unit]):
        expected = run(pipe, steps=2)
    if way == "unet.compile()":
        unet.compile(backend="eager")
    else:
        pipe.unet = torch.compile(unet, backend="eager")
    plain = run(pipe, steps=2)  # compiled before there is a hook
    before = state(pipe)
    for _ in range(2):
        with guide(pipe, [unit]):
            assert torch.allclose(run(pipe, steps=2), expected, rtol=0, atol=1e-5)
        assert torch.equal(run(pipe, steps=2), plain) and state(pipe) == before
    assert (plain - expected).abs().max() > 1e-3


def test_a_lora_is_guided_and_as_before() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet())
    without = run(pipe)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k"], init_lora_weights=False))
    plain, half = run(pipe), run(pipe, cross_attention_kwargs={"scale": 0.5})
    before = state(pipe)
    with guide(pipe, [Unit(Pushes(), GREY), Unit(Plus(), GREY)]):
        assert (run(pipe) - plain).abs().max() > 1e-3
        scaled = run(pipe, cross_attention_kwargs={"scale": 0.5})
        assert (scaled - half).abs().max() > 1e-3
    assert untouched(pipe, before, plain) and (plain - without).abs().max() > 1e-3


def test_a_fake_attention_kind_has_all_that_it_needs(pipe: Any) -> None:
    plain, models = run(pipe), [Plus(0.1), Plus(0.1)]
    region = np.ones((4, 4), np.float32)
    units = [
        Unit(models[0], GREY, weight=0.5, window=Window(0, 0.5), mode="control", region=region, layers=[1.0, 2.0]),
        Unit(models[1], (GREY, GREY), weight=-1.0),
    ]
    with guide(pipe, units):
        guided = run(pipe)
        assert torch.equal(run(pipe), guided)
    assert (guided - plain).abs().max() > 1e-3
    model = models[0]
    assert model.seen == [(64, 64), (1, 4, 8, 8)]
    acts = [now for now in model.nows if now is not None]
    assert len(acts) == len(model.nows) // 2  # two steps of four
    first = acts[0]
    assert first.strength.tolist() == [0.0, 0.5] and first.step.span == (0.0, 0.25) and first.pass_index == 1
    assert first.region is not None and first.region.shape == (1, 1, 4, 4) and first.layers == (1.0, 2.0)
    assert models[1].nows[0] is not None and models[1].nows[0].strength.tolist() == [-0.5, -0.5]


def test_processors_that_a_pipeline_changes_for_a_run_are_put_back() -> None:
    pag = tiny.pipeline(diffusers.StableDiffusionPAGPipeline, pag_applied_layers=["down"], unet=tiny.unet())
    run(pag)
    before, plain = state(pag), run(pag)
    with guide(pag, [Unit(Plus(), GREY), Unit(Plus(), GREY, window=Window(0, 0.5))]):
        assert (run(pag) - plain).abs().max() > 1e-3
    assert untouched(pag, before, plain)


def test_attentions_come_in_the_order_in_which_they_run(pipe: Any) -> None:
    order: list[Any] = []
    handles = [
        m.register_forward_pre_hook(lambda m, _: order.append(m))
        for m in pipe.unet.modules()
        if type(m).__name__ == "Attention"
    ]
    model = Plus()
    found: list[tuple[str, Any, str]] = []
    attach = model.attach
    model.attach = lambda host, hint, now: found.extend(host.iter_attentions()) or attach(host, hint, now)  # type: ignore
    with guide(pipe, [Unit(model, GREY)]):
        run(pipe, steps=1)
    for handle in handles:
        handle.remove()
    assert [module for _, module, _ in found] == order
    assert [place for _, _, place in found] == ["input"] * 12 + ["middle"] * 2 + ["output"] * 18
    assert found[0][0] == "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def test_noise_for_attention_kinds_repeats_and_leaves_others_alone(pipe: Any) -> None:
    model = Plus()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    noises = []
    with guide(pipe, [Unit(model, GREY)]):
        for prompt in (["a cat"], ["a cat"], ["a cat", "a dog"]):
            run(pipe, prompt, steps=2)
            noises.append(model.noise)
    assert noises[0] == noises[1] != noises[2]
    assert torch.equal(torch.rand(1), expected)


class Movable(torch.nn.Module, ControlModel):
    """A module that says where it was moved to; the weights stay, so that no second device is needed."""

    architecture, family = "movable", "sd15"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))
        self.moves: list[str] = []

    def to(self, device: Any) -> Any:  # type: ignore[override]
        self.moves.append(str(device))
        self.weight = torch.nn.Parameter(torch.zeros(1, device=device))
        return self

    def hint(self, image: Any) -> Any:
        return Pushes().hint(image)

    def forward(self, step: Any, hint: Any) -> Any:
        assert self.weight.device == step.x.device
        return Pushes()(step, hint)


def test_a_model_works_on_the_device_of_x_and_goes_back(pipe: Any) -> None:
    model = Movable()
    with guide(pipe, [Unit(model, GREY), Unit(model, GREY)]):
        run(pipe)
        run(pipe)
        assert model.moves == ["cpu"]
    assert model.moves == ["cpu", "meta"]
