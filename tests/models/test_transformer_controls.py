"""Units on transformers: diffusers' own ControlNet pipelines of SD3, Flux, Qwen-Image and Z-Image on the same random
networks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
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
from safetensors.torch import save_file

from controlnet_ext import ControlMap, PerSample, Unit, Window, guide, load
from controlnet_ext.hosts.diffusers.host import identify_rows
from controlnet_ext.hosts.diffusers.transformer_call import ZImageCall
from controlnet_ext.models import ControlFile
from controlnet_ext.models.inspection import inspect
from controlnet_ext.models.kinds import z_image
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.kinds.flux_union import FluxUnion
from controlnet_ext.models.kinds.transformer import TransformerControlNet, expand_to_blocks
from controlnet_ext.models.kinds.z_image import ZImageControlNet

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
    "qwen-image": {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 5,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
    "z-image": {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 5,
        "n_refiner_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 32,
        "axes_dims": (4, 6, 6),
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
CONTROL = {  # of the network, where it has not the settings of the transformer
    "z-image": {"control_layers_places": [0, 2], "control_in_dim": 4, "dim": 32, "n_heads": 2, "n_kv_heads": 2},
}
NETS: dict[str, Any] = {
    "flux": FluxControlNetModel,
    "sd3": SD3ControlNetModel,
    "qwen-image": diffusers.QwenImageControlNetModel,
    "z-image": diffusers.ZImageControlNetModel,
}
BASES: dict[str, Any] = {
    "flux": FluxTransformer2DModel,
    "sd3": SD3Transformer2DModel,
    "qwen-image": diffusers.QwenImageTransformer2DModel,
    "z-image": diffusers.ZImageTransformer2DModel,
}
PIPES: dict[str, Any] = {
    "qwen-image": (diffusers.QwenImagePipeline, diffusers.QwenImageControlNetPipeline),
    "z-image": (diffusers.ZImagePipeline, diffusers.ZImageControlNetPipeline),
    "flux": (diffusers.FluxPipeline, diffusers.FluxControlNetPipeline),
    "sd3": (diffusers.StableDiffusion3Pipeline, diffusers.StableDiffusion3ControlNetPipeline),
}
NOTHING = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")


def vae(base: str) -> Any:
    """With a shift, and a posterior so narrow that a sample of it is its mode: diffusers takes the one, ours the
    other."""
    if base == "qwen-image":
        video: Any = randomised(
            diffusers.AutoencoderKLQwenImage(
                base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[1.4, 0.8, 1, 2]
            ),
            3,
        )
        narrowed(video.quant_conv)
        return video
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    net: Any = AutoencoderKL(
        **blocks, block_out_channels=(8,) * 4, norm_num_groups=4, shift_factor=0.3, scaling_factor=1.4
    )
    randomised(net, 3)
    narrowed(net.quant_conv)
    return net


@torch.no_grad()
def narrowed(conv: Any) -> None:
    conv.weight[4:] = 0
    conv.bias[4:] = -60


def control(base: str, seed: int = 2, **changes: Any) -> Any:
    """diffusers' network, of fewer blocks than the transformer."""
    settings = CONTROL.get(base) or SHAPES[base] | {"num_layers": 2}
    if base == "qwen-image":
        settings = settings | {"num_layers": 3}  # for five: not the same as by ratio
    return randomised(NETS[base](**settings | changes), seed)


def pipeline(base: str, net: Any = None) -> Any:
    kind = PIPES[base][net is not None]
    parts = {name: None for name in NOTHING if name in kind._get_signature_keys(kind)[0]}
    transformer = randomised(BASES[base](**SHAPES[base]), 1)
    given = {} if net is None else {"controlnet": net}
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe: Any = kind(vae=vae(base), transformer=transformer, scheduler=scheduler, **parts, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, base: str, steps: int = 4, images: int = 1, **given: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=draw).repeat(images, *[1] * len(shape))

    prompt, pooled = drawn(7, 32), drawn(32)
    call: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": steps, "output_type": "latent"}
    call |= {"latents": drawn(16, 16) if base in ("flux", "qwen-image") else drawn(4, 8, 8)}
    if base == "z-image":
        call |= {"prompt_embeds": [*prompt], "negative_prompt_embeds": [*drawn(5, 32)]}
    else:
        call |= {"prompt_embeds": prompt}
        call |= {} if base == "qwen-image" else {"pooled_prompt_embeds": pooled}
    if base == "sd3" or ("true_cfg_scale" in given and base == "flux"):
        call |= {"negative_prompt_embeds": drawn(7, 32), "negative_pooled_prompt_embeds": drawn(32)}
    if base == "qwen-image":
        call |= {"negative_prompt_embeds": drawn(5, 32), "true_cfg_scale": 2.0}
        call |= {f"{name}prompt_embeds_mask": torch.ones(images, n) for name, n in (("", 7), ("negative_", 5))}
    else:
        call |= {"guidance_scale": 2.5}  # by default Flux's two pipelines have different ones
    return pipe(**call | given).images


