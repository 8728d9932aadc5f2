"""Units on ldm's UNet against the same units on the same weights in diffusers' UNet."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import test_lllite
import test_style
import test_t2i_adapter
import test_union
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from fakes import run
from ldm import UNetModel
from tiny import DDIM, control, parts, pipeline, random_image, unet

from controlnet_ext import PerSample, Unit, Window, guide
from controlnet_ext.guidance.after_steps import ColorFix
from controlnet_ext.guidance.contract import Activation, Residuals, Step
from controlnet_ext.guidance.schedule import Span
from controlnet_ext.hosts.ldm.guide import BatchRows, guide_ldm
from controlnet_ext.hosts.ldm.host import LdmHost
from controlnet_ext.hosts.session import _guided_unets
from controlnet_ext.models.kinds import lllite, t2i_adapter
from controlnet_ext.models.kinds.controlnet import ControlNet

SPANS = [Span(i / 4, (i + 1) / 4) for i in range(4)]
KINDS = {"SD1.5": StableDiffusionPipeline, "SD2.1": StableDiffusionPipeline, "SDXL": StableDiffusionXLPipeline}


def net(shape="SD1.5", seed=2):
    theirs = control(shape, seed)
    return ControlNet.load(theirs.state_dict(), dict(theirs.config))


def unit(**changes):
    return Unit(**({"model": net(), "image": random_image()} | changes))


def inputs(shape="SD1.5", rows=2, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    config = unet(shape).config
    x = torch.randn(rows // 2, 4, 8, 8, generator=numbers).repeat(2, 1, 1, 1)
    context = torch.randn(rows, 16, config.cross_attention_dim, generator=numbers)
    added = config.projection_class_embeddings_input_dim
    y = None if added is None else torch.randn(rows, added, generator=numbers)
    return x, torch.full((rows,), 601.0), context, y


def rows(count=2, span=SPANS[1]):
    """ldm's denoiser: first the rows with the prompt, then those without."""
    half = count // 2
    return BatchRows(span, [*range(half)] * 2, [True] * half + [False] * half)


def called(model, given):
    x, t, context, y = given
    with torch.no_grad():
        return model(x, t, context=context, **({} if y is None else {"y": y}))


def guided(model, units, given, announced=None, turn=0):
    with guide_ldm(model, units) as guiding:
        guiding.begin(SPANS, turn)
        guiding.announce_step(announced or rows(len(given[0])))
        return called(model, given)


def in_diffusers(shape, units, given, announced=None):
    """The same call of diffusers' UNet with the residuals that the engine gives, in diffusers' own arguments."""
    x, t, context, y = given
    announced = announced or rows(len(x))
    seen: list[Residuals] = []
    model = UNetModel(unet(shape))
    with guide_ldm(model, units) as guiding:
        guiding.begin(SPANS, 0)
        guiding.announce_step(announced)
        model.register_forward_pre_hook(lambda *_: seen.append(_guided_unets[model]._residuals))
        called(model, given)
    (total,) = seen
    theirs, added = unet(shape), None
    if y is not None:
        config = theirs.config
        sizes = 6 * config.addition_time_embed_dim
        theirs.add_time_proj.forward = lambda _: y[:, -sizes:].reshape(-1)
        added = {"text_embeds": y[:, :-sizes], "time_ids": torch.zeros(len(x), 6)}
    with torch.no_grad():
        return theirs(
            x,
            t,
            context,
            added_cond_kwargs=added,
            down_block_additional_residuals=total.skips,
            mid_block_additional_residual=total.middle,
        ).sample


@pytest.mark.parametrize("shape", KINDS)
def test_guided_it_is_diffusers_unet_with_the_same_residuals_to_the_bit(shape):
    given, units = inputs(shape), [unit(model=net(shape)), unit(model=net(shape, 5), weight=0.4, mode="prompt")]
    found = guided(UNetModel(unet(shape)), units, given)
    assert torch.equal(found, in_diffusers(shape, units, given))
    assert (found - called(UNetModel(unet(shape)), given)).abs().max() > 1e-2


