"""SparseCtrl against diffusers' network and pipeline on random weights, in both layouts, and what it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import MotionAdapter, SparseControlNetModel, UNetMotionModel
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from networks import randomised

from controlnet_ext import PerSample, Unit, guide, load
from controlnet_ext.guidance.contract import Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.models import iter_kinds
from controlnet_ext.models.inspection import inspect
from controlnet_ext.models.kinds import sparsectrl
from controlnet_ext.models.kinds.sparsectrl import SparseCtrl, to_animatediff_keys
from controlnet_ext.models.state_dict.saving import save_diffusers, save_ldm

KINDS = {
    "rgb": {"conditioning_channels": 4, "use_simplified_condition_embedding": True},
    "scribble": {"conditioning_channels": 3, "use_simplified_condition_embedding": False},
    "rgb without mask": {"conditioning_channels": 4, "concat_conditioning_mask": False},
}
FRAMES = 5


@functools.cache
def theirs(kind: str = "scribble") -> SparseControlNetModel:
    shape = {k: tiny.SHAPES["SD1.5"][k] for k in ("block_out_channels", "attention_head_dim", "cross_attention_dim")}
    more = {"motion_num_attention_heads": 2, "motion_max_seq_length": 6}
    net = SparseControlNetModel(**shape, **KINDS[kind], **more, conditioning_embedding_out_channels=(8, 8, 8, 8))
    return randomised(net)


def ours(kind: str = "scribble") -> SparseCtrl:
    net = theirs(kind)
    return sparsectrl.load(net.state_dict(), net.config)


@functools.cache
def pipelines(kind: str) -> tuple[Any, Any]:
    """AnimateDiff, plain and with diffusers' SparseCtrl."""
    adapter = MotionAdapter(
        block_out_channels=(32, 64, 64, 64), motion_layers_per_block=2, motion_num_attention_heads=2
    )
    moving = UNetMotionModel.from_unet2d(tiny.unet(), randomised(adapter, seed=6))
    made = []
    for name in ("AnimateDiffPipeline", "AnimateDiffSparseControlNetPipeline"):
        parts = {k: v for k, v in tiny.parts().items() if k not in ("safety_checker", "unet", "feature_extractor")}
        parts |= {"controlnet": theirs(kind)} if "Sparse" in name else {}
        scheduler = diffusers.DDIMScheduler(**tiny.DDIM)
        pipe = getattr(diffusers, name)(**parts, unet=moving, motion_adapter=adapter, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe)
    return made[0], made[1]


def video(pipe: Any, **given: Any) -> torch.Tensor:
    call = {"num_frames": FRAMES, "num_inference_steps": 3, "height": tiny.SIZE, "width": tiny.SIZE}
    generator = torch.Generator().manual_seed(5)
    return pipe("a cat", output_type="latent", generator=generator, **{**call, **given}).frames


