"""The figures of the model of three worlds: their arithmetic on cases typed out, and the command on untrained nets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, PALETTE, draw_scene
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.saving import save_diffusers
from tools.embedded_model import judges, render_worlds
from tools.embedded_model.train_world_base import noise_scheduler
from tools.embedded_model.world_sets import find_person
from tools.embedded_model.world_words import WIDTH, narrow_text_encoder, write_tokenizer

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks are not installed

from benchmarks.embedded.worlds import __main__ as command
from benchmarks.embedded.worlds import arms, report, scenes, scores

SIDE = 32
PERSON_SEEDS = [4, 8]
LANDSCAPE = "landscape of hills with leafy trees in autumn at sunset under a clear sky"
CAR = "glossy render of a small blue car on the left side on sand under an orange sky"


def write_rows(worlds: Path, domain: str, caption: str, **maps: np.ndarray) -> None:
    """Write a held-out set of two scenes of noise, without rendering it."""
    path = render_worlds.list_file(worlds, domain, "held_out")
    (path.parent / "held_out").mkdir(parents=True)
    rows = []
    for i in range(2):
        image = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        row = {"file_name": f"held_out/{i}.jpg", "text": caption}
        cv2.imwrite(str(path.parent / row["file_name"]), image)
        for column, pixels in maps.items():
            row[column] = f"held_out/{i}_{column}.png"
            cv2.imwrite(str(path.parent / row[column]), pixels[..., ::-1])
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Path:
    """Held-out sets of two scenes of each domain, 32 pixels; landscapes and things are noise."""
    folder = tmp_path_factory.mktemp("worlds")
    for domain in ("shapes", "people"):
        render_worlds.render_set(folder, domain, "held_out", HELD_OUT_SEEDS[:2], SIDE)
    depth = np.repeat(np.linspace(0, 255, SIDE).astype(np.uint8)[:, None, None], SIDE, 1).repeat(3, 2)
    classes = render_worlds.draw_class_map(np.repeat(np.arange(SIDE)[:, None] // 5, SIDE, 1))
    write_rows(folder, "landscapes", LANDSCAPE, depth=depth, segmentation=classes)
    write_rows(folder, "things", CAR, depth=depth)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Untrained judges, where the trainings leave them."""
    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    for name, judge in judges.JUDGES.items():
        (folder / name).mkdir()
        save_file(judge.create().state_dict(), folder / name / "judge.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained model of 32 pixels with the words of the worlds, and a ControlNet that acts for each control."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "words")
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    parts = vae, narrow_text_encoder(tokenizer), tokenizer, unet, noise_scheduler(), None, None
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    net = ControlNet.from_unet(unet)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    for name in ("canny", "depth", "segmentation+pose"):
        save_diffusers(net, folder / f"controlnet_{name}")
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def run(worlds, trained, model, output):
    """The command on two scenes of each domain; it returns the arms."""
    paths = [str(model), str(worlds), str(trained), "-o", str(output), "--photos", str(output / "none")]

    def call(*words: str) -> dict:
        command.main([*paths, "--scenes", "2", "--steps", "1", *words])
        return json.loads((output / "worlds_figures.json").read_text())["arms"]

    return call


@pytest.fixture(scope="module")
def figures(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "SIDE", SIDE)  # pixels
        patch.setattr(scores, "SIDE", SIDE)
        patch.setattr(arms, "list_single_things", lambda *_: ([1, 2], [CAR, CAR]))
        return run("--controls", "canny,segmentation,pose")


SHAPES = {"f1", "depth", "colors", "seen"}
THINGS = {"f1", "depth", "thing"}
LANDSCAPES = {"f1", "depth", "miou", "season", "time"}
PEOPLE = {"f1", "colors", "seen", "person", "limbs"}


def test_each_arm_has_all_figures_of_its_domain(figures, output):
    sets = {"shapes": SHAPES, "things": THINGS, "landscapes": LANDSCAPES, "people": PEOPLE}
    assert {name: set(each) - {"control", "seconds"} for name, each in figures.items()} == {
        **{f"{name}, {arm}": names for name, names in sets.items() for arm in ("scenes", "VAE", "unguided")},
        "shapes, canny": SHAPES | {"other_f1"},
        "things, canny": THINGS | {"other_f1"},
        "landscapes, canny": LANDSCAPES | {"other_f1"},
        "landscapes, segmentation": LANDSCAPES | {"other_miou"},
        "people, pose": PEOPLE | {"other_person"},
        "things, single": {"thing", "wrong"},
        "photo coffee.jpg": {"guided", "unguided", "VAE", "density"},
    }
    assert figures["shapes, scenes"]["f1"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "count": 2}
    assert figures["landscapes, scenes"]["season"]["count"] == 2
    assert figures["shapes, canny"]["depth"] != figures["shapes, unguided"]["depth"]
    assert "shapes: canny F1, guided |" in (output / "worlds.md").read_text()
    assert cv2.imread(str(output / "worlds_canny.jpg")).shape == (SIDE + 4, 8 * (2 * SIDE + 4), 3)


