"""`controlnet-ext generate` from words to PNG and back, on a narrow Stable Diffusion with random weights."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import preloaded
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from controlnet_ext import Unit, Window, guide, load
from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import encode_image, read_png_text
from controlnet_ext.generation import options, prepare
from controlnet_ext.generation.pipeline_folder import SCHEDULER_CLASSES, PipelineFolder
from controlnet_ext.generation.prepare import load_recipe
from controlnet_ext.generation.recipe_png import read_recipe
from controlnet_ext.generation.render import render_recipe
from controlnet_ext.maps.fidelity import canny_f1
from controlnet_ext.maps.resize import fit
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.saving import save_ldm
from controlnet_ext.scoring.scores import read_scores

KEYWORD = "controlnet-ext"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, an image, and an image that was made of them."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny.pipeline(StableDiffusionPipeline).save_pretrained(folder / "sd")
    tiny.pipeline(StableDiffusionXLPipeline, "SDXL").save_pretrained(folder / "xl")
    for name, net in (("control", tiny.control()), ("xl", tiny.control("SDXL"))):
        save_ldm(ControlNet.load(net.state_dict(), net.config), folder / f"{name}.safetensors")
    tiny.control(seed=7).save_pretrained(folder / "other")
    tiny.random_image(size=96).save(folder / "photo.png")
    cv2.imwrite(str(folder / "region.png"), np.tile(np.uint8([0, 0, 90, 255]), (3, 1)))
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main(words("made.png")) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(autouse=True)
def at_the_shelf(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test works in a folder of its own, with the shelf's files by links, and without a network."""
    for file in shelf.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    yield


CONTROL = "canny,model=control.safetensors,weight=.8,window=0..0.7,mode=prompt,low=50"


def words(out: str, *more: str, control: str | None = CONTROL, model: str = "sd") -> list[str]:
    """A command line for an image."""
    controls = [] if control is None else ["--image", "photo.png", "--control", control]
    return ["generate", "a cat", "--model", model, *controls, "--steps", "3", "--seed", "3", *more, "-o", out]