@pytest.mark.parametrize("shape", ["SD1.5", "SD2.1"])
def test_a_pipeline_guided_by_the_same_unit_makes_the_same_calls(shape):
    """A whole run of `guide` in a diffusers pipeline, each of its UNet calls repeated by the ldm host."""
    pipe, calls = pipeline(KINDS[shape], shape), []
    handle = pipe.unet.register_forward_hook(
        lambda _, args, kwargs, out: calls.append((args, kwargs, out[0].clone())), with_kwargs=True
    )
    one = unit(model=net(shape), mode="control", weight=0.7, window=Window(0, 0.8))
    try:
        with guide(pipe, [one]):
            numbers = torch.Generator().manual_seed(1)
            pipe("a", height=64, width=64, num_inference_steps=4, generator=numbers, output_type="latent")
    finally:
        handle.remove()
    model = UNetModel(pipe.unet)
    with guide_ldm(model, [one]) as guiding:
        guiding.begin(SPANS, 0)
        for span, (args, kwargs, out) in zip(SPANS, calls, strict=True):
            guiding.announce_step(BatchRows(span, [0, 0], [False, True]))  # as diffusers stacks them
            with torch.no_grad():
                t = torch.as_tensor(args[1]).reshape(-1).expand(2)
                assert torch.equal(model(args[0], t, context=kwargs["encoder_hidden_states"]), out)


def test_weight_zero_and_windows_that_do_not_hold_the_step_change_nothing():
    model, given = UNetModel(unet()), inputs()
    plain = called(model, given)
    assert torch.equal(guided(model, [unit(weight=0)], given), plain)
    assert torch.equal(guided(model, [unit(window=Window(0.5, 1))], given), plain)
    assert torch.equal(guided(model, [unit(hires="high")], given), plain)
    assert not torch.equal(guided(model, [unit(hires="high")], given, turn=1), plain)


def test_afterwards_the_unet_is_as_before_also_after_an_error():
    model, given = UNetModel(unet()), inputs()
    plain, before = called(model, given), _hooks(model)
    with pytest.raises(ZeroDivisionError), guide_ldm(model, [unit()]):
        raise ZeroDivisionError
    assert torch.equal(called(model, given), plain)
    assert _hooks(model) == before
    guided(model, [unit()], given)
    assert _hooks(model) == before


def _hooks(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]


@pytest.mark.parametrize("parts", [(4,), (2, 2), (1, 1, 1, 1), (3, 1)])
def test_rows_are_known_however_the_host_splits_a_step(parts):
    """The mode "control" acts on the prompt's rows only; PerSample has a map for each image."""
    given = inputs(rows=4)
    units = [unit(mode="control", image=PerSample([random_image(1), random_image(2)]))]
    model = UNetModel(unet())
    plain, whole = called(model, given), guided(model, units, given)
    assert torch.equal(whole[2:], plain[2:])
    assert (whole[:2] - plain[:2]).abs().max() > 1e-2
    with guide_ldm(model, units) as guiding:
        guiding.begin(SPANS, 0)
        guiding.announce_step(rows(4))
        found = torch.cat([called(model, part) for part in _split(given, parts)])
    # Sums over batches of other sizes: found 2e-6; the maps in the wrong order differ by 1e-1.
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-5)


def _split(given, parts):
    return zip(*(((None,) * len(parts)) if g is None else g.split(parts) for g in given), strict=True)


def test_a_prompt_of_several_parts_has_a_row_for_each():
    """AND: two prompts for the first image, one for the second, then the rows without prompts."""
    given = tuple(None if g is None else torch.cat([g, g[:1]]) for g in inputs(rows=4))
    announced = BatchRows(SPANS[0], [0, 0, 1, 0, 1], [True, True, True, False, False])
    model, units = UNetModel(unet()), [unit(mode="control")]
    found = guided(model, units, given, announced)
    plain = called(model, given)
    assert [torch.equal(a, b) for a, b in zip(found, plain, strict=True)] == [False, False, False, True, True]


def test_what_a_unit_needs_and_the_host_cannot_tell_is_refused():
    model, given = UNetModel(unet()), inputs(rows=4)
    with pytest.raises(ValueError, match="more rows than the 2 that the host announced for the step"):
        guided(model, [unit()], given, rows(2))
    with pytest.raises(ValueError, match=r"window 0.6..0.7 of unit 1 holds none of 4 steps"):
        guided(model, [unit(window=Window(0.6, 0.7))], given)
    with pytest.raises(ValueError, match="unit 2: the ControlNet has context width 64, but the model has 32"):
        guided(model, [unit(), unit(model=net("SDXL"))], given)
    with pytest.raises(ValueError, match="a Linear without input_blocks, expected ldm's UNetModel"):
        guided(torch.nn.Linear(1, 1), [unit()], given)
    with guide_ldm(model, [unit()]), pytest.raises(RuntimeError, match="outside of a step that the host announced"):
        called(model, given)
    with guide_ldm(model, [unit()]), pytest.raises(RuntimeError, match="guided already"), guide_ldm(model, []):
        pass


