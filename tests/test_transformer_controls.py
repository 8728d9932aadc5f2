"""Units on transformers: diffusers' own ControlNet pipelines of SD3 and Flux on the same random networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
)
from networks import randomised

from controlnet_ext import ControlMap, PerSample, Unit, Window, guide, load
from controlnet_ext.models.controlnet import ControlNet
from controlnet_ext.models.inspection import inspect
from controlnet_ext.models.transformer_controls import TransformerControl, spread

SHAPES: dict[str, dict[str, Any]] = {
    "flux": {
        "in_channels": 16,
        "num_layers": 3,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    },
    "sd3": {
        "sample_size": 8,
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 16,
    },
}
NETS = {"flux": FluxControlNetModel, "sd3": SD3ControlNetModel}
BASES = {"flux": FluxTransformer2DModel, "sd3": SD3Transformer2DModel}
PIPES = {
    "flux": (diffusers.FluxPipeline, diffusers.FluxControlNetPipeline),
    "sd3": (diffusers.StableDiffusion3Pipeline, diffusers.StableDiffusion3ControlNetPipeline),
}
NOTHING = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")


def vae() -> Any:
    """With a shift, and a posterior so narrow that a sample of it is its mode: diffusers takes the one, ours the
    other."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    net: Any = AutoencoderKL(
        **blocks, block_out_channels=(8,) * 4, norm_num_groups=4, shift_factor=0.3, scaling_factor=1.4
    )
    randomised(net, 3)
    with torch.no_grad():
        net.quant_conv.weight[4:] = 0
        net.quant_conv.bias[4:] = -60
    return net


def control(base: str, seed: int = 2, **changes: Any) -> Any:
    """diffusers' network, of fewer blocks than the transformer."""
    return randomised(NETS[base](**SHAPES[base] | {"num_layers": 2} | changes), seed)


def pipeline(base: str, net: Any = None) -> Any:
    kind = PIPES[base][net is not None]
    parts = {
        name: None for name in NOTHING if name in diffusers.__dict__.get(kind.__name__)._get_signature_keys(kind)[0]
    }
    transformer = randomised(BASES[base](**SHAPES[base]), 1)
    given = {} if net is None else {"controlnet": net}
    pipe: Any = kind(vae=vae(), transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, base: str, steps: int = 4, pictures: int = 1, **given: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=draw).repeat(pictures, *[1] * len(shape))

    call: dict[str, Any] = {"prompt_embeds": drawn(7, 32), "pooled_prompt_embeds": drawn(32)}
    call |= {"latents": drawn(16, 16) if base == "flux" else drawn(4, 8, 8)}
    if base == "sd3" or "true_cfg_scale" in given:
        call |= {"negative_prompt_embeds": drawn(7, 32), "negative_pooled_prompt_embeds": drawn(32)}
    call |= {"height": 64, "width": 64, "num_inference_steps": steps, "output_type": "latent"}
    call |= {"guidance_scale": 2.5}  # by default Flux's two pipelines have different ones
    return pipe(**call | given).images


def ours(base: str, net: Any) -> TransformerControl:
    return TransformerControl(net, base)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To 1e-5 of the largest value: the posterior's width, and sums of float32 in another order."""
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("base", PIPES)
@pytest.mark.parametrize("shift", [False, True])
def test_latents_are_those_of_diffusers_pipeline(base: str, shift: bool) -> None:
    changes = {"force_zeros_for_pooled_projection": not shift} if base == "sd3" else {"guidance_embeds": shift}
    net, picture = control(base, **changes), tiny.picture()
    window = {"control_guidance_start": 0.25, "control_guidance_end": 0.8}
    expected = run(pipeline(base, net), base, control_image=picture, controlnet_conditioning_scale=0.7, **window)
    pipe = pipeline(base)
    plain = run(pipe, base)
    with guide(pipe, [Unit(ours(base, net), picture, weight=0.7, window=Window(0.25, 0.8))]):
        made = run(pipe, base)
    assert near(made, expected) and (made - plain).abs().max() > 1e-2 * plain.abs().max()
    assert torch.equal(run(pipe, base), plain)


@pytest.mark.parametrize("base", PIPES)
def test_two_units_are_the_sum_of_diffusers_two(base: str) -> None:
    nets = [control(base, seed) for seed in (2, 3)]
    pictures = [tiny.picture(), tiny.Image.fromarray(np.asarray(tiny.picture())[::-1].copy())]
    both = pipeline(base, list(nets))
    expected = run(both, base, control_image=pictures, controlnet_conditioning_scale=[0.5, 0.8])
    pipe = pipeline(base)
    units = [Unit(ours(base, net), p, weight=w) for net, p, w in zip(nets, pictures, (0.5, 0.8), strict=True)]
    with guide(pipe, units):
        assert near(run(pipe, base), expected)
    with guide(pipe, units[:1]), guide(pipe, units[1:]):
        assert near(run(pipe, base), expected)


