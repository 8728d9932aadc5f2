"""T2I-Adapter's style adapter: the authors' network and samplers, typed out on torch's modules."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from networks import randomised
from torch import nn

from controlnet_ext import PerSample, Unit, Window, guide, load
from controlnet_ext.maps.control_map import ControlMap
from controlnet_ext.models import iter_kinds
from controlnet_ext.models.inspection import inspect
from controlnet_ext.models.kinds import style_adapter

WIDTH, CONTEXT, TOKENS = 32, 32, 5
CALL = {"num_inference_steps": 4, "output_type": "latent", "height": tiny.SIZE, "width": tiny.SIZE}


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Theirs(nn.Module):
    """TencentARC/T2I-Adapter @ 168f87f, adapter.py: names and formula of StyleAdapter."""

    def __init__(self) -> None:
        super().__init__()

        def block() -> nn.ModuleDict:
            inner = [
                ("c_fc", nn.Linear(WIDTH, 4 * WIDTH)),
                ("gelu", QuickGELU()),
                ("c_proj", nn.Linear(4 * WIDTH, WIDTH)),
            ]
            return nn.ModuleDict({
                "attn": nn.MultiheadAttention(WIDTH, 8),
                "ln_1": nn.LayerNorm(WIDTH),
                "mlp": nn.Sequential(OrderedDict(inner)),
                "ln_2": nn.LayerNorm(WIDTH),
            })  # fmt: skip

        self.transformer_layes = nn.Sequential(*(block() for _ in range(3)))
        self.style_embedding = nn.Parameter(torch.empty(1, TOKENS, WIDTH))
        self.ln_post, self.ln_pre = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.empty(WIDTH, CONTEXT))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        x = torch.cat([states, self.style_embedding.expand(len(states), -1, -1)], dim=1)
        x = self.ln_pre(x).permute(1, 0, 2)  # tokens first, as that attention wants it
        for block in self.transformer_layes:
            normed = block["ln_1"](x)
            x = x + block["attn"](normed, normed, normed, need_weights=False)[0]
            x = x + block["mlp"](block["ln_2"](x))
        return self.ln_post(x.permute(1, 0, 2)[:, -TOKENS:]) @ self.proj


def theirs() -> Theirs:
    net: Any = randomised(Theirs())
    return net


def ours() -> style_adapter.StyleAdapter:
    return style_adapter.load(theirs().state_dict(), {})


def states(seed: int = 0, count: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def holding(values: Any) -> ControlMap:
    return ControlMap(fakes.GREY, "embedding", values=values)


def seen(seed: int = 0) -> ControlMap:
    return holding(states(seed))


@torch.no_grad()
def test_its_tokens_are_those_of_the_authors_network() -> None:
    both = torch.from_numpy(np.stack([states(1), states(2)]))
    expected = theirs()(both)
    assert (ours().hint(both) - expected).abs().max() <= 1e-5 * expected.std()  # other orders of sums in attention
    assert len(ours().hint(both[:1].expand(4, -1, -1))) == 1


@torch.no_grad()
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_an_image_is_that_of_prompts_with_the_tokens_appended_as_the_authors_samplers_do(weight: float) -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    prompt, absent = pipe.encode_prompt("a cat", "cpu", 1, True)
    tokens = ours().hint(torch.from_numpy(states())[None]) * weight
    embedded = {
        "prompt_embeds": torch.cat([prompt, tokens], dim=1),
        "negative_prompt_embeds": torch.cat([absent, absent[:, -TOKENS:]], dim=1),
    }
    expected = pipe(generator=torch.Generator().manual_seed(0), **CALL, **embedded).images
    with guide(pipe, [Unit(ours(), seen(), weight=weight)]):
        made = fakes.run(pipe)
    assert torch.equal(made, expected)
    assert (fakes.run(pipe) - made).abs().max() >= 1e-3


def test_it_leaves_no_trace_and_rests_outside_its_window() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    plain, before = fakes.run(pipe), fakes.state(pipe)
    with guide(pipe, [Unit(ours(), seen(), window=Window(0, 0.5))]):
        half = fakes.run(pipe)
    with guide(pipe, [Unit(ours(), seen())]):
        whole = fakes.run(pipe)
    assert fakes.state(pipe) == before and torch.equal(fakes.run(pipe), plain)
    assert not torch.equal(half, plain) and not torch.equal(half, whole)


def test_each_image_of_a_batch_may_have_its_own_style() -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    with guide(pipe, [Unit(ours(), PerSample([seen(1), seen(2)]))]):
        both = fakes.run(pipe, ["a cat", "a dog"])
    for i, prompt in enumerate(("a cat", "a dog")):
        with guide(pipe, [Unit(ours(), seen(i + 1))]):
            alone = pipe(prompt, generator=torch.Generator().manual_seed(i), **CALL).images
        assert (both[i] - alone[0]).abs().max() <= 1e-4  # batches of other sizes


def test_the_authors_file_loads_and_says_what_it_is(tmp_path: Path) -> None:
    for prefix in ("", "adapter."):
        file = tmp_path / f"{prefix}style.pth"
        torch.save({prefix + name: tensor for name, tensor in theirs().state_dict().items()}, file)
        told = inspect(file)
        assert (told.architecture, told.problem, told.details["tokens"]) == ("t2i-style-adapter", None, TOKENS)
        assert told.parameters == sum(p.numel() for p in theirs().parameters())
        assert load(file).hint(torch.zeros(1, 4, WIDTH)).shape == (1, TOKENS, CONTEXT)
    assert [kind for kind in iter_kinds() if kind.detect(theirs().state_dict())] == [style_adapter.KIND]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": fakes.GREY}, "give the unit a ControlMap with its values"),
        (
            {"image": ControlMap(fakes.GREY, "embedding", values=np.ones((4, 7), np.float32))},
            r"hidden states \(B, N, 32\)",
        ),
        ({"image": ControlMap(fakes.GREY, "embedding", values=np.full((4, WIDTH), np.nan))}, "not finite"),
        ({"image": ControlMap(fakes.GREY, "embedding", values=[["a"]])}, "expected finite floats"),
        ({"layers": [1.0]}, "takes no layers"),
        ({"region": np.ones((4, 4), bool)}, "takes no region"),
    ],
)
def test_what_it_cannot_read_or_do_is_refused(given: dict[str, Any], message: str) -> None:
    pipe = tiny.pipeline(StableDiffusionPipeline)
    with pytest.raises(ValueError, match=message), guide(pipe, [Unit(ours(), **{"image": seen(), **given})]):
        fakes.run(pipe)


def test_what_does_not_fit_is_refused_when_the_guide_begins() -> None:
    with (
        pytest.raises(ValueError, match="makes tokens of width 32, but the model has 40"),
        guide(tiny.pipeline(StableDiffusionPipeline, "SD2.1"), [Unit(ours(), seen())]),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("proj"), "proj is missing"),
        (lambda t: t.pop("transformer_layes.1.attn.in_proj_bias"), "in_proj_bias missing"),
        (lambda t: t.update(more=torch.ones(1)), "more unknown"),
        (lambda t: t.update(style_embedding=torch.ones(1, TOKENS, 31)), "style_embedding"),
    ],
)
def test_damaged_files_are_refused(change: Any, message: str) -> None:
    tensors = theirs().state_dict()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        style_adapter.load(tensors, {})
