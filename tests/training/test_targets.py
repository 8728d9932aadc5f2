"""What can be trained, beside narrow random models of each family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from networks import randomised

from controlnet_ext import Unit, guide
from controlnet_ext.cli import main
from controlnet_ext.files.weights import read_weights
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.models.state_dict.saving import save_ldm
from controlnet_ext.training.bases import EncodedBatch, FrozenBase
from controlnet_ext.training.masks import draw_mask
from controlnet_ext.training.memory import checkpoint_activations
from controlnet_ext.training.targets import TargetSettings, find_target, list_targets

SIDE = 128  # pixels: the middle block has several, so that its queries and keys matter
RANK = 4
FAMILIES = {"SD1.5": ("SD1.5", 4), "SD2.1": ("SD2.1", 4), "SDXL": ("SDXL", 4), "inpainting": ("SD1.5", 9)}
CASES = [
    ("controlnet", "SD1.5"),
    ("controlnet", "SD2.1"),
    ("controlnet", "SDXL"),
    ("controlnet", "inpainting"),
    ("control-lora", "SD1.5"),
    ("control-lora", "SDXL"),
    ("control-lora", "inpainting"),
    ("t2i-adapter", "SD1.5"),
    ("t2i-adapter", "SDXL"),
    ("lllite", "SDXL"),
]
BaseMaker = Callable[[str], tuple[FrozenBase, EncodedBatch]]


@pytest.fixture(scope="module")
def bases() -> BaseMaker:
    """Frozen models with a batch of two examples, made when they are first asked for."""
    made: dict[str, tuple[FrozenBase, EncodedBatch]] = {}

    def get(family: str) -> tuple[FrozenBase, EncodedBatch]:
        if family not in made:
            shape, channels = FAMILIES[family]
            kind = StableDiffusionXLPipeline if shape == "SDXL" else StableDiffusionPipeline
            base = FrozenBase(tiny.pipeline(kind, shape, channels, unet=small_unet(shape, channels)), "cpu")
            made[family] = base, encode(base)
        return made[family]

    return get


def small_unet(shape: str, channels: int) -> UNet2DConditionModel:
    """Smaller still than the tiny one: these tests go backwards too."""
    config = {**tiny.SHAPES[shape], "layers_per_block": 1, "in_channels": channels}
    config["block_out_channels"] = (32,) * len(config["block_out_channels"])
    if "down_block_types" in config:
        config["up_block_types"] = tuple(tiny.UP[name] for name in reversed(config["down_block_types"]))
        config["attention_head_dim"] = 1
    net: UNet2DConditionModel = randomised(UNet2DConditionModel(sample_size=8, **config), seed=1)
    return net


def encode(base: FrozenBase) -> EncodedBatch:
    images = [np.array(tiny.random_image(i, SIDE)) for i in (0, 1)]
    texts = [base.encode_caption(caption) for caption in "ab"]
    added = [base.build_added(text, images[0].shape[:2]) for text in texts]
    extra = [base.encode_extra(image, draw_mask(np.random.default_rng(3), *image.shape[:2])) for image in images]
    return EncodedBatch(
        torch.stack([base.encode_latents(image) for image in images]),
        torch.stack([text.context for text in texts]),
        np.stack([255 - image for image in images]),
        added=torch.stack(added) if base.is_sdxl else None,
        extra=torch.stack(extra) if base.is_inpainting else None,
    )


def create(target: str, base: FrozenBase) -> Any:
    torch.manual_seed(0)
    settings = TargetSettings(rank=RANK if target == "control-lora" else None)
    find_target(target).check(base.unet, settings)
    return find_target(target).create(base.unet, settings)


def predict(base: FrozenBase, batch: EncodedBatch, net: Any) -> torch.Tensor:
    return base.predict(batch.latents, torch.tensor([3, 801]), batch, net)


@torch.no_grad()
def shake(net: torch.nn.Module, scale: float = 0.02) -> Any:
    """The network with every tensor changed a little, zero convolutions too."""
    draw = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        parameter += scale * torch.randn(parameter.shape, generator=draw)
    return net


@pytest.mark.parametrize(("target", "family"), [case for case in CASES if case[0] != "t2i-adapter"])
@torch.no_grad()
def test_a_fresh_network_acts_as_nothing(target: str, family: str, bases: BaseMaker) -> None:
    base, batch = bases(family)
    net = create(target, base)
    assert torch.equal(predict(base, batch, net), predict(base, batch, None))
    assert target == "lllite" or net.unet_signature.in_channels == 4  # of an inpainting UNet's nine, too
    assert (predict(base, batch, shake(net)) - predict(base, batch, None)).abs().max() > 1e-4


@pytest.mark.parametrize(("target", "family"), CASES)
def test_every_tensor_learns_and_the_base_does_not(target: str, family: str, bases: BaseMaker) -> None:
    base, batch = bases(family)
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    net = shake(create(target, base)).train()
    predict(base, batch, net).square().mean().backward()
    parameters = dict(net.named_parameters())
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.any()] == []
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.unet.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in base.unet.parameters())


@pytest.mark.parametrize(
    ("target", "family"), [("control-lora", "SD1.5"), ("lllite", "SDXL"), ("t2i-adapter", "SD1.5")]
)
@torch.no_grad()
def test_a_copy_for_averages_has_weights_of_its_own(target: str, family: str, bases: BaseMaker) -> None:
    base, batch = bases(family)
    net = shake(create(target, base))
    expected = predict(base, batch, net)
    averaged = copy.deepcopy(net)
    shake(net)
    assert torch.equal(predict(base, batch, averaged), expected)
    assert not torch.equal(predict(base, batch, net), expected)
    shake(averaged)
    assert torch.equal(predict(base, batch, averaged), predict(base, batch, net))


@pytest.mark.parametrize(("target", "family"), [("control-lora", "SD1.5"), ("lllite", "SDXL")])
@torch.no_grad()
def test_weights_of_a_checkpoint_act_in_the_network_that_is_trained(target: str, family: str, bases: BaseMaker) -> None:
    base, batch = bases(family)
    trained, resumed = shake(create(target, base)), create(target, base)
    resumed.load_state_dict(trained.state_dict())
    assert torch.equal(predict(base, batch, resumed), predict(base, batch, trained))


@pytest.mark.parametrize(("target", "family"), [("controlnet", "SD1.5"), ("control-lora", "SDXL"), ("lllite", "SDXL")])
@torch.no_grad()
def test_the_network_that_was_trained_guides(target: str, family: str, bases: BaseMaker) -> None:
    base, _ = bases(family)
    net = shake(create(target, base))

    def latents(*units: Unit) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        with guide(base.pipe, units):
            made: torch.Tensor = base.pipe(
                "a", height=SIDE, width=SIDE, num_inference_steps=1, generator=draw, output_type="latent"
            ).images
        return made

    image = np.array(tiny.random_image(0, SIDE))
    assert (latents(Unit(net, image, preprocessor="canny")) - latents()).abs().max() > 1e-5


def test_an_error_in_a_step_leaves_nothing_on_the_base(bases: BaseMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    base, batch = bases("SDXL")
    net = create("lllite", base)
    plain = predict(base, batch, None)
    last = list(net.lites.values())[-1]
    monkeypatch.setattr(last, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(base, batch, net)
    assert not any(module._forward_pre_hooks for module in base.unet.modules())
    assert torch.equal(predict(base, batch, None), plain)


@pytest.mark.parametrize(
    ("target", "family", "layer"),
    [
        ("controlnet", "SD1.5", "conv1"),
        ("control-lora", "SD1.5", "conv1"),
        ("t2i-adapter", "SDXL", None),
        ("lllite", "SDXL", None),
    ],
)
def test_activations_that_are_computed_again_give_the_same_gradients(
    target: str, family: str, layer: str | None, bases: BaseMaker
) -> None:
    base, batch = bases(family)
    net = shake(create(target, base)).train()
    found, calls = [], []
    for part in net.iter_parts():
        if layer is not None and hasattr(part, layer):
            getattr(part, layer).register_forward_hook(lambda *_: calls.append(1))
    for saves in (False, True):
        net.zero_grad()
        calls.clear()
        try:
            with checkpoint_activations(net) if saves else nullcontext():
                base.unet.enable_gradient_checkpointing() if saves else None
                predict(base, batch, net).square().mean().backward()
        finally:
            base.unet.disable_gradient_checkpointing()
        found.append(([p.grad.clone() for p in net.parameters()], len(calls)))
    (plain, once), (saved, again) = found
    assert again == 2 * once and (once > 0) == (layer is not None)
    for a, b in zip(plain, saved, strict=True):
        assert a.any() and torch.equal(a, b)
    assert base.pipe.unet is base.unet  # who asks for the pipeline gets it plain
    assert not any(module._forward_pre_hooks for module in base.unet.modules())


def test_factors_have_the_rank_of_the_smaller_side_at_most(bases: BaseMaker) -> None:
    base, _ = bases("SD1.5")
    net = create("control-lora", base)
    ranks = {name: t.shape[0] for name, t in net.LAYOUTS["ldm"](net.state_dict()).items() if name.endswith(".down")}
    assert ranks.pop("input_blocks.0.0.down") == RANK  # of the latents' channels, too
    assert set(ranks.values()) == {RANK}
    wide = find_target("control-lora").create(base.unet, TargetSettings(rank=31))
    assert wide.LAYOUTS["ldm"](wide.state_dict())["input_blocks.0.0.down"].shape == (4, 4, 3, 3)


def test_a_fresh_lllite_lies_where_those_of_sd_scripts_do() -> None:
    net: Any = find_target("lllite").create(tiny.unet("SDXL"), TargetSettings())
    tensors = net.LAYOUTS["ldm"](net.state_dict())
    names = {name.partition(".")[0].removeprefix("lllite_unet_") for name in tensors}
    depths = {"input_blocks_4_1": 1, "input_blocks_5_1": 1, "input_blocks_7_1": 2, "input_blocks_8_1": 2}
    assert names == {
        f"{block}_transformer_blocks_{i}_{layer}"
        for block, depth in {**depths, "middle_block_1": 2}.items()
        for i in range(depth)
        for layer in ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn2_to_q")
    }
    first, deep = ("lllite_unet_input_blocks_4_1_", "lllite_unet_middle_block_1_")
    sides = {
        prefix: [
            tensors[f"{prefix}transformer_blocks_0_attn1_to_q.conditioning1.{i}.weight"].shape
            for i in (0, 2, 4)
            if f"{prefix}transformer_blocks_0_attn1_to_q.conditioning1.{i}.weight" in tensors
        ]
        for prefix in (first, deep)
    }
    assert sides[first] == [(16, 3, 4, 4), (32, 16, 4, 4)]
    assert sides[deep] == [(16, 3, 4, 4), (16, 16, 4, 4), (32, 16, 2, 2)]
    assert tensors[f"{first}transformer_blocks_0_attn1_to_q.down.0.weight"].shape == (64, 64)


def test_targets_are_found_by_name() -> None:
    assert list_targets() == ["controlnet", "control-lora", "lllite", "t2i-adapter"]
    assert [find_target(name).name for name in list_targets()] == list_targets()
    assert find_target(None).name == "controlnet"
    with pytest.raises(ValueError, match=r"unknown target 't2i-adaptor', the nearest are: t2i-adapter"):
        find_target("t2i-adaptor")


@pytest.mark.parametrize(
    ("target", "family", "settings", "says"),
    [
        ("lllite", "SD1.5", {}, "a ControlLLLite is made for SDXL, but the model is narrow SD"),
        ("control-lora", "SD1.5", {"rank": 32}, r"rank 32 is outside 1\.\.31"),
        ("control-lora", "SD1.5", {"rank": 0}, r"rank 0 is outside 1\.\.31"),
        ("controlnet", "SD1.5", {"rank": 8}, "rank 8: a controlnet has none to choose"),
        ("lllite", "SDXL", {"is_compiled": True}, "a lllite acts inside the model's layers.* without --compile"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    target: str, family: str, settings: dict[str, Any], says: str, bases: BaseMaker
) -> None:
    with pytest.raises(ValueError, match=says):
        find_target(target).check(bases(family)[0].unet, TargetSettings(**settings))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, bases: BaseMaker) -> Path:
    """A ControlNet for SDXL, a Control-LoRA for SD1.5, and a folder of SD1.5."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    for name, target, family in (("xl", "controlnet", "SDXL"), ("lora", "control-lora", "SD1.5")):
        save_ldm(create(target, bases(family)[0]), folder / f"{name}.safetensors")
    (folder / "photos").mkdir()
    for i in (0, 1):
        tiny.random_image(i).save(folder / f"photos/{i}.png")
        (folder / f"photos/{i}.txt").write_text("ab"[i])
    tiny.pipeline(StableDiffusionPipeline, unet=small_unet("SD1.5", 4)).save_pretrained(folder / "sd")
    return folder


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "--control xl.safetensors",
            "'xl.safetensors': the ControlNet has context width 64, but the model has 32",
        ),
        ("--control lora.safetensors --rank 3", "rank 3: 'lora.safetensors', which is trained further, has its own"),
        (
            "--control lora.safetensors --target controlnet",
            "'lora.safetensors' is a control-lora, expected a controlnet, which is to be trained",
        ),
        (
            "--control sd/vae",
            "diffusion_pytorch_model.safetensors' is a VAE, expected one of: controlnet, control-lora",
        ),
    ],
)
def test_a_control_that_does_not_belong_is_refused_before_networks_load(
    words: str, says: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setattr(PipelineFolder, "load", lambda *_: pytest.fail("networks are loaded"))
    command = f"train --model sd --data photos --validation 0.5 --map canny --size 64x64 -o out.safetensors {words}"
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not Path("out.safetensors.training").exists()


def test_a_file_says_what_is_trained_further(files: Path, bases: BaseMaker) -> None:
    path = files / "lora.safetensors"
    target = find_target(None, path)
    assert target.name == "control-lora"
    base, _ = bases("SD1.5")
    net = target.create(base.unet, TargetSettings(path))
    torch.manual_seed(0)
    fresh = create("control-lora", base)
    expected = fresh.state_dict()
    assert net.state_dict().keys() == expected.keys()
    assert all(p.requires_grad and torch.equal(p, expected[name]) for name, p in net.named_parameters())


def test_the_command_trains_a_lllite_with_checkpointing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(files / "photos")
    tiny.pipeline(StableDiffusionXLPipeline, "SDXL", unet=small_unet("SDXL", 4)).save_pretrained("xl")
    fixed = "--data photos --validation 0.5 --map canny --size 64x64 --batch 1 --steps 1 --draws 4 --fidelity-images 0"
    words = ["train", "--model", "xl", "--target", "lllite", "--checkpointing", *fixed.split()]
    assert main([*words, "-o", "out.safetensors"]) == 0
    ups = [t for name, t in read_weights("out.safetensors").tensors.items() if name.endswith(".up.0.weight")]
    assert ups and all(t.any() for t in ups)
