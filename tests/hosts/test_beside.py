"""Networks on a stream of their own: in which order things are begun and waited for, by a stand-in for torch.cuda.
tests/test_guide_gpu.py has the real one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from accelerate.utils import send_to_device
from diffusers import StableDiffusionPipeline
from fakes import Plus, Pushes, run
from ldm import UNetModel
from test_ldm_host import called, inputs, rows

from controlnet_ext import Unit, Window, guide
from controlnet_ext.guidance.contract import Residuals, Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.hosts import session
from controlnet_ext.hosts.ldm import guide as ldm
from controlnet_ext.hosts.session import open_side_stream
from controlnet_ext.hosts.side_stream import LazyResiduals, SideStream

GREY = torch.full((8, 8, 3), 128, dtype=torch.uint8).numpy()
STEP = ["own waits", "own works", "net", "own has all", "encoder", "encoder ends", "caller waits", "middle"]


class Cuda:
    """torch.cuda's streams, of which this writes down what is asked."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def Stream(self, device: torch.device) -> Any:
        return Line("own", self.said)

    def current_stream(self, device: torch.device) -> Any:
        return Line("caller", self.said)

    @contextmanager
    def stream(self, line: Any) -> Any:
        self.said.append(f"{line.name} works")
        yield
        self.said.append(f"{line.name} has all")


class Line:
    def __init__(self, name: str, said: list[str]):
        self.name, self._said = name, said

    def wait_stream(self, other: Any) -> None:
        assert other.name != self.name
        self._said.append(f"{self.name} waits")


class Told(Pushes):
    """Pushes, and says so."""

    def __init__(self, say: Callable[[str], None], **given: Any):
        super().__init__(**given)
        self._say = say

    def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
        self._say("net")
        return super().__call__(step, hint)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stand_in = Cuda()
    monkeypatch.setattr(session, "open_side_stream", lambda device: SideStream(device, stand_in))
    return stand_in


@pytest.fixture
def pipe(cuda: Cuda) -> Any:
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet())
    say = cuda.said.append
    pipe.unet.down_blocks[0].register_forward_pre_hook(lambda *_: say("encoder"))
    pipe.unet.down_blocks[-1].register_forward_hook(lambda *_: say("encoder ends"))
    pipe.unet.mid_block.register_forward_pre_hook(lambda *_: say("middle"))
    return pipe


def test_a_diffusers_unet_waits_for_the_net_after_its_encoder(pipe, cuda):
    plain = run(pipe)
    with guide(pipe, [Unit(Pushes(), GREY)]), pytest.MonkeyPatch.context() as without:
        without.setattr(session, "open_side_stream", lambda device: None)
        expected = run(pipe)
    cuda.said.clear()
    with guide(pipe, [Unit(Told(cuda.said.append), GREY)]):
        result = run(pipe, steps=4)
    assert cuda.said == STEP * 4
    assert torch.equal(result, expected) and not torch.equal(result, plain)


def test_several_units_are_waited_for_once(pipe, cuda):
    units = [Unit(Told(cuda.said.append), GREY), Unit(Told(cuda.said.append, value=0.2), GREY)]
    with guide(pipe, units):
        run(pipe, steps=1)
    assert cuda.said == [*STEP[:3], "net", *STEP[3:]]


def test_a_unit_at_rest_delays_nothing(pipe, cuda):
    with guide(pipe, [Unit(Told(cuda.said.append), GREY, window=Window(0, 0.5))]):
        run(pipe, steps=2)
    assert cuda.said[len(STEP) :] == ["own waits", "own works", "own has all", *STEP[4:6], "middle", "caller waits"]


def test_what_acts_in_the_attention_or_the_encoder_is_there_before(pipe, cuda):
    class Early(Told):
        def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
            made = super().__call__(step, hint)
            return Residuals(made.skips, made.middle, (made.skips[0],) * 4)

    with guide(pipe, [Unit(Early(cuda.said.append), GREY)]):
        run(pipe, steps=1)
    assert cuda.said == [*STEP[:4], "caller waits", "encoder", "encoder ends", "middle"]
    cuda.said.clear()
    with guide(pipe, [Unit(Plus(), GREY), Unit(Told(cuda.said.append), GREY)]):
        run(pipe, steps=1)
    assert cuda.said == ["net", "encoder", "encoder ends", "middle"]


def test_a_failing_unet_leaves_nothing_under_way(pipe, cuda):
    handle = pipe.unet.down_blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with guide(pipe, [Unit(Pushes(), GREY)]), pytest.raises(ZeroDivisionError):
        run(pipe)
    handle.remove()
    assert cuda.said[-1] == "caller waits" and cuda.said.count("own waits") == 1


def test_residuals_that_are_not_finite_are_told_when_the_unet_was_called(pipe, cuda):
    bad = Told(cuda.said.append, value=float("inf"))
    with (
        guide(pipe, [Unit(bad, GREY, window=Window(0.5, 1))]),
        pytest.raises(ValueError, match="the residuals of unit 1 are not finite in step 3 of 4"),
    ):
        run(pipe)
    assert cuda.said.count("net") == 1 and cuda.said[-1] == "middle"


def test_ldms_unet_waits_after_its_middle_block(cuda):
    model, given = UNetModel(tiny.unet()), inputs()
    model.input_blocks[0].register_forward_pre_hook(lambda *_: cuda.said.append("encoder"))
    model.middle_block.register_forward_pre_hook(lambda *_: cuda.said.append("middle"))
    model.output_blocks[0].register_forward_pre_hook(lambda *_: cuda.said.append("decoder"))
    with ldm.guide_ldm(model, [Unit(Told(cuda.said.append), GREY)]) as guiding:
        guiding.begin([Span(0, 1)], 0)
        for _ in range(2):
            guiding.announce_step(rows(span=Span(0, 1)))
            called(model, given)
    once = ["own waits", "own works", "net", "own has all", "encoder", "middle", "caller waits", "decoder"]
    assert cuda.said == once * 2


def test_a_copy_of_awaited_residuals_is_plain_and_was_waited_for():
    waited: list[int] = []
    tensors = torch.zeros(2), torch.ones(3)
    awaited = LazyResiduals(tensors, lambda: waited.append(1))
    assert len(awaited) == 2 and not waited
    copied = send_to_device(awaited, "cpu")
    assert waited and all(map(torch.equal, copied, tensors)) and torch.equal(awaited[1], tensors[1])


def test_a_processor_has_no_streams():
    assert open_side_stream(torch.device("cpu")) is None