def line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr, without its beginning."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("controlnet-ext: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert len(err) < 600
    return err[len("controlnet-ext: ") : -1]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The line with which the command refuses, having written nothing."""
    before = sorted(os.listdir())
    assert main(arguments) == 2
    assert sorted(os.listdir()) == before
    return line(capsys)


def test_the_image_is_that_of_guide_in_python(shelf: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(shelf / "sd", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    unit = Unit(
        load("control.safetensors"),
        "photo.png",
        weight=0.8,
        window=Window(0, 0.7),
        mode="prompt",
        preprocessor="canny",
        parameters={"low": 50},
    )
    with guide(pipe, [unit]):
        expected = pipe("a cat", num_inference_steps=3, generator=torch.Generator().manual_seed(3)).images[0]
    assert np.array_equal(read_image("made.png"), np.asarray(expected))


def test_guided_differs_from_unguided_and_weight_0_does_not() -> None:
    assert main(words("plain.png", control=None)) == 0
    assert main(words("off.png", control=f"{CONTROL.replace('weight=.8', 'weight=0')}")) == 0
    guided, plain, off = (read_image(name).astype(int) for name in ("made.png", "plain.png", "off.png"))
    assert np.abs(guided - plain).max() > 2
    assert np.array_equal(plain, off)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            words("out.png", control=CONTROL.replace("control.s", "absent.s")),
            "unit 1: 'absent.safetensors' does not exist",
        ),
        (words("out.png", "--control", "canny,model=absent"), "unit 2: 'absent' does not exist"),
        (words("out.png", "--control", "canny,model=other,image=absent.png"), "unit 2: 'absent.png' does not exist"),
        (words("photo.png"), "'photo.png' exists; --overwrite replaces it"),
        (words("out.jpg"), "does not end in .png"),
        (words("out.png", model="absent"), "'absent' does not exist"),
        (["generate", "--from", "made.png", "--control", "1,model=absent", "-o", "out.png"], "'absent' does not exist"),
        (["generate", "--from", "made.png", "--model", "absent", "-o", "out.png"], "'absent' does not exist"),
    ],
)
def test_what_is_named_and_not_there_is_found_out_before_anything_is_made_or_loaded(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a map was made, or a model loaded")

    monkeypatch.setattr(options, "fit_unit", fail)
    monkeypatch.setattr(prepare, "_load_units", fail)
    monkeypatch.setattr(options, "choose_device", fail if "--from" not in arguments else options.choose_device)
    assert reason in refused(capsys, arguments)


def test_from_repeats_the_file_bit_for_bit_without_the_control_image() -> None:
    Path("photo.png").unlink()
    assert main(["generate", "--from", "made.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("made.png").read_bytes()


def test_the_png_holds_the_score_of_its_image_and_of_its_source() -> None:
    (score,) = read_scores(read_png_text("made.png"))
    control_map = read_recipe("made.png").units[0].control_map.pixels
    photo = fit(read_image("photo.png"), 64, 64)
    assert (score.number, score.preprocessor, score.figure, score.floor) == (1, "canny", "f1", None)
    assert score.score == pytest.approx(canny_f1(control_map, read_image("made.png"), 50, 200).exact, abs=1e-6)
    assert score.ceiling is not None
    assert score.ceiling["f1"] == pytest.approx(canny_f1(control_map, photo, 50, 200).exact, abs=1e-6)


def test_without_score_only_the_text_is_missing_and_from_adds_none() -> None:
    assert main(words("plain.png", "--no-score")) == 0
    texts = read_png_text("made.png")
    del texts["controlnet-ext score"]
    assert read_png_text("plain.png") == texts and np.array_equal(read_image("plain.png"), read_image("made.png"))
    assert main(["generate", "--from", "plain.png", "-o", "again.png"]) == 0  # as a recipe of an older version
    assert Path("again.png").read_bytes() == Path("plain.png").read_bytes()


def test_the_best_of_three_is_the_image_of_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("all/", "--best-of", "3", "--keep-all")) == 0
    err = capsys.readouterr().err
    scores = {seed: read_scores(read_png_text(f"all/{seed}.png"))[0].score for seed in (3, 4, 5)}
    best = max(scores, key=lambda seed: scores[seed])
    assert best != 3  # or the next lines show nothing
    assert f"seed {best} is the best of 3: unit 1: f1 {scores[best]:.3f}, the first has {scores[3]:.3f}" in err
    assert Path("all/3.png").read_bytes() == Path("made.png").read_bytes()
    assert main(["generate", "--from", "made.png", "--best-of", "3", "-o", "best.png"]) == 0
    assert Path("best.png").read_bytes() == Path(f"all/{best}.png").read_bytes()
    assert main(["generate", "--from", "best.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("best.png").read_bytes()
    assert read_recipe("best.png").seed == best


def test_units_without_a_score_are_told_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("two.png", "--control", "none,image=photo.png,model=other")) == 0
    assert "unit 2: no score, its map came as an image of no stated kind\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (words("out.png", "--best-of", "1"), "best-of 1 is outside 2..64"),
        (words("out.png", "--keep-all"), "--keep-all without --best-of"),
        (words("out.png", "--best-of", "2", "--keep-all"), "'out.png' is not a folder: end it in /"),
        (words("out.png", "--best-of", "2", control=None), "there is no --control"),
        (words("out.png", "--best-of", "2", control="canny,model=other,weight=0"), "no unit acts"),
        (
            words("out.png", "--best-of", "2", control="none,model=other"),
            "no image is better than another: unit 1: no score, its map came as an image of no stated kind",
        ),
        (words("out.png", "--best-of", "3", "--seed", str(2**63 - 2)), "seed 9223372036854775808 is outside"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "_load_units", lambda *_: pytest.fail("a model was loaded"))
    assert reason in refused(capsys, arguments)


def test_score_reads_the_units_of_a_recipe_and_draws_its_floor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("plain.png", control=None)) == 0
    capsys.readouterr()
    assert main(["score", "made.png", "--json", "--floor"]) == 0
    (unit,) = json.loads(capsys.readouterr().out)["images"][0]["units"]
    (stored,) = read_scores(read_png_text("made.png"))
    assert unit["figures"] == stored.figures and unit["ceiling"] == stored.ceiling  # that of when the photo was there
    control_map = read_recipe("made.png").units[0].control_map.pixels
    floor = canny_f1(control_map, read_image("plain.png"), 50, 200).exact
    assert unit["floor"]["f1"] == pytest.approx(floor, abs=1e-6) and unit["share"] is not None
    assert main(["score", "made.png", "--json", "--image", "photo.png"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["units"][0]["ceiling"] == stored.ceiling


def test_a_floor_is_not_drawn_of_a_model_on_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    tampered(lambda recipe: recipe["model"].update(path="\\\\evil\\share"))
    assert main(["score", "bad.png", "--floor"]) == 2
    assert "the recipe's model lies on another machine" in line(capsys)


def test_from_refuses_a_hostile_score(capsys: pytest.CaptureFixture[str]) -> None:
    texts = read_png_text("made.png") | {"controlnet-ext score": '{"format": 1, "units": [{"unit": 1}]}'}
    Path("bad.png").write_bytes(encode_image("bad.png", read_image("made.png"), texts))
    assert "'bad.png': its score 1 lacks one of" in refused(
        capsys, ["generate", "--from", "bad.png", "-o", "again.png"]
    )


def test_score_refuses_a_changed_image_and_a_model_that_is_not_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wide.png").write_bytes(encode_image("w.png", np.zeros((64, 72, 3), np.uint8), read_png_text("made.png")))
    assert main(["score", "wide.png"]) == 2
    assert "the image is 72x64 pixels and its recipe's 64x64: it was changed since" in line(capsys)
    assert main(["score", "made.png", "--floor", "--model", "xl"]) == 2
    assert "'xl'" in line(capsys)
    assert main(["score", "made.png", "--map", "photo.png"]) == 2
    assert "its recipe holds its maps: for others say what they are" in line(capsys)


def test_two_units_with_region_schedule_layers_and_a_map_are_repeated() -> None:
    Path("map.png").write_bytes(encode_image("map.png", np.asarray(tiny.random_image(seed=4))))
    second = 'none,image=map.png,model="other",region=region.png,weight="0.5@0, 1@0.5",fit=stretch,mode=control'
    layers = ",".join(["1", ".5"] * 6 + ["2"])
    more = ["--control", f'{second},layers="{layers}"', "--negative", "a dog", "--guidance", "3", "--size", "64x96"]
    more += ["--scheduler", "euler-ancestral"]
    assert main(words("two.png", *more, control=f"{CONTROL},resolution=match")) == 0
    Path("map.png").unlink(), Path("region.png").unlink()
    assert main(["generate", "--from", "two.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("two.png").read_bytes()
    assert read_image("two.png").shape == (96, 64, 3)
    assert main(["generate", "--from", "two.png", "-o", "one.png", "--control", "2,weight=0"]) == 0
    assert not np.array_equal(read_image("one.png"), read_image("two.png"))


def test_options_change_a_recipe() -> None:
    assert main(words("fresh.png", "--scheduler", "unipc", "--seed", "5")) == 0
    again = ["--scheduler", "unipc", "--seed", "5", "--steps", "3", "-o", "changed.png"]
    assert main(["generate", "--from", "made.png", *again]) == 0
    assert Path("changed.png").read_bytes() == Path("fresh.png").read_bytes()
    assert main(["generate", "--from", "made.png", "--size", "128x64", "-o", "wide.png"]) == 0
    assert read_image("wide.png").shape == (64, 128, 3)


def test_the_commands_in_the_documentation_work() -> None:
    Path("map.png").write_bytes(encode_image("map.png", np.asarray(tiny.random_image(seed=4))))
    Path("left.png").symlink_to("region.png")
    lines = (Path(__file__).parents[2] / "docs" / "guides" / "generate.md").read_text().splitlines()
    lines = lines[lines.index('```sh title="needs a model sd, control.safetensors and images"') :]
    commands = [shlex.split(line)[1:] for line in lines[1 : lines.index("```")]]
    assert len(commands) == 4
    for command in commands:
        assert main([*command, "--steps", "3"]) == 0
    assert Path("again.png").read_bytes() == Path("house.png").read_bytes()
    assert len({read_image(name).tobytes() for name in ("house.png", "other.png", "two.png")}) == 3


def test_sdxl_is_repeated() -> None:
    assert main(words("xl.png", control="canny,model=xl.safetensors", model="xl")) == 0
    assert main(["generate", "--from", "xl.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("xl.png").read_bytes()


def test_every_scheduler_draws() -> None:
    prepared = load_recipe(replace(read_recipe("made.png"), steps=2), "cpu")
    images = set()
    for name in SCHEDULER_CLASSES:
        prepared.pipe.scheduler = PipelineFolder.find("sd").make_scheduler(name)
        images.add(render_recipe(prepared).tobytes())
    assert len(images) > 8  # some are one method in other words, such as DDIM and Euler


def test_a_model_that_lies_elsewhere_is_named_again(capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in (("sd", "moved"), ("control.safetensors", "renamed.safetensors")):
        Path(old).rename(new)
    again = ["generate", "--from", "made.png", "-o", "again.png"]
    text = refused(capsys, again)
    assert "'sd' does not exist" in text and "'unet/diffusion_pytorch_model.safetensors' has sha256 " in text
    assert text.endswith("name it with --model")
    again += ["--model", "moved"]
    assert refused(capsys, again).endswith("name it with --control 1,model=PATH")
    assert main([*again, "--control", "1,model=renamed.safetensors"]) == 0
    assert np.array_equal(read_image("again.png"), read_image("made.png"))


def test_a_mismatch_of_weights_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    again = ["generate", "--from", "made.png", "-o", "again.png"]
    Path("control.safetensors").unlink()
    shutil.copy("xl.safetensors", "control.safetensors")
    text = refused(capsys, again)
    assert "unit 1: 'weights' of the model 'control.safetensors' has sha256 " in text
    assert ", the recipe was made with " in text
    shutil.copytree("sd", "copy")
    Path("copy/tokenizer/tokenizer_config.json").write_text("{}")
    Path("control.safetensors").unlink()
    Path("control.safetensors").symlink_to(Path("xl.safetensors").resolve().with_name("control.safetensors"))
    assert "'tokenizer/tokenizer_config.json' of the model 'copy' has sha256" in refused(
        capsys, [*again, "--model", "copy"]
    )
    Path("copy/vae/added.txt").write_text("")
    shutil.copy("sd/tokenizer/tokenizer_config.json", "copy/tokenizer/tokenizer_config.json")
    assert "has 'vae/added.txt', which the recipe's did not have" in refused(capsys, [*again, "--model", "copy"])


def test_versions_that_differ_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    tampered(lambda recipe: recipe["made_with"].update(torch="1.0"))
    assert main(["generate", "--from", "bad.png", "-o", "again.png"]) == 0
    assert f"made with torch '1.0', here '{version('torch')}'" in capsys.readouterr().err


def test_a_recipe_of_too_many_threads_is_run_with_as_many_as_the_machine_is_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    tampered(lambda recipe: recipe.update(threads=256))
    assert main(["generate", "--from", "bad.png", "-o", "again.png"]) == 0
    assert "made with 256 threads, here 20: the last bits may differ" in capsys.readouterr().err
    assert 20 in asked and max(asked) == 20


def test_a_model_folder_that_asks_for_all_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for part, fields, words in (
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "1000000000000 for 'num_train_timesteps'"),
        ("unet/config.json", {"layers_per_block": 10**6}, "1000000 for 'layers_per_block', expected at most 64"),
        ("unet/config.json", {"block_out_channels": [10**9, 64]}, "1000000000, 64"),
    ):
        shutil.rmtree("asking", ignore_errors=True)
        shutil.copytree("sd", "asking")
        config = json.loads(Path("asking", part).read_text())
        Path("asking", part).write_text(json.dumps(config | fields))
        line = refused(capsys, ["generate", "--from", "made.png", "-o", "again.png", "--model", "asking"])
        assert words in line


def tampered(change: Callable[[Any], Any], **images: str) -> None:
    """bad.png: made.png with another recipe, which `change` alters or gives as text."""
    texts = read_png_text("made.png")
    recipe = json.loads(texts[KEYWORD])
    changed = change(recipe)
    texts[KEYWORD] = changed if isinstance(changed, str) else json.dumps(recipe)
    texts |= {f"{KEYWORD} unit 1 {name} 1": text for name, text in images.items()}
    Path("bad.png").write_bytes(encode_image("bad.png", read_image("made.png"), texts))


def unit_with(**fields: Any) -> Callable[[Any], None]:
    return lambda recipe: recipe["units"][0].update(fields)


def recipe_with(**fields: Any) -> Callable[[Any], None]:
    return lambda recipe: recipe.update(fields)


def test_whole_numbers_of_a_recipe_may_be_written_as_floats() -> None:
    made = read_recipe("made.png")
    numbers = {name: float(getattr(made, name)) for name in ("steps", "width", "height", "threads")}
    tampered(recipe_with(format=1.0, **numbers))
    again = read_recipe("bad.png")
    assert all(type(getattr(again, name)) is int and getattr(again, name) == n for name, n in numbers.items())


def base64_of(height: int, width: int) -> str:
    import base64

    return base64.b64encode(encode_image("m.png", np.zeros((height, width), np.uint8))).decode()


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no object": (lambda _: "[1]", "expected an object"),
    "broken JSON": (lambda _: "{", "not valid JSON"),
    "deep JSON": (lambda _: '{"a":' * 50_000, "JSON"),
    "a key twice": (lambda _: '{"format": 1, "format": 1}', "a key is given twice"),
    "a number of 5000 digits": (lambda _: '{"format": ' + "9" * 5000 + "}", "JSON"),
    "another format": (recipe_with(format=2), "format '2', this version reads 1"),
    "a missing field": (lambda recipe: recipe.pop("seed"), "lacks the field 'seed'"),
    "an unknown field": (recipe_with(callback="os.system"), "unknown field 'callback'"),
    "a prompt that is a list": (recipe_with(prompt=["a"]), "its prompt is list"),
    "a prompt of a megabyte": (recipe_with(prompt="a" * 900_000), "900000 characters"),
    "half a letter": (recipe_with(prompt="\ud800"), "not UTF-8"),
    "steps as text": (recipe_with(steps="4"), "its steps is str"),
    "a billion steps": (recipe_with(steps=10**9), "steps 1000000000 is outside 1..1000"),
    "half a step": (recipe_with(steps=1.5), "expected a whole number"),
    "truth for a seed": (recipe_with(seed=True), "seed True is bool"),
    "a negative seed": (recipe_with(seed=-1), "seed -1 is outside"),
    "a seed of a hundred digits": (recipe_with(seed=10**100), "is outside"),
    "guidance NaN": (recipe_with(guidance=float("nan")), "guidance nan is outside 0..100"),
    "guidance infinite": (recipe_with(guidance=float("inf")), "guidance inf is outside 0..100"),
    "a giant image": (recipe_with(width=60000, height=60000), "width 60000 is outside"),
    "an odd size": (recipe_with(width=65), "multiples of 8"),
    "another size than the map's": (recipe_with(width=128), "map is 64x64, but the image 128x64"),
    "a million threads": (recipe_with(threads=10**6), "threads 1000000 is outside"),
    "an unknown dtype": (recipe_with(dtype="__class__"), "dtype '__class__' is none of"),
    "an unknown device": (recipe_with(device="meta"), "device 'meta' is none of"),
    "a scheduler that is no class": (recipe_with(scheduler="os.system"), "no name of a class"),
    "an unknown scheduler": (recipe_with(scheduler="DiffusionPipeline"), "unknown scheduler 'DiffusionPipeline'"),
    "other settings": (lambda recipe: recipe["scheduler_config"].update(beta_end=1), "other settings here"),
    "a scheduler's config as text": (recipe_with(scheduler_config="x"), "its scheduler_config is str"),
    "made with a number": (recipe_with(made_with={"torch": 1}), "made_with 'torch'"),
    "made with a terminal's commands": (recipe_with(made_with={"torch": "\x1b[2J"}), "made_with 'torch'"),
    "a model without hashes": (lambda r: r["model"].update(sha256={}), "0 files"),
    "a hash that is none": (lambda r: r["model"].update(sha256={"a": "b"}), "is not a sha256"),
    "a model's path with a null": (lambda r: r["model"].update(path="a\0b"), "which none has"),
    "a model on another machine": (lambda r: r["model"].update(path="\\\\evil\\share"), "on another machine"),
    "a control model there": (lambda r: r["units"][0]["model"].update(path="//evil/share"), "on another machine"),
    "a model that is a device": (lambda r: r["model"].update(path="/dev/zero"), "'/dev/zero' is a file"),
    "a control model that is a device": (lambda r: r["units"][0]["model"].update(path="/dev/zero"), "pipe or a device"),
    "a control model with another hash": (
        lambda r: r["units"][0]["model"].update(path="/etc/passwd", sha256={"weights": "0" * 64}),
        "has sha256",
    ),
    "units that are numbers": (recipe_with(units=[1]), "unit 1: it is int, expected an object"),
    "a thousand units": (lambda r: r.update(units=r["units"] * 1000), "1000 units of 64x64"),
    "sixteen giants": (lambda r: r.update(width=4096, height=4096, units=r["units"] * 16), "64 megapixels in all"),
    "weight NaN": (unit_with(weight=float("nan")), "weight nan is outside -2..2"),
    "weight 1e9": (unit_with(weight=1e9), "is outside -2..2"),
    "weight as truth": (unit_with(weight=True), "weight True is bool"),
    "a schedule of a megabyte": (unit_with(weight="1@0," * 200_000), "weight of 800000 characters"),
    "a window of one": (unit_with(window=[0]), "window of 1 numbers"),
    "a window backwards": (unit_with(window=[0.6, 0.2]), "window start 0.6 lies behind its end 0.2"),
    "a window of texts": (unit_with(window=["0", "1"]), "expected a number 0..1"),
    "an unknown mode": (unit_with(mode="exec"), "mode 'exec' is none of"),
    "layers of texts": (unit_with(layers=["1"]), "expected numbers"),
    "an unknown kind": (unit_with(kind="x"), "map kind 'x' is none of"),
    "an unknown fit": (unit_with(fit="x"), "fit 'x' is none of"),
    "boxes of 20,000 latents": (
        unit_with(preprocessor="tile_colorfix", parameters={"variation": 20_000}),
        "variation 20000 is outside 3..32",
    ),
    "boxes of a billion latents": (
        unit_with(preprocessor="tile_colorfix", parameters={"variation": 10**9}),
        "variation 1000000000 is outside 3..32",
    ),
    "a resolution of a million": (
        unit_with(preprocessor="canny", parameters={"resolution": 10**6}),
        "resolution 1000000 is outside 64..2048",
    ),
    "a control model that is the kernel's log": (
        lambda r: r["units"][0]["model"].update(path="/proc/kmsg"),
        "'/proc/kmsg'",
    ),
    "layers of a million": (unit_with(layers=[10**6]), "layers holds 1000000, outside -10..10"),
    "parameters of lists": (unit_with(parameters={"low": [1]}), "parameter 'low'"),
    "a preprocessor of control letters": (unit_with(preprocessor="\n"), "field 'preprocessor'"),
    "a region that is missing": (unit_with(region=True), "its region is missing"),
    "a mask that is missing": (unit_with(mask=True), "its mask is missing"),
    "inpainting without a mask": (unit_with(preprocessor="inpaint_only"), "changes what an inpaint mask covers"),
    "no control model": (
        lambda r: r["units"][0]["model"].update(path="none", sha256={}),
        "model=none is for what acts after each step",
    ),
    "no control model, with hashes": (lambda r: r["units"][0]["model"].update(path="none"), "1 files, which none has"),
    "no base model": (lambda r: r["model"].update(path="none", sha256={}), "0 files"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = HOSTILE[name]
    tampered(change)
    assert expected in refused(capsys, ["generate", "--from", "bad.png", "-o", "again.png"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (lambda: "§", "its map is not base64"),
        (lambda: "AAAA", "its map is missing, or not a PNG"),
        (lambda: base64_of(64, 64)[:100], "cut short or damaged"),
        (lambda: base64_of(64, 72), "its map is 72x64, but the image 64x64"),
        (lambda: base64_of(9000, 9000), "over the limit of 64"),
    ],
    ids=["no base64", "no PNG", "cut", "another size", "too large"],
)
def test_a_hostile_map_is_refused(text: Callable[[], str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    tampered(lambda _: None, map=text())
    assert expected in refused(capsys, ["generate", "--from", "bad.png", "-o", "again.png"])


def test_images_without_a_whole_recipe_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import struct
    import zlib

    made = Path("made.png").read_bytes()
    bomb = b"iTXt" + KEYWORD.encode() + b"\0\1\0\0\0" + zlib.compress(bytes(2**27), 9)
    bomb = struct.pack(">I", len(bomb) - 4) + bomb + struct.pack(">I", zlib.crc32(bomb))
    plain = encode_image("plain.png", read_image("made.png"))
    for name, content, expected in (
        ("bare.png", plain, "holds no recipe of controlnet-ext"),
        ("photo.jpg", encode_image("photo.jpg", read_image("made.png")), "is not a PNG"),
        ("cut.png", made[:2000], "cut short"),
        ("bomb.png", plain[:33] + bomb + plain[33:], "over 1048576 bytes"),
        ("empty.png", b"", "is not a PNG"),
    ):
        Path(name).write_bytes(content)
        assert expected in refused(capsys, ["generate", "--from", name, "-o", "again.png"])
    assert "'absent.png' does not exist" in refused(capsys, ["generate", "--from", "absent.png", "-o", "again.png"])


def replaced(*changes: str) -> list[str]:
    """A command line with CONTROL's parts replaced: old, new, old, new."""
    control = CONTROL
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        control = control.replace(old, new)
    return words("out.png", control=control)


