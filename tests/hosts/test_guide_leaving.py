"""Entering and leaving in any order, in tasks, and interrupted at any line: nothing stays behind, and nobody else's
units act."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import fakes
import pytest
import test_lllite
import test_style
import test_toy_host
import test_transformer_controls as transformers
import tiny
import torch
from diffusers import StableDiffusionPipeline
from fakes import GREY, Plus, Pushes, state
from ldm import UNetModel
from limits import wait_until
from test_guide_histories import SKIPS, pipeline
from test_guide_threads import pipes
from test_guide_threads import run as run_encoded
from test_guide_traces import Movable

import controlnet_ext
from controlnet_ext import Span, Unit, Window, guide
from controlnet_ext.guidance.contract import UndoStack
from controlnet_ext.hosts import session
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.hosts.session import BUSY_MESSAGE, GuidedUNet, GuideSession
from controlnet_ext.models.kinds import lllite

LATE = Window(0.5, 1)


class Broken(Exception):
    pass


# Order of leaving


class Named(Plus):
    """Writes down its name when it acts in the first attention."""

    def __init__(self, name: str, said: list[str]):
        super().__init__(skips=SKIPS)
        self._name, self._said = name, said

    @contextmanager
    def attach(self, host: Any, hint: Any, now: Any) -> Iterator[None]:
        module = next(iter(host.iter_attentions()))[1]
        undo = UndoStack()
        undo.register_forward_pre_hook(module, lambda *_: self._said.append(self._name) if now() else None)
        with super().attach(host, hint, now):
            try:
                yield
            finally:
                undo.close()


@pytest.mark.parametrize("nested", [False, True], ids=["one guide", "nested guides"])
def test_units_of_attention_that_begin_late_leave_nothing(nested: bool) -> None:
    pipe = pipeline()
    plain = fakes.run(pipe)
    before, said = state(pipe), []
    late, always = Unit(Named("first", said), GREY, window=LATE), Unit(Named("second", said), GREY)
    with contextlib.ExitStack() as guides:
        for units in [[late], [always]] if nested else [[late, always]]:
            guides.enter_context(guide(pipe, units))
        guided = fakes.run(pipe, steps=2)
        again = fakes.run(pipe, steps=2)
    assert state(pipe) == before and torch.equal(fakes.run(pipe), plain)
    assert torch.equal(guided, again)
    assert said == ["second", "first", "second"] * 2  # in their order, also where the first begins later


def test_late_units_of_attention_leave_nothing_in_ldms_unet() -> None:
    unet = UNetModel(tiny.unet("SDXL"))
    net = lllite.load(test_lllite.weights(), {})
    call = ldm_inputs()
    with torch.no_grad():
        plain, before = unet(*call), state(SimpleNamespace(unet=unet))
        spans = [Span(0, 0.5), Span(0.5, 1)]
        with guide_ldm(unet, [Unit(net, GREY, window=LATE), Unit(net, GREY)]) as guiding:
            guiding.begin(spans, 0)
            for span in spans:
                guiding.announce_step(BatchRows(span, [0, 0], [True, False]))
                unet(*call)
        assert before.items() <= state(SimpleNamespace(unet=unet)).items() and torch.equal(unet(*call), plain)


def ldm_inputs() -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    x, context, y = (torch.randn(shape, generator=draw) for shape in ((2, 4, 8, 8), (2, 16, 64), (2, 80)))
    return x, torch.full((2,), 500.0), context, y


# Tasks


def test_two_tasks_of_one_thread_are_each_guided_or_refused() -> None:
    pipe = pipeline()
    models = [Pushes(0.2, skips=SKIPS), Pushes(0.7, skips=SKIPS)]
    expected = []
    for model in models:
        with guide(pipe, [Unit(model, GREY)]):
            expected.append(run_encoded(pipe))
    before = state(pipe)

    async def work(i: int) -> Any:
        try:
            with guide(pipe, [Unit(models[i], GREY)]):
                await asyncio.sleep(0)
                return run_encoded(pipe)
        except RuntimeError as error:
            return str(error)

    async def main() -> list[Any]:
        return await asyncio.gather(work(0), work(1))

    first, second = asyncio.run(main())
    assert torch.equal(first, expected[0]) and second == BUSY_MESSAGE
    assert state(pipe) == before and not session._guided_unets


def test_a_task_without_a_guide_is_refused_while_another_guides() -> None:
    pipe, other_pipe = pipes(2)  # on one UNet
    seen: list[Any] = []

    async def main() -> None:
        entered, done = asyncio.Event(), asyncio.Event()

        async def guided() -> None:
            with guide(pipe, [Unit(Pushes(skips=SKIPS), GREY)]):
                entered.set()
                await done.wait()

        async def other() -> None:
            await entered.wait()
            with pytest.raises(RuntimeError) as error:
                run_encoded(other_pipe)
            seen.append(str(error.value))
            done.set()

        await asyncio.gather(guided(), other())

    asyncio.run(main())
    assert seen == [BUSY_MESSAGE]


def test_tasks_inside_one_guide_cannot_each_add_units() -> None:
    """They inherit the guide, and the second would find the units of the first."""
    pipe = pipeline()
    unit = Unit(Pushes(0.3, skips=SKIPS), GREY)
    with guide(pipe, [unit, unit]):
        both = run_encoded(pipe)

    async def child() -> Any:
        try:
            with guide(pipe, [unit]):
                await asyncio.sleep(0)
                return run_encoded(pipe)
        except RuntimeError as error:
            return str(error)

    async def main() -> list[Any]:
        with guide(pipe, [unit]):
            found = [*await asyncio.gather(child(), child())]
            return [*found, await child()]  # when the first is done there is nobody else's

    first, second, third = asyncio.run(main())
    torch.testing.assert_close(first, both, rtol=0, atol=1e-5)
    assert second == BUSY_MESSAGE and torch.equal(third, first)


def test_a_guide_goes_along_to_the_threads_of_its_task() -> None:
    pipe = pipeline()
    units = [Unit(Plus(skips=SKIPS), GREY), Unit(Pushes(skips=SKIPS), GREY)]
    with guide(pipe, units):
        expected = run_encoded(pipe)
    before = state(pipe)

    async def main() -> None:
        with guide(pipe, units):
            assert torch.equal(await asyncio.to_thread(run_encoded, pipe), expected)
            assert torch.equal(await asyncio.to_thread(run_encoded, pipe), expected)
            assert torch.equal(run_encoded(pipe), expected)
            with pytest.raises(RuntimeError, match=re.escape(BUSY_MESSAGE)):
                await asyncio.get_running_loop().run_in_executor(None, run_encoded, pipe)
            assert torch.equal(run_encoded(pipe), expected)

    asyncio.run(main())
    assert state(pipe) == before


def test_two_threads_of_one_task_do_not_mix_their_runs() -> None:
    pipe = pipeline()
    unit = Unit(Pushes(skips=SKIPS), GREY)
    with guide(pipe, [unit]):
        expected = run_encoded(pipe)
    inside, refused = threading.Event(), threading.Event()

    async def main() -> list[Any]:
        owner: list[int] = []

        def wait(*_: Any) -> None:
            if not owner:
                owner.append(threading.get_ident())
                inside.set()
                wait_until(refused.is_set)

        def second() -> None:
            wait_until(inside.is_set)
            try:
                pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 16, 32))
            finally:
                refused.set()

        handle = pipe.unet.mid_block.register_forward_pre_hook(wait)
        try:
            with guide(pipe, [unit]):
                calls = asyncio.to_thread(run_encoded, pipe), asyncio.to_thread(second)
                return [*await asyncio.gather(*calls, return_exceptions=True)]
        finally:
            handle.remove()

    found, error = asyncio.run(main())
    assert torch.equal(found, expected) and str(error) == BUSY_MESSAGE


# Interrupts

ROOT = Path(controlnet_ext.__file__).parent
WATCHED = [str(ROOT / "hosts"), str(ROOT / "guidance"), str(ROOT / "models" / "kinds"), contextlib.__file__]
WATCHED += [torch.utils.hooks.__file__, torch.nn.modules.module.__file__]


class Interrupter:
    """Raises KeyboardInterrupt before the `at`-th line, from 0, that the watched files run while it is on."""

    def __init__(self, at: int | None = None):
        self.at = at
        self.places: list[tuple[str, int]] = []  # the lines, as file and number

    @property
    def has_raised(self) -> bool:
        return self.at is not None and len(self.places) > self.at

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.places.append((frame.f_code.co_filename, frame.f_lineno))
            if self.has_raised:
                raise KeyboardInterrupt
        elif not frame.f_code.co_filename.startswith(tuple(WATCHED)):
            return None
        return self.trace

    @contextmanager
    def off(self) -> Iterator[None]:
        sys.settrace(None)
        try:
            yield
        finally:
            if not self.has_raised:
                sys.settrace(self.trace)


Situation = tuple[Any, Callable[[], AbstractContextManager[Any]], Callable[[Any], None]]


def diffusers_situation() -> Situation:
    """A run that fails in its middle, so that attention, hooks and the place of a model are to be restored at once."""
    pipe = pipeline()
    attention = [Unit(Plus(skips=SKIPS), GREY, window=LATE), Unit(Plus(skips=SKIPS), GREY)]
    units = [*attention, Unit(MovableNarrow(), GREY)]

    def body(_: Any) -> None:
        def end(_: Any, step: int, *__: Any) -> dict[str, Any]:
            if step == 1:
                raise Broken
            return {}

        fakes.run(pipe, steps=4, callback_on_step_end=end)

    return pipe.unet, lambda: guide(pipe, units), body


class MovableNarrow(Movable):
    def forward(self, step: Any, hint: Any) -> Any:
        return Pushes(skips=SKIPS)(step, hint)


def ldm_situation() -> Situation:
    unet = UNetModel(tiny.unet("SDXL"))
    names = [name for name in test_lllite.weights() if "middle" in name and "attn1" in name]
    net = lllite.load({name: test_lllite.weights()[name] for name in names}, {})
    units = [Unit(net, GREY, window=LATE), Unit(net, GREY), Unit(Pushes(skips=9), GREY)]
    call = ldm_inputs()
    spans = [Span(0, 0.5), Span(0.5, 1)]

    @torch.no_grad()
    def body(guiding: Any) -> None:
        guiding.begin(spans, 0)
        guiding.announce_step(BatchRows(spans[0], [0, 0], [True, False]))
        unet(*call)
        raise Broken

    return unet, lambda: guide_ldm(unet, units), body


def style_situation() -> Situation:
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=tiny.unet())
    net = test_style.ours()
    units = [Unit(net, test_style.seen())]

    def body(_: Any) -> None:
        def end(*_: Any) -> dict[str, Any]:
            raise Broken

        fakes.run(pipe, steps=2, callback_on_step_end=end)

    return pipe.unet, lambda: guide(pipe, units), body


def toy_situation() -> Situation:
    pipe = pipeline()
    unet = pipe.unet
    units = [Unit(Plus(skips=SKIPS), GREY), Unit(Pushes(skips=SKIPS), GREY)]

    @contextmanager
    def entering() -> Iterator[Any]:
        own = GuideSession(units, unet)
        with own.enter(unet, lambda: GuidedUNet(unet)) as guided:
            yield own, guided

    @torch.no_grad()
    def body(entered: Any) -> None:
        own, guided = entered
        host = test_toy_host.ToyHost(unet, pipe.vae)
        x = host.x = torch.zeros(2, 4, 8, 8)
        own.begin_run([Span(0, 1)], host)
        step = controlnet_ext.Step(x, torch.full((2,), 1), torch.zeros(2, 16, 32), Span(0, 1))
        guided.claim_call()
        guided.start_call(x, is_new_run=True)
        guided.sum_residuals([own.compute_residuals(step, lambda: None)], x.device)
        raise Broken

    return unet, entering, body


def transformer_situation() -> Situation:
    pipe = transformers.pipeline("sd3")
    net = transformers.TransformerControlNet(transformers.control("sd3"), "sd3")

    def body(_: Any) -> None:
        raise Broken

    return pipe.transformer, lambda: guide(pipe, [Unit(net, GREY)]), body


SITUATIONS = {
    "diffusers": diffusers_situation,
    "ldm": ldm_situation,
    "style": style_situation,
    "toy": toy_situation,
    "transformer": transformer_situation,
}


def interrupt(situation: Situation, at: int | None) -> Interrupter:
    """Enter, work and leave, with an interrupt at this line of entering or leaving."""
    _, entering, body = situation
    interrupter = Interrupter(at)
    try:
        sys.settrace(interrupter.trace)
        with entering() as entered, interrupter.off():
            body(entered)
    except (KeyboardInterrupt, Broken):
        pass
    finally:
        sys.settrace(None)
    return interrupter


def snapshot(unet: Any) -> dict[str, Any]:
    return state(SimpleNamespace(unet=unet))


def campaign(name: str, places: slice, occurrences: int) -> int:
    """Interrupt at these of all distinct lines, each at the first of its occurrences and at others, evenly spaced.

    Return the number of interrupts."""
    situation = SITUATIONS[name]()
    interrupt(situation, None)  # what a first run gives a pipe
    before = snapshot(situation[0])
    found: dict[tuple[str, int], list[int]] = {}
    for at, place in enumerate(interrupt(situation, None).places):
        found.setdefault(place, []).append(at)
    points = [at for each in [*found.values()][places] for at in each[:: -(-len(each) // occurrences)]]
    left = []
    for at in points:
        interrupter = interrupt(situation, at)
        assert interrupter.has_raised
        if snapshot(situation[0]) != before or session._guided_unets or session._entered_sessions.get():
            left.append(interrupter.places[at])
            session._guided_unets.clear()
            situation = SITUATIONS[name]()
            interrupt(situation, None)
            before = snapshot(situation[0])
    assert not left, f"{len(left)} of {len(points)}: {left[:8]}"
    return len(points)


@pytest.mark.parametrize("name", SITUATIONS)
def test_an_interrupt_while_entering_or_leaving_leaves_nothing(name: str) -> None:
    """At every twentieth line; `pytest -m long` has all."""
    assert campaign(name, slice(5, None, 20), 1)


@pytest.mark.long
def test_interrupts_at_each_line_of_entering_or_leaving_leave_nothing() -> None:
    hits = {name: campaign(name, slice(None), 4) for name in SITUATIONS}
    print(hits)
    assert sum(hits.values()) >= 1500