def step(rows: int = 2, frames: int = FRAMES) -> Step:
    draw = torch.Generator().manual_seed(3)
    x, context = (torch.randn(rows * frames, *size, generator=draw) for size in ((4, 8, 8), (7, 32)))
    return Step(x, torch.full((rows * frames,), 500), context, Span(0, 1), frames=frames)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_residuals_are_those_of_diffusers(kind: str) -> None:
    net, at = theirs(kind), step()
    side, channels = (64, 3) if kind == "scribble" else (8, 4)
    shown = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(4))
    cond, mask = torch.zeros(2, channels, FRAMES, side, side), torch.zeros(2, 1, FRAMES, side, side)
    for frame, one in zip((0, 3), shown, strict=True):
        cond[:, :, frame], mask[:, :, frame] = one, 1
    x = at.x.unflatten(0, (2, FRAMES)).transpose(1, 2)
    skips, middle = net(x, 500, at.context, cond, conditioning_mask=mask, return_dict=False)
    sparse = ours(kind).at_frames(0, -2)
    made = sparse(at, [sparse.hint(one[None]) for one in shown])
    # the last bits of the time embedding: theirs is of 2 rows, one a video, ours of 10
    for own, expected in zip([*made.skips, made.middle], [*skips, middle], strict=True):
        assert (own - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize(("kind", "places"), [("scribble", (0,)), ("scribble", (1, 4)), ("rgb", (0, 2))])
def test_a_guided_video_is_that_of_diffusers_pipeline(
    kind: str, places: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # theirs draws latents of the images from the global generator; the mode is what it draws around
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    plain, controlled = pipelines(kind)
    images = tuple(tiny.random_image(seed) for seed in places)
    expected = video(controlled, conditioning_frames=list(images), controlnet_frame_indices=list(places))
    sparse = ours(kind) if places == (0,) else ours(kind).at_frames(*places)
    with guide(plain, [Unit(sparse, images)]):
        made = video(plain)
    assert (made - expected).abs().max() <= 1e-4 * expected.std()
    assert (video(plain) - expected).abs().max() >= 1e-2 * expected.std()


def test_one_image_may_stand_at_several_frames_and_each_frame_may_have_its_own() -> None:
    plain, _ = pipelines("scribble")
    a, b = tiny.random_image(1), tiny.random_image(2)

    def guided(image: Any, *frames: int) -> torch.Tensor:
        with guide(plain, [Unit(ours().at_frames(*frames), image)]):
            return video(plain)

    assert torch.equal(guided(a, 0, 3), guided((a, a), 0, 3))
    each = guided(PerSample([a, b, b, b, a]), 0, 1)
    assert (each - guided((a, b), 0, 1)).abs().max() <= 1e-4 * each.std()  # convolutions of other numbers of rows


@torch.no_grad()
def test_it_reads_no_latents_of_the_video() -> None:
    at, net = step(), ours()
    hint = net.hint(np.full((64, 64, 3), 77, np.uint8))
    other = Step(at.x + 1, at.t, at.context, at.span, frames=FRAMES)
    assert torch.equal(net(at, [hint]).skips[3], net(other, [hint]).skips[3])


@pytest.mark.parametrize("kind", ["rgb", "scribble"])
def test_the_authors_files_load(kind: str, tmp_path: Path) -> None:
    tensors = theirs(kind).state_dict()
    authors = to_animatediff_keys(tensors)
    module = "down_blocks.1.motion_modules.1.temporal_transformer.transformer_blocks.0"
    assert {f"{module}.{end}" for end in ("attention_blocks.0.to_q.weight", "norms.0.weight", "ff_norm.bias")} <= set(
        authors
    )
    assert f"{module}.attention_blocks.0.pos_encoder.pe" in authors
    back = convert_animatediff_checkpoint_to_diffusers(authors)  # which leaves out where frames stand
    assert back.keys() == {name for name in tensors if not name.endswith("pos_embed.pe")}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in back.items())
    file = tmp_path / "v3_sd15_sparsectrl.ckpt"
    torch.save({"controlnet": authors, "animatediff_config": {"a": [1]}}, file)
    seen = inspect(file)
    assert (seen.architecture, seen.layout, seen.family, seen.problem) == ("sparsectrl", "ldm", "sd", None)
    assert seen.details["reads"].endswith(f"({kind})") and seen.details["frames at most"] == 6
    net: Any = load(file)
    assert all(torch.equal(tensors[name], t) for name, t in net.net.state_dict().items())


def test_positions_that_a_file_lacks_are_computed() -> None:
    tensors = theirs().state_dict()
    without = {name: t for name, t in tensors.items() if not name.endswith("pos_embed.pe")}
    net = sparsectrl.load(to_animatediff_keys(without), {"motion_max_seq_length": 6})
    assert all(torch.equal(tensors[name], t) for name, t in net.net.state_dict().items())
    assert sparsectrl.load(without, {}).details()["frames at most"] == 32
    half = sparsectrl.load({name: t.half() for name, t in without.items()}, {})
    assert {t.dtype for t in half.state_dict().values()} == {torch.float16}


def test_both_layouts_go_there_and_back(tmp_path: Path) -> None:
    net = ours("rgb")
    save_ldm(net, tmp_path / "authors.safetensors")
    again: Any = load(tmp_path / "authors.safetensors")
    save_diffusers(again, tmp_path / "folder")
    model = SparseControlNetModel.from_pretrained(tmp_path / "folder")
    tensors = model.state_dict()
    assert all(torch.equal(t, tensors[name]) for name, t in theirs("rgb").state_dict().items())
    assert (model.config.motion_num_attention_heads, model.config.motion_max_seq_length) == ([2, 2, 2, 2], 6)
    assert inspect(tmp_path / "folder").layout == "diffusers"
    with torch.no_grad():
        x = torch.zeros(1, 4, FRAMES, 8, 8)
        given = (x, 5, torch.ones(FRAMES, 7, 32), x, 1.0, None, None, None, x[:, :1])
        assert torch.equal(model(*given, return_dict=False)[1], theirs("rgb")(*given, return_dict=False)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_kind_claims_its_tensors(kind: str) -> None:
    for tensors in (theirs(kind).state_dict(), to_animatediff_keys(theirs(kind).state_dict())):
        assert [each.name for each in iter_kinds() if each.detect(tensors)] == ["sparsectrl"]


def refusal(act: Any) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_placed_is_refused() -> None:
    plain, _ = pipelines("scribble")
    a = tiny.random_image(1)

    def guided(model: SparseCtrl, image: Any, **given: Any) -> None:
        with guide(plain, [Unit(model, image)]):
            video(plain, **given)

    assert "at_frames() needs a frame" in refusal(lambda: ours().at_frames())
    assert "frame 1.0 is float" in refusal(lambda: ours().at_frames(1.0))  # type: ignore[arg-type]
    assert "2 images for 1 frames" in refusal(lambda: guided(ours(), (a, a)))
    assert "stands at frame 5, but the video has 5" in refusal(lambda: guided(ours().at_frames(5), a))
    assert "stands at frame -6, but the video has 5" in refusal(lambda: guided(ours().at_frames(-6), a))
    assert "two images stand at one frame: 4, -1 of 5" in refusal(lambda: guided(ours().at_frames(4, -1), a))
    assert "7 frames, but this SparseCtrl has positions for 6" in refusal(lambda: guided(ours(), a, num_frames=7))


def test_what_it_cannot_guide_or_read_is_refused() -> None:
    images = tiny.pipeline(diffusers.StableDiffusionPipeline)
    a = tiny.random_image(1)
    with pytest.raises(ValueError, match="guides videos, and the UNet has no motion modules"):
        guide(images, [Unit(ours(), a)]).__enter__()
    plain, _ = pipelines("rgb")
    with (
        pytest.raises(ValueError, match="unit 1 reads latents of an image, which an inpaint mask does not change"),
        guide(plain, [Unit(ours("rgb"), a, inpaint=a)]),
    ):
        video(plain)
    with pytest.raises(ValueError, match="reads latents"):
        ours("rgb").hint(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("down_blocks.0.motion_modules.1.proj_in.weight"), "motion_modules.1.proj_in.weight missing"),
        (lambda t: t.update(more=torch.ones(1)), "more unknown"),
        (lambda t: t.update({"controlnet_cond_embedding.conv_in.weight": torch.ones(8, 6, 3, 3)}), "6 channels"),
        (lambda t: [t.pop(k) for k in list(t) if "down_blocks.3.motion" in k], "motion modules"),
    ],
)
def test_damaged_files_are_refused_in_one_line(change: Any, words: str) -> None:
    tensors = dict(theirs().state_dict())
    change(tensors)
    assert words in refusal(lambda: sparsectrl.load(tensors, theirs().config))


@pytest.mark.parametrize(
    "config",
    [{"motion_num_attention_heads": 3}, {"motion_num_attention_heads": [2]}, {"motion_num_attention_heads": "2"}],
)
def test_settings_that_make_no_sense_are_refused(config: dict[str, Any]) -> None:
    assert "motion" in refusal(lambda: sparsectrl.load(theirs().state_dict(), config))