def test_a_map_may_be_of_any_size_and_two_runs_have_hints_of_their_own():
    model, units = UNetModel(unet()), [unit(image=np.asarray(random_image(3, 192)))]
    small = inputs()
    large = tuple(None if g is None else torch.nn.functional.pad(g, (0, 8, 0, 8)) if g.ndim == 4 else g for g in small)
    with guide_ldm(model, units) as guiding:
        for turn, given in enumerate((small, large)):
            guiding.begin(SPANS, turn)
            guiding.announce_step(replace(rows(), span=SPANS[0]))
            assert called(model, given).shape == given[0].shape
        assert guiding.guided_calls == 2


class Latent:
    """What of ldm's LatentDiffusion is asked for after a step: schedule, parameterization and VAE."""

    def __init__(self, parameterization):
        self.first_stage_model, self.parameterization = parts()["vae"], parameterization
        self.alphas_cumprod = DDIMScheduler(**DDIM).alphas_cumprod

    def encode_first_stage(self, pixels):
        return self.first_stage_model.encode(pixels).latent_dist

    def get_first_stage_encoding(self, latents):
        return self.first_stage_model.config.scaling_factor * latents


MASK = np.zeros((64, 64, 3), np.uint8)
MASK[:, 32:] = 255


@pytest.mark.parametrize(("ldm", "diffusers"), [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
def test_units_act_after_a_step_as_in_diffusers(ldm, diffusers):
    """A whole run of `guide`, each of its UNet calls repeated by the ldm host, in parts too."""
    pipe, calls = pipeline(StableDiffusionPipeline, scheduler=DDIMScheduler(**DDIM, prediction_type=diffusers)), []
    one = unit(preprocessor="inpaint_only", inpaint=MASK, weight=0.8, window=Window(0.25, 1))
    two = unit(weight=0.5, after=ColorFix(3, 2))
    with guide(pipe, [one, two]):
        handle = pipe.unet.register_forward_hook(
            lambda _, args, kwargs, out: calls.append((args, kwargs, out[0].clone())), with_kwargs=True
        )
        numbers = torch.Generator().manual_seed(1)
        pipe("a", height=64, width=64, num_inference_steps=4, generator=numbers, output_type="latent")
        handle.remove()
    model = UNetModel(pipe.unet)
    with guide_ldm(model, [one, two], Latent(ldm)) as guiding:
        guiding.begin(SPANS, 0)
        for parts_of in ((2,), (1, 1)):
            for span, (args, kwargs, out) in zip(SPANS, calls, strict=True):
                guiding.announce_step(BatchRows(span, [0, 0], [False, True]))
                t = torch.as_tensor(args[1]).reshape(-1).float().expand(2)
                given = args[0], t, kwargs["encoder_hidden_states"], None
                found = torch.cat([called(model, part) for part in _split(given, parts_of)])
                torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-4)


def test_noise_between_timesteps_is_k_diffusions():
    host = LdmHost(None, Latent("eps"))
    x = torch.zeros(2, 4, 8, 8)
    host.step = Step(x, torch.tensor([500.25, 999.0]), torch.zeros(2, 1, 1), SPANS[0])
    alphas = host.model.alphas_cumprod.double()
    logs = ((1 - alphas) / alphas).sqrt().log()
    sigmas = torch.stack([0.75 * logs[500] + 0.25 * logs[501], logs[999]]).exp()
    noise = host.compute_noise_level()
    torch.testing.assert_close((noise.noise / noise.signal).flatten().double(), sigmas, rtol=1e-6, atol=0)
    torch.testing.assert_close(noise.noise**2 + noise.signal**2, torch.ones(2, 1, 1, 1))


def test_without_the_model_what_needs_it_is_refused():
    model, given = UNetModel(unet()), inputs()
    with pytest.raises(ValueError, match="needs the host's model, with its VAE and alphas_cumprod"):
        guided(model, [unit(after=ColorFix())], given)


def attached(shape):
    """A unit that acts inside the attention, of each kind that does."""
    if shape == "SDXL":
        return Unit(lllite.load(test_lllite.weights(), {}), random_image(), weight=0.6)
    return Unit(test_style.ours(), test_style.holding(test_style.states()), weight=0.7)


def acting(shape, kind):
    """A unit of that kind; None: one that acts inside the attention. (Kinds that read the UNet's own weights need ldm's
    names of them, which the stand-in has not.)"""
    if kind is None:
        return attached(shape)
    if kind == "Union":
        model = test_union.ours(test_union.theirs(tiny_one=True)).with_types("depth")
    else:
        model = t2i_adapter.load(test_t2i_adapter.theirs(kind).state_dict(), {})
    return Unit(model, random_image(), weight=0.6)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *(("SD1.5", None), ("SD1.5", "full"), ("SD1.5", "full grey"), ("SD1.5", "light")),
        *(("SDXL", None), ("SDXL", "xl"), ("SDXL", "Union")),
    ],
)
def test_all_kinds_do_here_what_they_do_in_a_pipeline(shape, kind):
    pipe, calls = pipeline(KINDS[shape], shape), []
    handle = pipe.unet.register_forward_hook(
        lambda _, args, kwargs, out: calls.append((args, kwargs, out[0].clone())), with_kwargs=True
    )
    try:
        with guide(pipe, [acting(shape, kind)]):
            run(pipe)
    finally:
        handle.remove()
    model, one = UNetModel(pipe.unet), acting(shape, kind)
    (args, kwargs, _), *_ = calls
    given = (
        args[0],
        torch.as_tensor(args[1]).reshape(-1).expand(2),
        kwargs["encoder_hidden_states"],
        vector(pipe, kwargs),
    )
    plain, before = called(model, given), _hooks(pipe.unet)
    with guide_ldm(model, [one]) as guiding:
        guiding.begin(SPANS, 0)
        for span, (args, kwargs, out) in zip(SPANS, calls, strict=True):
            guiding.announce_step(BatchRows(span, [0, 0], [False, True]))  # as diffusers stacks them
            t = torch.as_tensor(args[1]).reshape(-1).expand(2)
            made = called(model, (args[0], t, kwargs["encoder_hidden_states"], vector(pipe, kwargs)))
            assert torch.equal(made, out)
            if span is SPANS[0]:
                assert (made - plain).abs().max() > 1e-3 * plain.abs().max()
    assert torch.equal(called(model, given), plain) and _hooks(pipe.unet) == before