def test_flux_true_guidance_has_the_prompts_residuals_in_both_calls() -> None:
    net = control("flux")
    given = {"true_cfg_scale": 3.0}
    expected = run(pipeline("flux", net), "flux", control_image=tiny.picture(), **given)
    with guide(pipe := pipeline("flux"), [Unit(ours("flux", net), tiny.picture())]):
        assert near(run(pipe, "flux", **given), expected)


@pytest.mark.parametrize("base", PIPES)
def test_weight_zero_is_nothing_and_each_picture_may_have_its_map(base: str) -> None:
    pipe, net = pipeline(base), ours(base, control(base))
    plain = run(pipe, base, pictures=2)
    with guide(pipe, [Unit(net, tiny.picture(), weight=0)]):
        assert torch.equal(run(pipe, base, pictures=2), plain)
    if base == "sd3":  # Flux's pipeline does not tell whose row is whose
        maps = [tiny.picture(), np.zeros((64, 64, 3), np.uint8)]
        with guide(pipe, [Unit(net, PerSample(maps))]):
            two = run(pipe, base, pictures=2)
        for row, one in enumerate(maps):
            with guide(pipe, [Unit(net, one)]):
                assert near(run(pipe, base, pictures=2)[row], two[row])


def test_networks_with_a_block_for_several_act_on_those_that_the_transformer_has_them_for() -> None:
    assert [int(each) for each in spread([torch.tensor(i) for i in range(3)], 8, "flux")] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [int(each) for each in spread([torch.tensor(i) for i in range(3)], 8, "sd3")] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [int(each) for each in spread([torch.tensor(i) for i in range(5)], 19, "flux")][-4:] == [3, 4, 4, 4]


@pytest.mark.parametrize("base", PIPES)
def test_a_folder_of_diffusers_loads_and_says_what_it_is(base: str, tmp_path: Path) -> None:
    net = control(base)
    net.save_pretrained(tmp_path)
    loaded, told = load(tmp_path), inspect(tmp_path)
    assert (told.architecture, told.family, told.problem) == ("controlnet", base, None)
    assert told.details == {"network": f"diffusers.{NETS[base].__name__}"}
    state = net.state_dict()
    assert all(torch.equal(tensor, state[name.removeprefix("net.")]) for name, tensor in loaded.state_dict().items())
    with guide(pipe := pipeline(base), [Unit(loaded, tiny.picture())]):
        made = run(pipe, base)
    with guide(pipe, [Unit(ours(base, net), tiny.picture())]):
        assert torch.equal(run(pipe, base), made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "needs diffusers' config.json of a FluxControlNetModel beside it"),
        ({"num_mode": 3}, "is a union network for Flux"),
        ({"num_layers": 9}, "missing"),
        ({"num_layers": "many"}, "config.json makes no FluxControlNetModel"),
    ],
)
def test_files_that_cannot_act_are_refused_in_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    control("flux").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(settings if change else {}))
    with pytest.raises(ValueError, match=said) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "prompt"}, "mode 'prompt' of a unit acts on UNets only, but the model is a FluxTransformer2DModel"),
        ({"layers": [1.0] * 13}, "layers of a unit acts on UNets only"),
        ({"region": np.ones((8, 8))}, "region of a unit acts on UNets only"),
        ({"inpaint": np.zeros((64, 64, 3), np.uint8)}, "inpaint of a unit acts on UNets only"),
    ],
)
def test_what_acts_on_unets_only_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    unit = Unit(ours("flux", control("flux")), tiny.picture(), **change)
    with pytest.raises(ValueError, match=said), guide(pipeline("flux"), [unit]):
        pass


def test_a_network_for_another_base_is_refused_by_name() -> None:
    theirs = tiny.control()
    wrong = [
        (pipeline("flux"), ours("sd3", control("sd3")), "a ControlNet for sd3 guides a SD3Transformer2DModel"),
        (pipeline("flux"), ControlNet.load(theirs.state_dict(), theirs.config), "a controlnet for sd guides UNets"),
        (
            tiny.pipeline(StableDiffusionPipeline),
            ours("sd3", control("sd3")),
            "but the model is a UNet2DConditionModel",
        ),
        (pipeline("sd3"), ours("sd3", control("sd3", joint_attention_dim=16)), "reads prompts of width 16"),
    ]
    picture = ControlMap(np.zeros((64, 64, 3), np.uint8), "edges")
    for pipe, model, said in wrong:
        with pytest.raises(ValueError, match=said), guide(pipe, [Unit(model, picture)]):
            pass
