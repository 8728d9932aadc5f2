"""Eight threads on one UNet: each guided run is right or refused in one line, never mixed with another's."""

from __future__ import annotations

import threading
from typing import Any

import tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from fakes import GREY, Plus, Pushes, state
from ldm import UNetModel
from limits import HANG
from test_guide_histories import SKIPS, After, pipeline

from controlnet_ext import Span, Unit, guide
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.hosts.session import BUSY_MESSAGE

THREADS, TRIES = 8, 4


def pipes(count: int) -> list[Any]:
    """Pipelines that share their networks, each with a scheduler of its own, as a server has them."""
    parts = pipeline().components
    made = []
    for _ in range(count):
        own = {**parts, "scheduler": DDIMScheduler(**tiny.DDIM)}
        made.append(StableDiffusionPipeline(**own, requires_safety_checker=False))
        made[-1].set_progress_bar_config(disable=True)
    return made


def run(pipe: Any) -> torch.Tensor:
    """Two steps. The prompt is encoded already: tokenizers of transformers 5 are not safe in threads, they mix up how
    far they pad."""
    draw = torch.Generator().manual_seed(0)
    words = {name: torch.randn(1, 16, 32, generator=draw) for name in ("prompt_embeds", "negative_prompt_embeds")}
    call = {"height": tiny.SIZE, "width": tiny.SIZE, "num_inference_steps": 2, "output_type": "latent"}
    return pipe(**words, **call, generator=draw).images


def units(i: int) -> list[Unit]:
    return [Unit(kind(0.1 + i / 10, skips=SKIPS), GREY, weight=0.5 + i / 10) for kind in (Pushes, Plus, After)]


def in_threads(work: Any) -> None:
    """`work(i)` in as many threads, which begin together. What they raise is raised."""
    ready, errors = threading.Barrier(THREADS), []

    def thread(i: int) -> None:
        ready.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=thread, args=(i,)) for i in range(THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for error in errors:
        raise error


def test_guided_runs_of_eight_threads_are_right_or_refused() -> None:
    own = pipes(THREADS)
    run(own[0])
    before = state(own[0])
    expected = []
    for i, pipe in enumerate(own):
        with guide(pipe, units(i)):
            expected.append(run(pipe))
    right, refused = [0] * THREADS, [0] * THREADS

    def work(i: int) -> None:
        for _ in range(TRIES):
            try:
                with guide(own[i], units(i)):
                    found = run(own[i])
            except RuntimeError as error:
                assert str(error) == BUSY_MESSAGE
                refused[i] += 1
            else:
                assert torch.equal(found, expected[i])
                right[i] += 1

    in_threads(work)
    assert sum(right) >= 1 and sum(right) + sum(refused) == THREADS * TRIES
    after = state(own[0])
    assert {k: v for k, v in after.items() if not k.startswith("pipe:")} == {
        k: v for k, v in before.items() if not k.startswith("pipe:")
    }
    with guide(own[3], units(3)):
        assert torch.equal(run(own[3]), expected[3])


def test_threads_without_a_guide_are_refused_while_one_guides_and_do_not_disturb_it() -> None:
    own = pipes(THREADS)
    plain = run(own[1])
    with guide(own[0], units(0)):
        expected = run(own[0])
    done = threading.Event()
    seen: list[list[str]] = [[] for _ in range(THREADS)]

    def work(i: int) -> None:
        if i == 0:
            try:
                with guide(own[0], units(0)):
                    while not all(BUSY_MESSAGE in each for each in seen[1:]):  # each is refused once at least
                        assert torch.equal(run(own[0]), expected)
            finally:
                done.set()
            return
        while not done.is_set():
            try:
                assert torch.equal(run(own[i]), plain)
                seen[i].append("right")
            except RuntimeError as error:
                seen[i].append(str(error))

    in_threads(work)
    assert {word for each in seen for word in each} <= {BUSY_MESSAGE, "right"}


def under_way(unet: Any, call: Any, guided: Any) -> torch.Tensor:
    """What `call` gives in a thread that has begun before `guided` begins in this one, and goes on in its middle."""
    begun, guiding, ended = (threading.Event() for _ in range(3))
    found: list[torch.Tensor] = []

    def other() -> None:
        found.append(call())
        ended.set()

    thread = threading.Thread(target=other)

    def first(*_: Any) -> None:
        if threading.get_ident() == thread.ident:
            begun.set()
            assert guiding.wait(HANG)

    def middle(*_: Any) -> None:
        if threading.get_ident() != thread.ident:
            guiding.set()
            assert ended.wait(HANG)

    conv = unet.conv_in if hasattr(unet, "conv_in") else unet.input_blocks[0]
    handles = [conv.register_forward_pre_hook(first), conv.register_forward_hook(middle)]
    thread.start()
    try:
        assert begun.wait(HANG)
        guided()
    finally:
        guiding.set()
        thread.join()
        for handle in handles:
            handle.remove()
    return found[0]


def test_a_call_that_was_under_way_when_a_guide_began_is_as_without() -> None:
    pipe = pipes(1)[0]
    call = torch.randn(2, 4, 8, 8), 500, torch.randn(2, 16, 32)

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return pipe.unet(*call).sample

    def guided() -> None:
        with guide(pipe, units(7)):
            run(pipe)

    expected = plain()
    assert torch.equal(under_way(pipe.unet, plain, guided), expected)


def test_so_it_is_on_an_ldm_unet() -> None:
    unet = UNetModel(tiny.unet())
    call = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0), torch.randn(2, 16, 32)

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return unet(*call)

    def guided() -> None:
        with guide_ldm(unet, [Unit(Pushes(), GREY)]) as guiding:
            guiding.begin([Span(0, 1)], 0)
            guiding.announce_step(BatchRows(Span(0, 1), [0, 0], [True, False]))
            plain()

    expected = plain()
    assert torch.equal(under_way(unet, plain, guided), expected)
