"""Teaches the text encoder to hold a thing's colour in its noun at any place in a caption:
`python -m tools.embedded_model.train_text runs/base runs/bound`, after `train_base`.

Trained with the UNet alone it does so for the first thing only, as little of the UNet's loss depends on the others.
The states of the colour and the noun of each thing become those that they have as the first; all other states stay.
"""

from __future__ import annotations

import argparse
import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from controlnet_ext.embedded.scenes import THING_COLORS, THING_KINDS
from controlnet_ext.training.config import TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.losses import make_generator

BATCH_SIZE = 64
HELD_OUT_CAPTIONS = 512  # captions, the last
THING_LOSS_SHARE = 0.2  # of the loss, of states that change; they are a twentieth of all


class BindingTargets:
    """The wanted states of captions: those of `text`, a CLIPTextModel, with each thing as if it were the first."""

    def __init__(self, text: nn.Module, tokenizer: Any):
        self._text = text
        self._color_ids, self._kind_ids = (
            tokenizer.convert_tokens_to_ids([f"{w}</w>" for w in some]) for some in (THING_COLORS, THING_KINDS)
        )
        firsts = tokenizer([f"{'an' if c == 'orange' else 'a'} {c} {k}" for c, k in product(THING_COLORS, THING_KINDS)])
        states = self._encode(torch.tensor(firsts.input_ids))[:, 2:4]  # after the start and the article
        self._first_states = states.reshape(len(THING_COLORS), len(THING_KINDS), 2, -1)

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The states (B, T, D) for tokens (B, T), and which of them (B, T) are a thing's."""
        states, things = self._encode(tokens), torch.zeros(tokens.shape, dtype=torch.bool)
        for row, place in (sum(tokens == kind for kind in self._kind_ids) > 0).nonzero().tolist():
            color, kind = tokens[row, place - 1 : place + 1].tolist()
            states[row, place - 1 : place + 1] = self._first_states[
                self._color_ids.index(color), self._kind_ids.index(kind)
            ]
            things[row, place - 1 : place + 1] = True
        return states, things

    @torch.no_grad()
    def _encode(self, tokens: Tensor) -> Tensor:
        return self._text(tokens).last_hidden_state


def compute_binding_loss(text: nn.Module, targets: BindingTargets, tokens: Tensor) -> Tensor:
    """Squared errors of the states: of things' and of all others', each its share."""
    target, things = targets(tokens)
    errors = (text(tokens).last_hidden_state.float() - target).square().mean(2)
    return THING_LOSS_SHARE * errors[things].mean() + (1 - THING_LOSS_SHARE) * errors[~things].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="what train_base has written")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2_000)
    options = parser.parse_args()
    pipe: Any = StableDiffusionPipeline.from_pretrained(options.base / "model", local_files_only=True)
    with np.load(options.base / "training.npz") as archive:
        tokens = torch.from_numpy(archive["tokens"]).long()
    binding_targets = BindingTargets(copy.deepcopy(pipe.text_encoder).eval(), pipe.tokenizer)
    held_out = tokens[-HELD_OUT_CAPTIONS:]

    def step_loss(text: nn.Module, step: int, batch: int) -> Tensor:
        rows = torch.randint(len(tokens) - HELD_OUT_CAPTIONS, (BATCH_SIZE,), generator=make_generator(step, batch))
        return compute_binding_loss(text, binding_targets, tokens[rows])

    def measure(text: nn.Module, step: int) -> dict[str, float]:
        with torch.no_grad():
            return {"held_out": compute_binding_loss(text, binding_targets, held_out).item()}

    schedule = TrainingSchedule(options.steps, learning_rate=1e-3, ema_decay=0.99, weight_decay=0)
    net = train(pipe.text_encoder, step_loss, measure, schedule, options.folder)
    if net is not None:
        pipe.text_encoder = net
        pipe.save_pretrained(options.folder / "model")


if __name__ == "__main__":
    main()
