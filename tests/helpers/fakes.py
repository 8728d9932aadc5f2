"""Models and runs for the tests of guide: what a model does is typed out, and what it was asked is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import tiny
import torch
from torch import Tensor

from controlnet_ext import ControlModel, Residuals, Step
from controlnet_ext.guidance.contract import Activation, AttentionModel, Host, UndoStack


class Pushes(ControlModel):
    """A model that pushes every skip and the middle block by a constant times its map's brightness; it counts calls."""

    architecture, family = "pushes", "sd15"

    def __init__(self, value: float = 0.5, fails_at: int | None = None, skips: int = 12):
        self.value, self.fails_at, self.skips = value, fails_at, skips
        self.steps: list[Step] = []
        self.hints: list[tuple[int, ...]] = []

    def hint(self, image: Any) -> Tensor:
        self.hints.append(tuple(image.shape))
        return torch.as_tensor(image).float().flatten(1).mean(dim=1) / 255

    def __call__(self, step: Step, hint: Tensor) -> Residuals:
        if len(self.steps) == self.fails_at:
            raise KeyError("the model fails")
        self.steps.append(step)
        push = self.value * hint.to(step.x)[:, None, None, None]
        return Residuals((push,) * self.skips, push)


class Plus(Pushes, AttentionModel):
    """Adds to the outputs of attention. All that kinds which touch attention need is here."""

    @contextmanager
    def attach(self, host: Host, hint: Tensor, now: Callable[[], Activation | None]) -> Iterator[None]:
        self.seen = [host.pixel_size, tuple(host.encode(np.zeros((*host.pixel_size, 3), np.uint8)).shape)]
        self.noise = torch.randn(3, generator=host.generator).tolist()
        self.nows: list[Activation | None] = []

        def wrap(before: Any) -> Any:
            def after(*args: Any, **kwargs: Any) -> Tensor:
                h, here = before(*args, **kwargs), now()
                self.nows.append(here)
                return h if here is None else h + self.value * here.strength[:, None, None].to(h)

            return after

        undo = UndoStack()
        try:
            try:
                for _, module, place in host.iter_attentions():
                    if place != "middle":
                        undo.push(partial(setattr, module, "processor", module.processor))
                        module.processor = wrap(module.processor)
                yield
            finally:
                undo.close()
        finally:
            undo.close()


GREY = np.full((tiny.SIZE, tiny.SIZE, 3), 128, np.uint8)
WHITE = np.full((tiny.SIZE, tiny.SIZE, 3), 255, np.uint8)


def run(pipe: Any, prompt: Any = "a cat", steps: int = 4, **given: Any) -> Tensor:
    prompts = prompt if isinstance(prompt, list) else [prompt]
    generators = [torch.Generator().manual_seed(i) for i, _ in enumerate(prompts)]
    call = {"num_inference_steps": steps, "output_type": "latent"}
    if "image" not in given:
        call |= {"height": tiny.SIZE, "width": tiny.SIZE}
    return pipe(prompts, generator=generators, **call, **given).images


def state(pipe: Any) -> dict[str, Any]:
    """All that a guide could have left behind: every attribute, hook and processor of every module, and the weights."""
    found: dict[str, Any] = {}
    for name, module in pipe.unet.named_modules():
        for key, value in vars(module).items():
            found[f"{name}:{key}"] = dict(value) if isinstance(value, dict) else value
    for name, tensor in pipe.unet.state_dict().items():
        found[name] = (tensor.data_ptr(), tensor._version)
    return found | {f"pipe:{k}": v for k, v in vars(pipe).items() if k != "_num_timesteps"}