def ours(base: str, net: Any) -> Any:
    return ZImageControlNet(net) if base == "z-image" else TransformerControlNet(net, base)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To 1e-5 of the largest value: the posterior's width, and sums of float32 in another order."""
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("base", PIPES)
@pytest.mark.parametrize("shift", [False, True])
def test_latents_are_those_of_diffusers_pipeline(base: str, shift: bool) -> None:
    changes: dict[str, Any] = {
        "sd3": {"force_zeros_for_pooled_projection": not shift},
        "flux": {"guidance_embeds": shift},
        "z-image": {"control_in_dim": 4 + 5 * shift},
    }.get(base, {})
    net, image = control(base, **changes), tiny.random_image()
    ours_window, window = Window(0.25, 0.8), {"control_guidance_start": 0.25, "control_guidance_end": 0.8}
    if base == "z-image":  # diffusers' pipeline has no windows
        ours_window, window = Window(), {}
    expected = run(pipeline(base, net), base, control_image=image, controlnet_conditioning_scale=0.7, **window)
    pipe = pipeline(base)
    plain = run(pipe, base)
    with guide(pipe, [Unit(ours(base, net), image, weight=0.7, window=ours_window)]):
        made = run(pipe, base)
    assert near(made, expected) and (made - plain).abs().max() > 1e-2 * plain.abs().max()
    assert torch.equal(run(pipe, base), plain)


@pytest.mark.parametrize("refiner", ["control_noise_refiner", "control_layers"])
def test_z_images_networks_that_weigh_inside_do_so_as_diffusers(refiner: str) -> None:
    net = control("z-image", add_control_noise_refiner=refiner, control_refiner_layers_places=[0, 1])
    expected = run(
        pipeline("z-image", net), "z-image", control_image=tiny.random_image(), controlnet_conditioning_scale=0.6
    )
    with guide(pipe := pipeline("z-image"), [Unit(ours("z-image", net), tiny.random_image(), weight=0.6)]):
        assert near(run(pipe, "z-image"), expected)


@pytest.mark.parametrize("base", ["flux", "sd3"])
def test_two_units_are_the_sum_of_diffusers_two(base: str) -> None:
    nets = [control(base, seed) for seed in (2, 3)]
    images = [tiny.random_image(), tiny.Image.fromarray(np.asarray(tiny.random_image())[::-1].copy())]
    both = pipeline(base, list(nets))
    expected = run(both, base, control_image=images, controlnet_conditioning_scale=[0.5, 0.8])
    pipe = pipeline(base)
    units = [Unit(ours(base, net), p, weight=w) for net, p, w in zip(nets, images, (0.5, 0.8), strict=True)]
    with guide(pipe, units):
        assert near(run(pipe, base), expected)
    with guide(pipe, units[:1]), guide(pipe, units[1:]):
        assert near(run(pipe, base), expected)


@pytest.mark.parametrize("base", ["qwen-image", "z-image"])
def test_two_units_add_up_where_diffusers_has_no_pipeline_for_two(base: str) -> None:
    nets = [control(base, seed) for seed in (2, 3)]
    if base == "z-image":  # which act at other layers too
        nets[1] = control(base, 3, control_layers_places=[0, 3])
    pipe = pipeline(base)
    units = [Unit(ours(base, net), tiny.random_image(), weight=w) for net, w in zip(nets, (0.5, 0.8), strict=True)]
    seen: list[dict[int, torch.Tensor]] = []

    def see(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        made = kwargs["controlnet_block_samples"]
        seen.append({i: h.clone() for i, h in (made.items() if isinstance(made, dict) else enumerate(made))})

    for some in (units[:1], units[1:], units):
        with guide(pipe, some):
            handle = pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
            run(pipe, base, steps=1)
            handle.remove()
    calls = len(seen) // 3
    one, other, both = seen[0], seen[calls], seen[2 * calls]
    assert set(both) == set(one) | set(other)
    zero = torch.zeros(())
    assert all(near(h, one.get(i, zero) + other.get(i, zero)) for i, h in both.items())


def test_flux_true_guidance_has_the_prompts_residuals_in_both_calls() -> None:
    net = control("flux")
    given = {"true_cfg_scale": 3.0}
    expected = run(pipeline("flux", net), "flux", control_image=tiny.random_image(), **given)
    with guide(pipe := pipeline("flux"), [Unit(ours("flux", net), tiny.random_image())]):
        assert near(run(pipe, "flux", **given), expected)


@pytest.mark.parametrize("base", PIPES)
def test_weight_zero_is_nothing_and_each_image_may_have_its_map(base: str) -> None:
    pipe, net = pipeline(base), ours(base, control(base))
    plain = run(pipe, base, images=2)
    with guide(pipe, [Unit(net, tiny.random_image(), weight=0)]):
        assert torch.equal(run(pipe, base, images=2), plain)
    if base in ("sd3", "z-image"):  # the others' pipelines do not tell whose row is whose
        maps = [tiny.random_image(), np.zeros((64, 64, 3), np.uint8)]
        with guide(pipe, [Unit(net, PerSample(maps))]):
            two = run(pipe, base, images=2)
        for row, one in enumerate(maps):
            with guide(pipe, [Unit(net, one)]):
                assert near(run(pipe, base, images=2)[row], two[row])


def test_networks_with_a_block_for_several_act_on_those_that_the_transformer_has_them_for() -> None:
    assert [int(each) for each in expand_to_blocks([torch.tensor(i) for i in range(3)], 8, "flux")] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
    ]
    assert [int(each) for each in expand_to_blocks([torch.tensor(i) for i in range(3)], 8, "sd3")] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
    ]
    assert [int(each) for each in expand_to_blocks([torch.tensor(i) for i in range(5)], 19, "flux")][-4:] == [
        3,
        4,
        4,
        4,
    ]