BAD: dict[str, tuple[list[str], str]] = {
    "an unknown preprocessor": (replaced("canny", "cany"), "unknown preprocessor 'cany', the nearest are: canny"),
    "an unknown parameter": (replaced("low", "lwo"), "'lwo' is unknown to canny, the nearest are: low"),
    "an unknown key": (replaced("weight", "wieght"), "'wieght' is unknown to canny, the nearest are: weight"),
    "a parameter of a map": (replaced("canny", "none"), "'low' is unknown to none"),
    "a parameter out of range": (replaced("low=50", "low=300"), "canny: low 300 is outside 0..255"),
    "a parameter that is no number": (replaced("low=50", "low=x"), "canny: low 'x': expected a whole number 0..255"),
    "no key": (replaced("low=50", "low"), "'low' is not key=value"),
    "a trailing comma": (replaced("low=50", "low=50,"), "'' is not key=value"),
    "no name": (replaced("canny,", ""), "does not begin with the name of a preprocessor"),
    "nothing": (words("out.png", control=""), "does not begin with the name of a preprocessor"),
    "a weight twice": (replaced("low=50", "weight=1"), "weight is given twice, as '.8' and '1'"),
    "an open quote": (replaced("low=50", 'low="50'), "not key=value"),
    "letters behind a quote": (words("out.png", control='"canny"x'), "quotes must enclose a whole value"),
    "a weight out of range": (replaced("=.8", "=3.5"), "unit 1: weight 3.5 is outside -2..2"),
    "a weight that is none": (replaced("=.8", "=much"), "unit 1: weight 'much' is not a number"),
    "a weight that is NaN": (replaced("=.8", "=nan"), "weight nan is outside -2..2"),
    "a broken schedule": (replaced("=.8", "=1@0@1"), "expected \"weight@fraction"),
    "a window backwards": (replaced("0..0.7", "0.6..0.2"), "unit 1: window start 0.6 lies behind its end 0.2"),
    "a window out of range": (replaced("0..0.7", "0..1.5"), "window end 1.5 is outside 0..1"),
    "a window of one number": (replaced("0..0.7", "0.7"), "window '0.7': expected start..end"),
    "a weight that is always 0": (replaced("=.8", '="0@0"'), "the weight of unit 1 is 0 in all 2 steps"),
    "layers for another network": (replaced("low=50", "layers=1"), "layers has 1 entries, but the model has 13"),
    "a window without steps": (replaced("0..0.7", "0.4..0.6"), "window 0.4..0.6 of unit 1 holds none of 3 steps"),
    "an unknown mode": (replaced("=prompt", "=prmpt"), "mode 'prmpt' is none of"),
    "an unknown fit": (replaced("low=50", "fit=cut"), "fit 'cut' is none of"),
    "a missing image": (words("out.png", "--image", "absent.png"), "unit 1: 'absent.png' does not exist"),
    "an image that is none": (words("out.png", "--image", "control.safetensors"), "is none of JPEG"),
    "no image": (["generate", "a", "--model", "sd", "--control", "canny,model=m", "-o", "out.png"], "no image given"),
    "an image without a unit": (words("out.png", "--image", "photo.png", control=None), "without a --control"),
    "no control model": (words("out.png", control="canny"), "no control model given: name one with model=PATH"),
    "a missing control model": (replaced("control.s", "absent.s"), "unit 1: 'absent.safetensors' does not exist"),
    "an image for a model": (replaced("control.safetensors", "photo.png"), "neither safetensors nor of torch.save"),
    "a control model of SDXL": (
        replaced("control.s", "xl.s"),
        "unit 1: 'xl.safetensors' does not fit the model: the ControlNet has context width 64, but the model has 32",
    ),
    "no prompt": (["generate", "--model", "sd", "-o", "out.png"], "no PROMPT given"),
    "a missing model": (words("out.png", model="absent"), "'absent' does not exist"),
    "a model that is not in the cache": (words("out.png", model="nobody/nothing"), "nor a repository in the"),
    "a file for a model": (words("out.png", model="control.safetensors"), "is a file, expected a folder"),
    "a folder that is no model": (words("out.png", model="sd/unet"), "holds no model_index.json"),
    "no step": (words("out.png", "--steps", "0"), "steps 0 is outside 1..1000"),
    "steps in words": (words("out.png", "--steps", "many"), "steps 'many': expected a whole number 1..1000"),
    "a negative seed": (words("out.png", "--seed=-1"), "seed -1 is outside"),
    "a size of one number": (words("out.png", "--size", "64"), "size '64': expected WIDTHxHEIGHT"),
    "a giant": (words("out.png", "--size", "60000x60000"), "width 60000 is outside 64..4096"),
    "an odd size": (words("out.png", "--size", "64x100"), "both sides must be multiples of 8"),
    "guidance NaN": (words("out.png", "--guidance", "nan"), "guidance nan is outside 0..100"),
    "an unknown scheduler": (words("out.png", "--scheduler", "eulr"), "'eulr', the nearest are: euler"),
    "a peer's scheduler": (words("out.png", "--scheduler", "Euler a"), "'Euler a'; it is called euler-ancestral here"),
    "a peer's flag": (words("out.png", "--cfg_scale", "7"), "'--cfg_scale'; it is called --guidance here"),
    "an unknown device": (words("out.png", "--device", "tpu"), "device 'tpu': expected cpu"),
    "a device that is not there": (words("out.png", "--device", "cuda:99"), "this machine has no device cuda:99"),
    "an unknown dtype": (words("out.png", "--dtype", "float8"), "dtype 'float8' is none of"),
    "a JPEG to write": (words("out.jpg"), "does not end in .png"),
    "a folder that is not there": (words("photo.png/out.png"), "'photo.png' is a file, expected a folder"),
    "an image that is there": (words("photo.png"), "'photo.png' exists; --overwrite replaces it"),
    "an image for a recipe": (
        ["generate", "--from", "made.png", "--image", "photo.png", "-o", "out.png"],
        "--image with --from: the recipe holds its maps already",
    ),
    "a unit that a recipe lacks": (
        ["generate", "--from", "made.png", "--control", "2,weight=1", "-o", "out.png"],
        "expected a unit of the recipe, 1..1",
    ),
    "a key that a recipe fixes": (
        ["generate", "--from", "made.png", "--control", "1,low=3", "-o", "out.png"],
        "'low' cannot change in a recipe, only model, weight, window, mode, layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = BAD[name]
    assert expected in refused(capsys, arguments)


class Touch:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_weights_that_can_run_code_are_refused_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("control.pth").write_bytes(pickle.dumps({"weight": Touch()}))
    assert "refused" in refused(capsys, words("out.png", control="canny,model=control.pth"))
    shutil.copytree("sd", "pickled")
    Path("pickled/unet/diffusion_pytorch_model.safetensors").unlink()
    Path("pickled/unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"weight": Touch()}))
    text = refused(capsys, words("out.png", model="pickled"))
    assert "holds no .safetensors" in text and "save_pretrained" in text
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "entry", [["evil", "Pipeline"], ["diffusers", "../evil"], ["diffusers", 1], ["transformers", "AutoModel"], "evil"]
)
def test_a_model_that_asks_for_other_code_is_refused(entry: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("evil.py").write_text("open('executed', 'w')")
    shutil.copytree("sd", "copy")
    index = json.loads(Path("copy/model_index.json").read_text())
    Path("copy/model_index.json").write_text(json.dumps(index | {"unet": entry}))
    assert refused(capsys, words("out.png", model="copy"))
    Path("copy/model_index.json").write_text(json.dumps(index | {"_class_name": ["evil", "Pipeline"]}))
    assert "expected one of StableDiffusionPipeline" in refused(capsys, words("out.png", model="copy"))
    assert not Path("executed").exists()


def test_a_model_in_the_cache_in_half_precision_and_in_parts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    cached = Path("hub/models--a--b/snapshots/1234")
    pipe = StableDiffusionPipeline.from_pretrained("sd", safety_checker=None)
    pipe.save_pretrained(cached, variant="fp16")
    pipe.unet.save_pretrained(cached / "unet", variant="fp16", max_shard_size="5MB")
    Path("hub/models--a--b/refs").mkdir()
    Path("hub/models--a--b/refs/main").write_text("1234")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(Path("hub").absolute()))
    assert main(words("cached.png", model="a/b")) == 0
    difference = read_image("cached.png").astype(int) - read_image("made.png")
    assert np.abs(difference).max() <= 1  # weights that begin elsewhere in memory change latents by 1e-6
    files = json.loads(read_png_text("cached.png")[KEYWORD])["model"]["sha256"]
    assert sum(name.startswith("unet/") and name.endswith(".safetensors") for name in files) > 1
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in files


def test_a_damaged_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("sd", "copy")
    for file, content, expected in (
        ("unet/diffusion_pytorch_model.safetensors", None, "cut short"),
        (
            "unet/config.json",
            b'{"_class_name": "UNet2DConditionModel", "sample_size": 8, "norm_num_groups": 7}',
            "cannot be loaded",
        ),
        ("scheduler/scheduler_config.json", b'{"beta_schedule": "x"}', "its scheduler cannot be loaded"),
        ("text_encoder/config.json", b"{", "cannot be loaded"),
        ("vae/config.json", b"[]", "expected an object"),
    ):
        whole = Path("copy", file).read_bytes()
        Path("copy", file).write_bytes(whole[:-9] if content is None else content)
        assert expected in refused(capsys, words("out.png", model="copy"))
        Path("copy", file).write_bytes(whole)


def test_a_run_that_overflows_fails_with_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    net = tiny.control()
    with torch.no_grad():
        net.controlnet_mid_block.weight.mul_(1e38)
    save_ldm(ControlNet.load(net.state_dict(), net.config), "huge.safetensors")
    before = sorted(os.listdir())
    assert main(words("out.png", control="canny,model=huge.safetensors")) == 1
    assert line(capsys) == "the residuals of unit 1 are not finite in step 1 of 3"
    assert sorted(os.listdir()) == before


def test_an_image_that_cannot_be_shown_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir())
    with monkeypatch.context() as patched:
        patched.setattr(tiny.AutoencoderKL, "decode", lambda _, z, **__: (z[:, :3].repeat(1, 1, 8, 8) * float("nan"),))
        assert main(words("out.png")) == 1
    assert "the image holds NaN: the model overflows in float32" in line(capsys)
    monkeypatch.setattr(StableDiffusionPipeline, "run_safety_checker", lambda _, image, *__: (image, [True]))
    assert main(words("out.png")) == 1
    assert "safety checker withheld the image" in line(capsys)
    assert sorted(os.listdir()) == before


def test_torch_is_left_as_it_was() -> None:
    tampered(recipe_with(threads=3))
    seen = []
    prepared = load_recipe(read_recipe("bad.png"), "cpu")
    prepared.pipe.unet.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    render_recipe(prepared)
    assert set(seen) == {3}
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_is_interrupted_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionPipeline, "decode_latents", interrupted)
    monkeypatch.setattr(tiny.AutoencoderKL, "decode", interrupted)
    before = sorted(os.listdir())
    assert main(words("out.png")) == 130
    assert line(capsys) == "interrupted"
    assert sorted(os.listdir()) == before


def test_a_folder_gets_the_seed_as_name_and_overwrite_replaces() -> None:
    assert main(words("images/", control=None)) == 0
    assert os.listdir("images") == ["3.png"]
    assert main(words("images", "--overwrite", "--steps", "2", control=None)) == 0
    assert json.loads(read_png_text("images/3.png")[KEYWORD])["steps"] == 2


def test_the_process_writes_to_stdout_and_nothing_else_to_it(warm_python: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [warm_python, "-m", "controlnet_ext.cli", "generate", "--from", "made.png", "-o", "-"]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0
    imported = Path(warm_python).parent / preloaded.STDOUT  # what the imports of others' packages wrote
    assert not imported.is_file() or imported.read_bytes() == b""
    assert np.array_equal(read_image(done.stdout), read_image("made.png"))
    *remarks, last = done.stderr.decode().splitlines()
    assert last.startswith("stdout: seed 3, ")
    assert all("made with controlnet-ext 'not installed'" in remark for remark in remarks)  # only here is it
