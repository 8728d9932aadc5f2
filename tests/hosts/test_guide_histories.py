"""Whatever happens in whatever order to guided runs on one UNet, each run is that of the guides which are open, and the
UNet is as before in the end: a state machine. A thousand histories are `pytest -m long` of this file."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import fakes
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from fakes import GREY, Plus, Pushes
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from networks import randomised
from torch.nn.modules.module import register_module_forward_pre_hook

from controlnet_ext import Residuals, Step, Unit, Window, guide
from controlnet_ext.hosts.session import BUSY_MESSAGE

STEPS = 2
SKIPS = 4  # of the UNet below


class Encoder(Pushes):
    """Acts inside the encoder, as T2I-Adapters do."""

    def __call__(self, step: Step, hint: torch.Tensor) -> Residuals:
        return Residuals(encoder=super().__call__(step, hint).skips[:2])


class After(Pushes):
    """Acts after each step."""

    acts_after_step = True

    def after_step(self, x0: torch.Tensor, step: Step) -> torch.Tensor:
        return x0 * 0.75


KINDS = {
    "residuals": Pushes,
    "attention": Plus,
    "encoder": Encoder,
    "after": After,
    "late attention": Plus,
    "early attention": Plus,
    "late residuals": Pushes,
}
WINDOWS = {"late": Window(0.5, 1), "early": Window(0, 0.5)}


def units(kinds: tuple[str, ...]) -> list[Unit]:
    return [
        Unit(KINDS[kind](skips=SKIPS), GREY, window=WINDOWS.get(kind.partition(" ")[0], Window(0, 1))) for kind in kinds
    ]


def pipeline() -> Any:
    """Two levels of 8 channels, which take milliseconds."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=32,
    )
    return tiny.pipeline(StableDiffusionPipeline, unet=randomised(unet))


PIPE, OTHER = pipeline(), pipeline()


def run(pipe: Any = PIPE, **given: Any) -> torch.Tensor:
    return fakes.run(pipe, steps=STEPS, **given)


@functools.cache
def expected(kinds: tuple[str, ...]) -> torch.Tensor:
    """The latents of a run with these units in one guide, of a UNet with the same weights that nothing ever failed
    in."""
    with guide(OTHER, units(kinds)):
        return run(OTHER)


def is_expected(latents: torch.Tensor, kinds: tuple[str, ...]) -> bool:
    """Where guides nest that act after a step, each reads the image off the output of the one before, which rounds:
    measured 2e-6 where values reach 6. What a unit does is over 0.06."""
    return (latents - expected(kinds)).abs().max().item() < 1e-4


@functools.cache
def before() -> dict[str, Any]:
    """All that a guide could change, before the first one."""
    run()
    return fakes.state(PIPE)


@functools.cache
def module_calls() -> int:
    """How many modules a run calls, from the text encoder to the UNet's last."""
    called = []
    with at_each_call(lambda: called.append(1)):
        run()
    return len(called)


@contextmanager
def at_each_call(act: Any) -> Iterator[None]:
    handle = register_module_forward_pre_hook(lambda *_: act())
    try:
        yield
    finally:
        handle.remove()


class Histories(RuleBasedStateMachine):
    """Guides are entered, left in any order, and runs of the pipeline end well, fail or are interrupted."""

    def __init__(self) -> None:
        super().__init__()
        module_calls()  # while nothing guides: units' own modules would count too
        self.open: list[tuple[tuple[str, ...], AbstractContextManager[None]]] = []

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kinds, _ in self.open for kind in kinds)

    @precondition(lambda self: len(self.open) < 3)
    @rule(kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=2).map(tuple))
    def enter(self, kinds: tuple[str, ...]) -> None:
        context = guide(PIPE, units(kinds))
        context.__enter__()
        self.open.append((kinds, context))

    @precondition(lambda self: self.open)
    @rule(place=st.integers(0, 2), failed=st.booleans())
    def leave(self, place: int, failed: bool) -> None:
        """In any order, by an exception too."""
        _, context = self.open.pop(place % len(self.open))
        if not failed:
            context.__exit__(None, None, None)
            return
        error = KeyError("what the user did in the block")
        with pytest.raises(KeyError):
            if not context.__exit__(KeyError, error, None):
                raise error

    @rule()
    def run_to_the_end(self) -> None:
        assert is_expected(run(), self.kinds)

    @rule(part=st.floats(0, 1, exclude_max=True), error=st.sampled_from([KeyError, KeyboardInterrupt, MemoryError]))
    def run_into_an_error(self, part: float, error: type[BaseException]) -> None:
        """The k-th call of a module fails, or the user interrupts the run there."""
        left = int(part * module_calls())

        def fail() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise error("in the middle of the run")

        with at_each_call(fail), pytest.raises(error):
            run()

    @rule()
    def be_interrupted_between_two_steps(self) -> None:
        def ended(*_: Any) -> dict[str, Any]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(callback_on_step_end=ended)

    @rule(call=st.integers(0, STEPS))
    def run_with_a_failing_model(self, call: int) -> None:
        failing = Unit(Pushes(skips=SKIPS, fails_at=call), GREY)
        with guide(PIPE, [*units(("attention",)), failing]):
            if call < STEPS:
                with pytest.raises(KeyError):
                    run()
            else:
                run()

    @precondition(lambda self: self.open)
    @rule()
    def run_while_another_thread_tries(self) -> None:
        """It is refused at each step of ours, and ours is what it is without."""
        refused: list[str] = []

        def other() -> None:
            for attempt in (lambda: guide(PIPE, units(("attention",))).__enter__(), lambda: PIPE.unet(*call)):
                with pytest.raises(RuntimeError) as error:
                    attempt()
                refused.append(str(error.value))

        def meanwhile(*_: Any) -> None:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

        call = torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 16, 32)
        handle = PIPE.unet.mid_block.register_forward_pre_hook(meanwhile)
        try:
            assert is_expected(run(), self.kinds)
        finally:
            handle.remove()
        assert refused == [BUSY_MESSAGE] * 2 * STEPS

    def teardown(self) -> None:
        while self.open:
            self.open.pop()[1].__exit__(None, None, None)
        assert fakes.state(PIPE) == before()


def histories(count: int) -> None:
    before()
    given = settings(
        max_examples=count,
        stateful_step_count=8,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        database=None,
    )
    run_state_machine_as_test(Histories, settings=given)
    assert torch.equal(run(), expected(()))


def test_random_histories_leave_the_unet_as_it_was() -> None:
    histories(8)


def test_a_failure_at_every_eleventh_module_call_leaves_the_unet_as_it_was() -> None:
    """The thousand histories draw the others."""
    before()
    kinds = ("residuals", "late attention", "attention", "after")
    for k in range(0, module_calls(), 11):
        history = Histories()
        history.enter(kinds)
        history.run_into_an_error(k / module_calls(), KeyError)
        history.teardown()
    assert torch.equal(run(), expected(()))


@pytest.mark.long
def test_a_thousand_random_histories_leave_the_unet_as_it_was() -> None:
    histories(1000)
