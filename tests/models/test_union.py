"""ControlNet Union: equal to diffusers', one call for several types, types by the maps' kinds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    ControlNetUnionModel,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLPipeline,
)
from networks import SHAPES, all_of, copy_module, random_image, randomised, step_for
from PIL import Image

from controlnet_ext import ControlMap, PerSample, Unit, guide, models
from controlnet_ext.guidance.contract import Step
from controlnet_ext.models.kinds.union import UNION_TYPES, ControlNetUnion, load
from controlnet_ext.models.state_dict.saving import convert_model, save_diffusers

WIDE = {"conditioning_embedding_out_channels": (16, 32, 96, 256), "num_trans_channel": 32, "num_proj_channel": 32}


@cache
def _theirs(types: int, tiny_one: bool) -> ControlNetUnionModel:
    shape = tiny.SHAPES["SDXL"] | {"addition_time_embed_dim": 8} if tiny_one else SHAPES["SDXL"]
    return randomised(ControlNetUnionModel(**shape, **WIDE, num_control_type=types), seed=5)


def theirs(types: int = 6, tiny_one: bool = False) -> ControlNetUnionModel:
    return copy_module(_theirs(types, tiny_one))


def ours(net: ControlNetUnionModel) -> ControlNetUnion:
    return load(net.state_dict(), net.config)


@torch.no_grad()
def run_theirs(
    net: ControlNetUnionModel, step: Step, images: list[np.ndarray], types: list[int], **more: object
) -> list[torch.Tensor]:
    rows = len(step.x)
    hints = [torch.from_numpy(i.astype(np.float32) / 255).permute(2, 0, 1)[None].repeat(rows, 1, 1, 1) for i in images]
    on = torch.zeros(rows, net.config.num_control_type)
    on[:, types] = 1
    net.add_time_proj = torch.nn.Identity()
    sizes = 6 * net.config.addition_time_embed_dim
    added = {"text_embeds": step.added[:, :-sizes], "time_ids": step.added[:, -sizes:]}
    given = {"control_type": on, "control_type_idx": types, "added_cond_kwargs": added, "return_dict": False, **more}
    skips, middle = net(step.x, step.t, step.context, hints, **given)
    return [*skips, middle]


@pytest.mark.parametrize("types", [[0], [1], [5], [1, 3], [4, 0, 2], [1, 1]])
@pytest.mark.parametrize("count", [6, 8])
@torch.no_grad()
def test_residuals_equal_diffusers(count: int, types: list[int]) -> None:
    net = theirs(count)
    union = ours(net).with_types(*(UNION_TYPES[t][0] for t in types))
    step = step_for(union, rows=2)
    images = [random_image(seed=s) for s, _ in enumerate(types)]
    results = all_of(union(step, [union.hint(image) for image in images]))
    for result, wanted in zip(results, run_theirs(net, step, images, types, conditioning_scale=1.0), strict=True):
        assert wanted.std() >= 0.1
        # theirs attends over rows, which are equal here: a sum of equal values over their number rounds
        assert (result - wanted).abs().max() <= 2e-5 * wanted.std()


@torch.no_grad()
def test_types_matter() -> None:
    union = ours(theirs())
    step, image = step_for(union), random_image()
    first, second = (
        told(step, [told.hint(image)]).middle for told in (union.with_types("depth"), union.with_types("edges"))
    )
    assert (first - second).abs().max() > 0.01 * first.std()


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others() -> None:
    union = ours(theirs()).with_types("depth")
    step, hints = step_for(union, rows=2), union.hint(np.stack([random_image(seed=1), random_image(seed=2)]))
    together = union(step, [hints]).middle
    for row in (0, 1):
        part = slice(row, row + 1)
        alone = Step(step.x[part], step.t[part], step.context[part], step.span, added=step.added[part])
        torch.testing.assert_close(union(alone, [hints[part]]).middle, together[part], rtol=0, atol=3e-5)


def test_all_types_of_promax_have_a_kind_and_six_do_not_read_tiles() -> None:
    assert set(ours(theirs(8)).kinds) >= {"pose", "tile", "inpaint", "scribble", "straight lines"}
    with pytest.raises(ValueError, match="reads no 'tile' maps, only pose, depth"):
        ours(theirs(6)).with_types("tile")


@torch.no_grad()
def test_what_is_repainted_is_black() -> None:
    union = ours(theirs(8)).with_types("inpaint")
    pixels = torch.rand(1, 3, 64, 64)
    pixels[..., 10:30] = -1
    black = torch.where(pixels < 0, 0.0, pixels)
    assert torch.equal(union.hint(pixels), union.hint(black))


def pipes(union_of: int) -> tuple[object, object, ControlNetUnionModel]:
    net = theirs(union_of, tiny_one=True)
    plain = tiny.pipeline(StableDiffusionXLPipeline, "SDXL")
    return plain, tiny.pipeline(StableDiffusionXLControlNetUnionPipeline, "SDXL", controlnet=net), net


def latents(pipe: object, **more: object) -> torch.Tensor:
    given = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent", **more}
    return pipe("a b", generator=torch.Generator().manual_seed(0), **given).images


def test_a_guided_pipeline_equals_diffusers_union_pipeline() -> None:
    plain, reference, net = pipes(6)
    one, two = tiny.random_image(1), tiny.random_image(2)
    expected = latents(reference, control_image=[one, two], control_mode=[1, 3], controlnet_conditioning_scale=1.0)
    maps = ControlMap(np.asarray(one), "depth"), ControlMap(np.asarray(two), "edges")
    with guide(plain, [Unit(ours(net), maps)]):
        found = latents(plain)
    assert (found - expected).abs().max() <= 1e-4 * expected.std()
    with guide(plain, [Unit(ours(net).with_types("depth", "edges"), (one, two))]):
        assert torch.equal(latents(plain), found)
    expected = latents(reference, control_image=[one], control_mode=[1], controlnet_conditioning_scale=0.6)
    with guide(plain, [Unit(ours(net), maps[0], weight=0.6)]):
        assert (latents(plain) - expected).abs().max() <= 1e-4 * expected.std()


def test_the_preprocessor_says_the_kind() -> None:
    plain, _, net = pipes(6)
    with guide(plain, [Unit(ours(net), tiny.random_image(1), preprocessor="canny")]):
        found = latents(plain)
    from controlnet_ext import preprocess

    edges = preprocess("canny", np.asarray(tiny.random_image(1)))
    with guide(plain, [Unit(ours(net).with_types("edges"), edges.pixels)]):
        assert torch.equal(latents(plain), found)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((64, 64, 3), np.uint8), "nothing says of which this one is"),
        (Image.new("RGB", (64, 64)), r"union\.with_types"),
        (ControlMap(np.zeros((64, 64, 3), np.uint8), "luminance"), "reads no 'luminance' maps"),
        (
            PerSample([ControlMap(np.zeros((64, 64, 3), np.uint8), kind) for kind in ("depth", "edges")]),
            "nothing says of which",
        ),
    ],
)
def test_a_map_of_no_known_kind_is_refused_on_entering(image: object, words: str) -> None:
    plain, _, net = pipes(6)
    with pytest.raises(ValueError, match=f"unit 1: .*{words}"), guide(plain, [Unit(ours(net), image)]):
        pass


def test_kinds_told_and_images_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="told 2 kinds for 1 images"):
        ours(theirs()).with_types("depth", "edges").for_map_types([None])
    with pytest.raises(ValueError, match="needs a kind of map"):
        ours(theirs()).with_types()


def test_files_go_both_ways(tmp_path: Path) -> None:
    net = theirs(8)
    save_diffusers(ours(net), tmp_path / "ours")
    back = ControlNetUnionModel.from_pretrained(tmp_path / "ours")
    tensors = net.state_dict()
    assert all(torch.equal(t, tensors[name]) for name, t in back.state_dict().items())
    net.save_pretrained(tmp_path / "theirs")
    union = models.load(tmp_path / "theirs")
    assert (union.architecture, len(union.task_embedding)) == ("controlnet-union", 8)
    with pytest.raises(ValueError, match="controlnet-union file, which can be of diffusers"):
        convert_model(tmp_path / "theirs", tmp_path / "a.safetensors", "ldm")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("task_embedding", torch.zeros(32), "are no matrices"),
        ("task_embedding", torch.zeros(5, 32), "a union of 5 types with 48 numbers"),
        ("task_embedding", torch.zeros(0, 32), "a union of 0 types"),
        ("task_embedding", torch.zeros(6, 8), "tensor task_embedding is 6x8, expected 6x32"),
        ("transformer_layes.0.attn.in_proj_bias", None, r"transformer_layes\.0\.attn\.in_proj_bias missing"),
        ("conv_in.bias", None, r"network they look like: conv_in\.bias missing"),
        ("conv_in.more", torch.zeros(1), "conv_in.more unknown"),
    ],
)
def test_broken_unions_are_refused(name: str, tensor: torch.Tensor | None, words: str) -> None:
    tensors = theirs().state_dict() | ({} if tensor is None else {name: tensor})
    if tensor is None:
        del tensors[name]
    with pytest.raises(ValueError, match=words):
        load(tensors, {})
