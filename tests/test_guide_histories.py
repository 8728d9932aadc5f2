"""Whatever happens in whatever order to guided runs on one UNet, it is as before in the end: a state machine. A
thousand histories are `pytest -m long tests/test_guide_histories.py`."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import fakes
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, T2IAdapter
from fakes import GREY, Plus, Pushes
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from networks import randomised

from controlnet_ext import Unit, guide
from controlnet_ext.models.t2i_adapter import load

ADAPTER = load(randomised(T2IAdapter(channels=[32, 64, 64, 64])).state_dict(), {})
KINDS = {"residuals": Pushes, "attention": Plus, "encoder": lambda: ADAPTER}
PIPE = tiny.pipeline(StableDiffusionPipeline)


def run() -> torch.Tensor:
    return fakes.run(PIPE, steps=1)


@functools.cache
def unguided() -> tuple[torch.Tensor, dict[str, Any]]:
    """The latents of a run, and all that a guide could change, before the first guide."""
    return run(), fakes.state(PIPE)


MODULES = [name for name, module in PIPE.unet.named_modules() if name and not list(module.children())]


class Histories(RuleBasedStateMachine):
    """Guides are entered, left in any order, and runs of the pipeline end well, fail or are interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[AbstractContextManager[None]] = []

    @precondition(lambda self: len(self.open) < 3)
    @rule(kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=2))
    def enter(self, kinds: list[str]) -> None:
        context = guide(PIPE, [Unit(KINDS[kind](), GREY) for kind in kinds])
        context.__enter__()
        self.open.append(context)

    @precondition(lambda self: self.open)
    @rule(place=st.integers(0, 2), failed=st.booleans())
    def leave(self, place: int, failed: bool) -> None:
        """In any order, by an exception too."""
        context = self.open.pop(place % len(self.open))
        if not failed:
            context.__exit__(None, None, None)
            return
        error = KeyError("what the user did in the block")
        with pytest.raises(KeyError):
            if not context.__exit__(KeyError, error, None):
                raise error

    @rule()
    def run_to_the_end(self) -> None:
        latents = run()
        assert self.open or torch.equal(latents, unguided()[0])

    @rule(name=st.sampled_from(MODULES), error=st.sampled_from([KeyError, KeyboardInterrupt, MemoryError]))
    def run_into_an_error(self, name: str, error: type[BaseException]) -> None:
        """A layer of the UNet fails, or the user interrupts the run there."""

        def fail(*_: Any) -> None:
            raise error("in the middle of the UNet")

        handle = PIPE.unet.get_submodule(name).register_forward_pre_hook(fail)
        try:
            with pytest.raises(error):
                run()
        finally:
            handle.remove()

    @rule(call=st.integers(0, 1))
    def run_with_a_failing_model(self, call: int) -> None:
        with guide(PIPE, [Unit(Plus(), GREY), Unit(Pushes(fails_at=call), GREY)]):
            if call == 0:
                with pytest.raises(KeyError):
                    run()
            else:
                run()

    def teardown(self) -> None:
        while self.open:
            self.open.pop().__exit__(None, None, None)
        assert fakes.state(PIPE) == unguided()[1]


def histories(count: int) -> None:
    unguided()
    given = settings(
        max_examples=count,
        stateful_step_count=6,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        database=None,
    )
    run_state_machine_as_test(Histories, settings=given)
    assert torch.equal(run(), unguided()[0])


def test_random_histories_leave_the_unet_as_it_was() -> None:
    histories(8)


@pytest.mark.long
def test_a_thousand_random_histories_leave_the_unet_as_it_was() -> None:
    histories(1000)
