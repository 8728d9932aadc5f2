"""Our ControlNet equals diffusers', and its trainable copy starts as nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, MotionAdapter, UNetMotionModel
from diffusers.image_processor import VaeImageProcessor
from networks import SHAPES, SIZES, all_of, ours, random_image, randomised, reference, step_for, theirs_on, unet

from controlnet_ext.models.base_unet import get_heads
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.compatibility import SD_SKIPS, SDXL_SKIPS, UNetSignature, incompatibility

SD15 = UNetSignature(in_channels=4, context_width=768, added_width=None, skip_channels=SD_SKIPS, middle_channels=1280)
SD21 = replace(SD15, context_width=1024)
SDXL = UNetSignature(
    in_channels=4, context_width=2048, added_width=2816, skip_channels=SDXL_SKIPS, middle_channels=1280
)


@pytest.mark.parametrize(("rows", "height", "width"), SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_residuals_equal_diffusers(shape: str, rows: int, height: int, width: int) -> None:
    theirs = reference(shape)
    net = ours(theirs)
    step, image = step_for(net, rows, height, width), random_image(8 * height, 8 * width)
    expected = theirs_on(theirs, step, image)
    results = all_of(net(step, net.hint(image)))
    for result, wanted in zip(results, expected, strict=True):
        assert wanted.std() >= 0.1  # or equality would prove nothing
        assert (result - wanted).abs().max() <= 1e-5 * wanted.std()  # measured: 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_residuals_equal_diffusers_in_other_dtypes(dtype: torch.dtype) -> None:
    theirs = reference("SD2.1").to(dtype)
    net = ours(theirs)
    step = step_for(net)
    step = replace(step, x=step.x.to(dtype), context=step.context.to(dtype))
    results = all_of(net(step, net.hint(random_image())))
    for result, wanted in zip(results, theirs_on(theirs, step, random_image()), strict=True):
        assert result.dtype == dtype
        assert torch.equal(result, wanted)


@torch.no_grad()
def test_residuals_have_the_dtype_of_x_whatever_the_network_has() -> None:
    net = ours(reference("SD1.5")).to(torch.bfloat16)
    assert {r.dtype for r in all_of(net(step_for(net), net.hint(random_image())))} == {torch.float32}


@torch.no_grad()
def test_one_hint_serves_all_rows() -> None:
    net = ours(reference("SD1.5"))
    step, hint = step_for(net, rows=3), net.hint(random_image())
    one, many = all_of(net(step, hint)), all_of(net(step, hint.repeat(3, 1, 1, 1)))
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@torch.no_grad()
def test_each_row_has_its_own_hint_prompt_and_time() -> None:
    """A batch equals its rows alone; the tolerance is for matrix products whose order depends on the batch."""
    net = ours(reference("SDXL"))
    step, hints = step_for(net, rows=3), net.hint(np.stack([random_image(seed=s) for s in range(3)]))
    together = all_of(net(step, hints))
    for i in range(3):
        row = slice(i, i + 1)
        alone = replace(step, x=step.x[row], t=step.t[row], context=step.context[row], added=step.added[row])
        for a, b in zip(all_of(net(alone, hints[row])), together, strict=True):
            torch.testing.assert_close(a, b[row], rtol=0, atol=3e-5)


@torch.no_grad()
def test_an_inpainting_unets_x_counts_by_its_latents() -> None:
    net = ours(reference("SD1.5"))
    step, hint = step_for(net), net.hint(random_image())
    nine = replace(step, x=torch.cat([step.x, torch.full_like(step.x[:, :1], 9), step.x], dim=1))
    assert all(torch.equal(a, b) for a, b in zip(all_of(net(step, hint)), all_of(net(nine, hint)), strict=True))


@torch.no_grad()
def test_frames_of_a_video_share_prompt_and_hint() -> None:
    net = ours(reference("SD1.5"))
    step, hints = step_for(net, rows=4), net.hint(np.stack([random_image(seed=1), random_image(seed=2)]))
    given = replace(step, t=step.t[:1], context=step.context[:2], frames=2)
    spread = replace(step, t=step.t[:1].repeat(4), context=step.context[:2].repeat_interleave(2, dim=0))
    results = all_of(net(given, hints)), all_of(net(spread, hints.repeat_interleave(2, dim=0)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@torch.no_grad()
def test_pooled_residuals_equal_diffusers() -> None:
    theirs = reference("SD1.5", global_pool_conditions=True)
    net = ours(theirs)
    assert net.global_average_pooling
    step = step_for(net)
    for result, wanted in zip(
        all_of(net(step, net.hint(random_image()))), theirs_on(theirs, step, random_image()), strict=True
    ):
        assert result.shape[2:] == (1, 1)
        assert torch.equal(result, wanted)


@torch.no_grad()
def test_hint_of_an_image_equals_diffusers_image_processor() -> None:
    theirs = reference("SD1.5")
    image = random_image(40, 72)
    pixels = VaeImageProcessor(do_normalize=False).preprocess(VaeImageProcessor.numpy_to_pil(image[None] / 255.0))
    expected = theirs.controlnet_cond_embedding(pixels.contiguous())
    assert torch.equal(ours(theirs).hint(image), expected)
    assert torch.equal(ours(theirs).hint(pixels.contiguous()), expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((60, 64, 3), np.uint8), "64x60 pixels: both sides must be multiples of 8"),
        (np.zeros((0, 64, 3), np.uint8), "64x0 pixels: both sides must be multiples of 8"),
        (np.zeros((64, 64), np.uint8), r"hint of shape \(64, 64\) and type uint8, expected an array \(H, W, 3\)"),
        (np.zeros((64, 64, 3)), "type float64, expected an array"),
        (torch.zeros(1, 4, 64, 64), r"hint of shape \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "type torch.uint8"),
    ],
)
def test_hints_that_cannot_be_read_are_refused(image: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ours(reference("SD1.5")).hint(image)


@torch.no_grad()
def test_four_channels_of_a_hint_are_colours_and_what_is_repainted() -> None:
    theirs = reference("SD1.5", conditioning_channels=4)
    net = ours(theirs)
    with pytest.raises(
        ValueError, match="takes hints of 4 channels, but an image has 3: give the unit an inpaint mask"
    ):
        net.hint(random_image())
    pixels = torch.tensor([[0.2, -1], [0.4, -1], [0.6, -1]]).reshape(1, 3, 1, 2).repeat(1, 1, 64, 32)
    four = torch.tensor([[0.2, 0], [0.4, 0], [0.6, 0], [0, 1]]).reshape(1, 4, 1, 2).repeat(1, 1, 64, 32)
    assert torch.equal(net.hint(pixels), theirs.controlnet_cond_embedding(four))
    assert torch.equal(net.hint(four), net.hint(pixels))
    with pytest.raises(ValueError, match=r"takes hints of 5 channels, but an image has 3$"):
        ours(reference("SD1.5", conditioning_channels=5)).hint(pixels)


def test_a_hint_of_another_size_is_refused() -> None:
    net = ours(reference("SD1.5"))
    with pytest.raises(ValueError, match="hint of 32 channels, 8x16 for x of 32 channels, 8x8"):
        net(step_for(net), net.hint(random_image(128, 64)))


def test_rows_that_do_not_match_are_refused() -> None:
    net = ours(reference("SD1.5"))
    step = step_for(net, rows=4)
    with pytest.raises(ValueError, match="3 prompts for 4 rows of x and 1 frames"):
        net(replace(step, context=step.context[:3]), net.hint(random_image()))


def test_an_sdxl_network_needs_the_added_vector() -> None:
    net = ours(reference("SDXL"))
    with pytest.raises(ValueError, match="needs the step's added vector"):
        net(replace(step_for(net), added=None), net.hint(random_image()))


@pytest.mark.parametrize("shape", ["SD1.5", "SD2.1", "SDXL"])
def test_a_copy_begins_as_the_encoder_and_as_nothing(shape: str) -> None:
    model = unet(shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = ControlNet.from_unet(model)
    step = step_for(net)
    assert not any(r.any() for r in all_of(net(step, net.hint(random_image()))))
    copied = net.state_dict()
    shared = [name for name in before if name in copied]
    assert len(shared) == sum(not name.startswith("controlnet_") for name in copied)
    assert all(torch.equal(copied[name], before[name]) for name in shared)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("shape", ["SD1.5", "SD2.1", "SDXL"])
@torch.no_grad()
def test_a_copy_computes_what_diffusers_copy_does(shape: str) -> None:
    model = unet(shape)
    theirs, net = randomised(ControlNetModel.from_unet(model)), randomised(ControlNet.from_unet(model))
    net.load_state_dict(theirs.state_dict())
    step = step_for(net)
    results = all_of(net(step, net.hint(random_image())))
    assert all(torch.equal(a, b) for a, b in zip(results, theirs_on(theirs, step, random_image()), strict=True))


def test_a_fresh_copy_learns() -> None:
    """The zero convolutions get gradients, and after one step of theirs so does everything before them."""
    net = ControlNet.from_unet(unet("SD1.5"))
    step, image = step_for(net), random_image()
    for _ in range(2):
        net.zero_grad()
        sum((r - 1).square().mean() for r in all_of(net(step, net.hint(image)))).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(0.1 * parameter.grad)
    silent = [name for name, p in net.named_parameters() if not p.grad.any()]
    assert silent == [
        n for n, _ in net.named_parameters() if n.startswith("controlnet_cond_embedding") and "conv_out" not in n
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch's own
def test_a_compiled_unet_is_copied_like_any() -> None:
    model = unet("SD1.5")
    copied, plain = ControlNet.from_unet(torch.compile(model)), ControlNet.from_unet(model)
    assert torch.equal(copied.conv_in.weight, plain.conv_in.weight)
    assert copied.net_config == plain.net_config


def test_a_copy_for_training_may_be_float32() -> None:
    net = ControlNet.from_unet(unet("SD1.5").half(), dtype=torch.float32)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_a_copy_reads_below_lora() -> None:
    from peft import LoraConfig

    model = unet("SD1.5")
    plain = ControlNet.from_unet(model).state_dict()
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "conv1", "conv_in"], init_lora_weights=False))
    copied = ControlNet.from_unet(model).state_dict()
    names = [name for name in plain if not name.startswith("controlnet_cond_embedding")]
    assert copied.keys() == plain.keys()
    assert all(torch.equal(copied[name], plain[name]) for name in names)
    assert UNetSignature.from_unet(model) == UNetSignature.from_unet(unet("SD1.5"))
    model.fuse_lora()
    with pytest.raises(ValueError, match="a LoRA is fused"):
        ControlNet.from_unet(model)


def test_a_copy_of_a_video_unet_is_its_spatial_part() -> None:
    model = unet("SD1.5", attention_head_dim=4)
    adapter = MotionAdapter(block_out_channels=(32, 64, 96, 96), motion_num_attention_heads=4, motion_max_seq_length=4)
    video = UNetMotionModel.from_unet2d(model, randomised(adapter))
    net, plain = ControlNet.from_unet(video), ControlNet.from_unet(model)
    assert net.net_config == plain.net_config
    assert all(torch.equal(a, b) for a, b in zip(net.mid_block.parameters(), plain.mid_block.parameters(), strict=True))
    assert UNetSignature.from_unet(video) == UNetSignature.from_unet(model)


def test_a_copy_of_an_inpainting_unet_reads_all_its_channels() -> None:
    net = ControlNet.from_unet(unet("SD1.5", in_channels=9))
    assert net.unet_signature.in_channels == 9
    step = step_for(net)
    assert step.x.shape[1] == 9
    assert not any(r.any() for r in all_of(net(step, net.hint(random_image()))))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mid_block_type": None}, "the UNet has no middle block"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"num_class_embeds": 10}, "num_class_embeds is 10"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift'"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim is 8"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos is False, only True is supported"),
    ],
)
def test_a_unet_with_other_settings_is_refused_by_their_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ControlNet.from_unet(unet("SD1.5", **changes))


def test_unstated_heads_come_from_the_unet() -> None:
    theirs, model = reference("SD1.5", attention_head_dim=4), unet("SD1.5", attention_head_dim=4)
    net = ControlNet.load(theirs.state_dict())
    step, stated = step_for(net), ours(theirs)
    with torch.no_grad():
        expected = all_of(stated(step, stated.hint(random_image())))
        assert not torch.equal(all_of(net(step, net.hint(random_image())))[-1], expected[-1])
        net.bind(model)
        net.bind(model)
        results = all_of(net(step, net.hint(random_image())))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    with pytest.raises(ValueError, match=r"took \(4, 4, 4, 4\) from another model; .* has \(8, 8, 8, 8\)"):
        net.bind(unet("SD1.5"))


def test_stated_heads_stay() -> None:
    net = ours(reference("SD1.5", attention_head_dim=4))
    net.bind(unet("SD1.5", attention_head_dim=8))
    assert net.net_config.heads == (4, 4, 4, 4)


def test_heads_of_a_unet_are_read_level_by_level() -> None:
    assert get_heads(unet("SDXL")) == (1, 2, 4)
    assert get_heads(unet("SD2.1")) == (1, 2, 4, 4)


def test_published_heads_are_guessed() -> None:
    """8 in SD1.5; 64 channels each in SD2.1 (5, 10, 20, 20) and SDXL (5, 10, 20)."""
    plan = ours(reference("SD1.5")).net_config
    wide = replace(plan, widths=(320, 640, 1280, 1280), heads=None)
    assert replace(wide, context_width=768).default_heads == (8, 8, 8, 8)
    assert replace(wide, context_width=1024).default_heads == (5, 10, 20, 20)


def test_another_group_size_comes_from_the_unet_too() -> None:
    theirs, model = reference("SD1.5", norm_num_groups=16), unet("SD1.5", norm_num_groups=16)
    net = ControlNet.load(theirs.state_dict())
    net.bind(model)
    step = step_for(net)
    with torch.no_grad():
        result = net(step, net.hint(random_image())).middle
    assert torch.equal(result, theirs_on(theirs, step, random_image())[-1])


@pytest.mark.parametrize(
    ("net", "model", "words"),
    [
        (SDXL, SD15, "SDXL ControlNet, but the model is SD1.5"),
        (SD15, SD21, "SD1.5 ControlNet, but the model is SD2.1"),
        (SD21, SDXL, "SD2.1 ControlNet, but the model is SDXL"),
        (
            SD15,
            replace(SD15, context_width=128, skip_channels=(32,) * 12, middle_channels=32),
            "SD1.5 ControlNet, but the model is narrow SD (context 128)",
        ),
        (replace(SD15, in_channels=9), SD15, "the ControlNet has latent channels 9, but the model has 4"),
        (
            replace(SD15, context_width=32, skip_channels=(32, 64), middle_channels=64),
            replace(SD15, context_width=64, skip_channels=(32, 64), middle_channels=64),
            "the ControlNet has context width 32, but the model has 64",
        ),
        (
            replace(SD15, context_width=32, skip_channels=(32, 64), middle_channels=64),
            replace(SD15, context_width=32, skip_channels=(32, 96), middle_channels=64),
            "the ControlNet has skip widths 32-64, but the model has 32-96",
        ),
        (
            replace(SD15, context_width=32, skip_channels=(32, 64), middle_channels=64, added_width=48),
            replace(SD15, context_width=32, skip_channels=(32, 64), middle_channels=64),
            "the ControlNet has added vector width 48, but the model has none",
        ),
    ],
)
def test_a_misfit_is_said_in_the_users_words(net: UNetSignature, model: UNetSignature, words: str) -> None:
    assert incompatibility(net, model) == words


def test_what_fits() -> None:
    assert incompatibility(SD15, SD15) is None
    assert incompatibility(SD15, replace(SD15, in_channels=9)) is None
    assert incompatibility(replace(SDXL, context_width=None), SDXL) is None


def test_a_misfit_is_refused_before_anything_changes() -> None:
    net = ControlNet.load(reference("SD1.5").state_dict())
    with pytest.raises(ValueError, match="the ControlNet has context width 48, but the model has 40"):
        net.bind(unet("SD1.5", cross_attention_dim=40))
    assert net.net_config.heads is None


@pytest.mark.parametrize("shape", SHAPES)
def test_layout_of_a_unet_is_that_of_its_copy(shape: str) -> None:
    model = unet(shape) if shape != "SDXL small" else unet(shape, transformer_layers_per_block=(1, 1, 1))
    layout, copied = UNetSignature.from_unet(model), ControlNet.from_unet(model).unet_signature
    assert incompatibility(copied, layout) is None
    assert replace(copied, context_width=layout.context_width) == layout