@pytest.mark.parametrize("base", PIPES)
def test_a_folder_of_diffusers_loads_and_says_what_it_is(base: str, tmp_path: Path) -> None:
    net = control(base)
    net.save_pretrained(tmp_path)
    loaded, told = load(tmp_path), inspect(tmp_path)
    assert (told.architecture, told.family, told.problem) == ("controlnet", base, None)
    assert told.details["network"] == f"diffusers.{NETS[base].__name__}"
    state = net.state_dict()
    assert all(torch.equal(tensor, state[name.removeprefix("net.")]) for name, tensor in loaded.state_dict().items())
    with guide(pipe := pipeline(base), [Unit(loaded, tiny.random_image())]):
        made = run(pipe, base)
    with guide(pipe, [Unit(ours(base, net), tiny.random_image())]):
        assert torch.equal(run(pipe, base), made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "needs diffusers' config.json of a FluxControlNetModel beside it"),
        ({"num_mode": 3}, "controlnet_mode_embedder.weight missing"),
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
    unit = Unit(ours("flux", control("flux")), tiny.random_image(), **change)
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
        (
            pipeline("flux"),
            ours("flux", control("flux", num_attention_heads=3)),
            "is 48 numbers wide, but the model 32",
        ),
        (pipeline("z-image"), ours("z-image", control("z-image", control_in_dim=3)), "reads 3 channels"),
        (
            pipeline("z-image"),
            ours("z-image", control("z-image", control_layers_places=[0, 5])),
            "for 6 layers or more",
        ),
        (pipeline("qwen-image"), ours("flux", control("flux")), "for flux guides a FluxTransformer2DModel"),
    ]
    image = ControlMap(np.zeros((64, 64, 3), np.uint8), "edges")
    for pipe, model, said in wrong:
        with pytest.raises(ValueError, match=said), guide(pipe, [Unit(model, image)]):
            pass


def test_a_flux_union_reads_the_kind_that_the_map_says() -> None:
    net = control("flux", num_mode=6)
    maps = [ControlMap(np.asarray(tiny.random_image()), kind) for kind in ("depth", "pose")]
    expected = [
        run(pipeline("flux", net), "flux", control_image=tiny.random_image(), control_mode=number, true_cfg_scale=1.0)
        for number in (2, 4)
    ]
    pipe, union = pipeline("flux"), FluxUnion(net)
    for unit, wanted in (
        (Unit(union, maps[0]), expected[0]),
        (Unit(union, maps[1]), expected[1]),
        (Unit(union.with_types("depth"), tiny.random_image()), expected[0]),
        (Unit(union.with_types(4), tiny.random_image()), expected[1]),
    ):
        with guide(pipe, [unit]):
            assert near(run(pipe, "flux"), wanted)
    assert not near(*expected)
    with guide(pipe, [Unit(union, maps[0], weight=0.5), Unit(union, maps[1], weight=0.5)]):
        two = run(pipe, "flux")
    with guide(pipe, [Unit(union, tuple(maps))]):
        assert near(run(pipe, "flux"), two)


def test_a_flux_union_that_is_not_told_a_kind_is_refused() -> None:
    union = FluxUnion(control("flux", num_mode=3))
    with (
        pytest.raises(ValueError, match="nothing says of which"),
        guide(pipeline("flux"), [Unit(union, tiny.random_image())]),
    ):
        pass
    for kind in ("pose", 3, "lines"):
        with pytest.raises(ValueError, match="reads edges, tile, depth"):
            union.with_types(kind)
    with pytest.raises(ValueError, match="told 2 kinds for 1 images"):
        union.with_types("edges", "depth").for_map_types([None])