def test_things_that_were_taken_for_others_are_named(figures):
    wrong = figures["things, single"]["wrong"]
    assert len(wrong) == 2 - 2 * figures["things, single"]["thing"]["mean"]
    assert all(words.startswith("car > ") for words in wrong)


def test_images_are_drawn_once_and_figures_of_other_arms_stay(run, figures, monkeypatch):
    monkeypatch.setattr(judges, "SIDE", SIDE)
    monkeypatch.setattr(scores, "SIDE", SIDE)
    monkeypatch.setattr(command.Sampler, "_sample_batch", None)  # nothing may be drawn again
    assert run("--domains", "landscapes", "--controls", "none", "--no-sheets") == figures


def test_a_control_that_has_changed_loses_its_arms_alone(tmp_path):
    path, settings = tmp_path / "figures.json", {"steps": 20}
    arms = {"shapes, unguided": {}, "shapes, canny": {"control": "a"}, "shapes, depth": {"control": "b"}}
    path.write_text(json.dumps({"made_with": settings, "arms": arms}))
    assert command.read_arms(path, settings, {"canny": "new", "depth": "b"}).keys() == arms.keys() - {"shapes, canny"}
    assert command.read_arms(path, settings, {}) == arms
    assert command.read_arms(path, {"steps": 10}, {}) == {}


def test_too_few_scenes_are_refused_before_anything_is_drawn(run):
    with pytest.raises(ValueError, match=r"2 scenes of shapes, held_out, in .*, of 3: run tools.embedded_model.render"):
        run("--scenes", "3")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--domains", "photos"], "--domains photos: expected some of shapes,things,landscapes,people"),
        (["--control", "hed=file"], "--control hed=file: expected NAME=FILE, NAME one of canny,depth"),
        (["--controls", "union"], "has none; name a file with --control union=FILE"),
        (["--scenes", "1"], "--scenes 1: at least 2 are needed"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    assert message in capsys.readouterr().err


def test_a_person_in_its_own_scene_covers_itself_and_in_another_place_does_not():
    scene = draw_scene(PERSON_SEEDS[0], 96)
    person = find_person(scene)
    flat = np.where(person.mask[..., None], PALETTE["red"], PALETTE["blue"]).astype(np.uint8)
    covering, limbs = scores.compare_person(person, flat)
    assert covering == 1
    assert limbs and set(limbs) == {1.0}
    covering, limbs = scores.compare_person(person, np.roll(flat, 30, 1))
    assert covering < 0.5
    assert np.mean(limbs) < 0.5


def test_the_means_of_figures_have_intervals():
    figures = arms.summarize({"f1": [0.0, 1.0, float("nan")] * 20, "limbs": [], "season": [float("nan")]})
    assert figures.keys() == {"f1"}
    assert figures["f1"]["mean"] == 0.5
    assert figures["f1"]["count"] == 40
    assert 0.3 < figures["f1"]["low"] < 0.5 < figures["f1"]["high"] < 0.7


def test_a_set_is_compared_with_the_next_scenes_when_it_is_rotated():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    given = scenes.SceneSet("things", [5, 6, 7], ["a", "b", "c"], images, {"canny": [*images]})
    rotated = given.rotate()
    assert (rotated.seeds, rotated.captions) == ([6, 7, 5], ["b", "c", "a"])
    assert rotated.images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert [each[0, 0, 0] for each in rotated.maps["canny"]] == [1, 2, 0]


def test_masks_and_points_of_a_scene_are_resized_together():
    scene = scenes.resize_scene(draw_scene(PERSON_SEEDS[0], 96), 48)
    person, smaller = find_person(scene), find_person(draw_scene(PERSON_SEEDS[0], 48))
    assert person.mask.shape == (48, 48)
    assert (person.mask == smaller.mask).mean() > 0.98
    assert np.allclose(person.points, smaller.points)


def test_single_things_are_captions_that_name_one(monkeypatch):
    captions = {10_010_000: "glossy render of a rose and an eagle on sand", 10_010_001: CAR, 10_010_002: CAR}
    render = lambda seed, side: SimpleNamespace(caption=captions[seed])  # noqa: E731
    monkeypatch.setattr(scenes, "renderer", lambda *_: render)
    assert scenes.list_single_things(Path(), "held_out", 2) == ([10_010_001, 10_010_002], [CAR, CAR])


def test_the_report_tells_reached_goals_and_halves_of_depth():
    def figure(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "count": 256}

    text = report.draw_report(
        {
            "shapes, canny": {"f1": figure(0.86), "other_f1": figure(0.31), "seconds": 1.5},
            "things, depth": {"depth": figure(0.03)},
            "things, unguided": {"depth": figure(0.08)},
        }
    )
    lines = text.splitlines()
    assert "| shapes: canny F1, guided | 0.860 (0.850 to 0.870) | 256 | ≥ 0.85 | yes |" in lines
    assert any(line.endswith("| 256 | ≤ 0.30 | **no** |") for line in lines)
    assert "| things: depth error, guided / unguided | 0.375 | 256 | ≤ 0.50 | yes |" in lines
    assert "| shapes, canny | 1.50 |" in lines