def vector(pipe, kwargs):
    """ldm's y of what a pipeline passes."""
    added = kwargs.get("added_cond_kwargs")
    if not added:
        return None
    sizes = pipe.unet.add_time_proj(added["time_ids"].flatten()).reshape(len(added["time_ids"]), -1)
    return torch.cat([added["text_embeds"], sizes], dim=1)


def test_a_unit_in_the_attention_follows_split_calls_and_another_size():
    model, one = UNetModel(unet()), attached("SD1.5")
    x, t, context, _ = inputs(rows=4)
    with guide_ldm(model, [one]) as guiding:
        guiding.begin(SPANS, 0)
        guiding.announce_step(rows(4))
        whole = called(model, (x, t, context, None))
        guiding.announce_step(rows(4))
        parts = [called(model, (x[i:j], t[i:j], context[i:j], None)) for i, j in ((0, 3), (3, 4))]
        guiding.announce_step(replace(rows(4), latent_size=(16, 8)))
        called(model, (torch.zeros(4, 4, 16, 8), t, context, None))
    # batches of other sizes differ in their last bits
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-5)
    assert (whole - called(model, (x, t, context, None))).abs().max() > 1e-3


def test_a_style_reaches_attention_that_calls_its_prompt_context():
    """webui's modules do, diffusers' say encoder_hidden_states."""

    class Attention(torch.nn.Module):
        def forward(self, x, context=None, mask=None):
            return context

    attention, net = Attention(), test_style.ours()
    step = Step(torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.ones(2, 16, 32), SPANS[0], torch.tensor([True, False]))
    now = Activation(step, torch.ones(2), None, None, 0)
    host = SimpleNamespace(iter_attentions=lambda: [("down_blocks.0.attn2", attention, "input")])
    hint = net.hint(torch.from_numpy(test_style.states())[None])
    with net.attach(host, hint, lambda: now):
        longer = attention(step.x, context=step.context)
    assert torch.equal(longer[0, 16:], hint[0]) and torch.equal(longer[1], torch.ones(16 + hint.shape[1], 32))
    assert attention(step.x, context=step.context) is step.context