def test_a_flux_union_loads_as_what_it_is(tmp_path: Path) -> None:
    control("flux", num_mode=6).save_pretrained(tmp_path)
    told = inspect(tmp_path)
    assert (told.architecture, told.family, told.problem) == ("controlnet-union", "flux", None)
    with guide(pipe := pipeline("flux"), [Unit(load(tmp_path), tiny.random_image(), preprocessor="canny")]):
        run(pipe, "flux")


@pytest.mark.parametrize(
    ("layers", "trained", "refiner"),
    [
        (3, True, "control_noise_refiner"),
        (6, False, None),
        (15, False, "control_layers"),
        (15, True, "control_noise_refiner"),
    ],
)
def test_z_images_published_files_load_without_a_config(
    layers: int, trained: bool, refiner: str | None, tmp_path: Path
) -> None:
    places = [30 * i // layers for i in range(layers)]
    own = {"control_layers_places": places, "add_control_noise_refiner": refiner}
    own |= {"control_refiner_layers_places": [0, 1] if refiner else None}
    net = control("z-image", **own)
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    if refiner == "control_layers":  # published with one that was not trained
        more = control("z-image", add_control_noise_refiner="control_noise_refiner").state_dict()
        tensors |= {n: torch.zeros_like(t) for n, t in more.items() if n.startswith("control_noise_refiner.")}
    save_file(tensors, tmp_path / "union.safetensors")
    loaded: Any = load(tmp_path / "union.safetensors")
    assert {name: loaded.net.config[name] for name in own} == own
    assert all(torch.equal(t, tensors[name]) for name, t in loaded.net.state_dict().items())
    assert (loaded.net.config["n_heads"], loaded.net.config["control_in_dim"]) == (2, 4)
    glance: Any = ControlFile.read(tmp_path / "union.safetensors", with_values=False)
    if refiner != "control_layers":  # zeros are not seen at a glance
        assert {name: glance.load().net.config[name] for name in own} == own
    glance.load()


@pytest.mark.parametrize("lost", [z_image.EMBEDDER_KEY, z_image.NORM_KEY, z_image.BEFORE_PROJ_KEY])
def test_z_images_damaged_files_are_refused_in_one_line(lost: str, tmp_path: Path) -> None:
    own = {"control_layers_places": [2 * i for i in range(15)], "control_refiner_layers_places": [0, 1]}
    state = control("z-image", **own, add_control_noise_refiner="control_noise_refiner").state_dict()
    for number, changed in enumerate((None, torch.zeros(0), torch.zeros(2, 2, 2))):
        tensors = {n: t.contiguous() for n, t in state.items() if n != lost}
        tensors |= {} if changed is None else {lost: changed}
        save_file(tensors, path := tmp_path / f"{number}.safetensors")
        with pytest.raises(ValueError) as refused:
            load(path)
        assert "\n" not in str(refused.value)


def test_a_config_that_says_more_layers_than_there_are_tensors_is_refused_at_once(tmp_path: Path) -> None:
    control("flux").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"num_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="says 1000000000 layers"):
        load(tmp_path)


def test_in_z_images_batches_the_prompts_rows_come_first() -> None:
    x = torch.zeros(4, 4, 8, 8)
    positive, samples = identify_rows(
        (False, True), SimpleNamespace(x=x, frames=1, is_prompt_first=ZImageCall.is_prompt_first)
    )
    assert positive is not None and samples is not None
    assert positive.tolist() == [True, True, False, False] and samples.tolist() == [0, 1, 0, 1]


def test_z_images_other_files_need_a_config(tmp_path: Path) -> None:
    save_file({n: t.contiguous() for n, t in control("z-image").state_dict().items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"has 2 control layers, .* needs config\.json"):
        load(tmp_path / "x.safetensors")


def test_a_network_for_z_image_leaves_the_base_as_it_was() -> None:
    pipe, net = pipeline("z-image"), ours("z-image", control("z-image"))
    names, before = set(net.state_dict()), {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    with guide(pipe, [Unit(net, tiny.random_image())]):
        run(pipe, "z-image")
    assert set(net.state_dict()) == names
    assert all(torch.equal(t, before[name]) for name, t in pipe.transformer.state_dict().items())


def test_pipelines_that_edit_images_are_refused() -> None:
    pipe, net = pipeline("qwen-image"), ours("qwen-image", control("qwen-image"))
    with pytest.raises(ValueError, match="several images at once"), guide(pipe, [Unit(net, tiny.random_image())]):
        pipe.transformer(
            hidden_states=torch.zeros(1, 32, 16),
            timestep=torch.ones(1),
            encoder_hidden_states=torch.zeros(1, 7, 32),
            img_shapes=[[(1, 4, 4), (1, 4, 4)]],
        )
