"""The figures of the embedded model: their arithmetic on cases typed out, and the command on untrained weights."""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from controlnet_ext import Window, preprocess
from controlnet_ext.embedded.captions import VOCABULARY, make_text_encoder, make_tokenizer
from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, PALETTE, THING_COLORS, Scene, Thing, draw_scene
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.models.kinds.controlnet import ControlNet
from controlnet_ext.models.state_dict.saving import save_diffusers
from controlnet_ext.training import evaluation
from tools.embedded_model.train_base import HELD_OUT_SCENES, make_noise_scheduler, make_unet

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # benchmarks are not installed

from benchmarks.embedded import __main__ as command  # noqa: E402
from benchmarks.embedded import arms, training  # noqa: E402
from benchmarks.embedded import photos as photo_arms  # noqa: E402
from benchmarks.embedded.arms import (  # noqa: E402
    GROUPS,
    Measurement,
    guidance_figures,
    swapped_figures,
    truth_figures,
    weight_figures,
    window_figures,
)
from benchmarks.embedded.chart import chart, decades, ticks  # noqa: E402
from benchmarks.embedded.report import curves, report  # noqa: E402
from benchmarks.embedded.sampling import Arm, Sampler  # noqa: E402
from benchmarks.embedded.scenes import (  # noqa: E402
    CHOOSING,
    EVALUATION_SEEDS,
    edges,
    elsewhere,
    ground_colour,
    next_indices,
    recolour_caption,
)
from benchmarks.embedded.scores import colour_share, colours_by_count, colours_seen, edge_figures, seen_share  # noqa: E402

SEEDS = range(HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.start + 60)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in SEEDS]


def draw_stripes(*colours: str) -> np.ndarray:
    """An image of 32x32 in upright stripes of the same width."""
    row = np.repeat(np.array([PALETTE[colour] for colour in colours], np.uint8), 32 // len(colours), 0)
    return np.tile(row, (32, 1, 1))


def two_things() -> Scene:
    left = np.zeros((32, 32), bool)
    left[:, :16] = True
    things = Thing("circle", "red", left, 2.0), Thing("star", "blue", ~left, 1.0)
    caption = "a blue star and a red circle on a white ground"
    return Scene(draw_stripes("red", "blue"), caption, things, np.ones((32, 32)))


def test_colours_are_counted_by_the_number_of_things_and_mistaken_ones_told():
    images = [draw_stripes("blue", "red"), draw_stripes("red", "green")]  # of things that are red and blue
    figures = colours_by_count([two_things()] * 2, images)
    assert figures == {"colours_of_2": 0.25, "mistaken": 2 / 3}
    assert np.isnan(colours_by_count([two_things()], [draw_stripes("red", "blue")])["mistaken"])


def test_the_map_of_another_scene_is_never_the_own_one():
    for count in (2, 7, 256):
        assert sorted(next_indices(count)) == [*range(count)]
        assert all(j != i for i, j in enumerate(next_indices(count)))
    with pytest.raises(ValueError, match="1 scenes hold no other one"):
        next_indices(1)


def test_a_swapped_caption_names_the_same_things_and_ground_and_none_of_the_scenes_colours(scenes):
    for seed, each in zip(SEEDS, scenes, strict=True):
        caption, colours = recolour_caption(each, seed)
        names = {ground_colour(each.caption), *(thing.color for thing in each.things)}
        assert not names & set(colours) and len(set(colours)) == len(colours) and set(colours) <= set(THING_COLORS)
        for thing, colour in zip(each.things, colours, strict=True):
            assert f"{'an' if colour == 'orange' else 'a'} {colour} {thing.kind}" in caption
        assert caption.split(" on a")[1] == each.caption.split(" on a")[1]
        assert set(caption.replace(",", " ,").split()) <= set(VOCABULARY)
        assert len(caption.split()) == len(each.caption.split())
        assert recolour_caption(each, seed) == (caption, colours)


def test_a_caption_from_elsewhere_names_none_of_the_scenes_colours(scenes):
    for each, j in zip(scenes, elsewhere(scenes), strict=True):
        words = scenes[j].caption.split()
        assert all(thing.color not in words for thing in each.things)
    with pytest.raises(ValueError, match="names other colours than 'a blue star and"):
        elsewhere([two_things(), two_things()])


def test_the_measured_scenes_are_held_out_and_nothing_was_chosen_on_them():
    assert len(EVALUATION_SEEDS) == 256 and len(CHOOSING) == 1000
    for seeds in (EVALUATION_SEEDS, CHOOSING):
        assert HELD_OUT_SEEDS.start + HELD_OUT_SCENES <= seeds.start and seeds.stop <= HELD_OUT_SEEDS.stop
    assert not set(EVALUATION_SEEDS) & set(CHOOSING)
    controlnet = {HELD_OUT_SEEDS[i * len(HELD_OUT_SEEDS) // 128] for i in range(128)}  # as FixedLoss takes them
    assert not controlnet & set(EVALUATION_SEEDS)


def test_the_asked_map_is_that_of_the_canny_preprocessor(scenes):
    assert np.array_equal(edges(scenes[0].pixels), preprocess("canny", scenes[0].pixels).pixels)


def test_the_scenes_themselves_score_1(scenes):
    images = [each.pixels for each in scenes]
    figures = edge_figures([edges(each.pixels) for each in scenes], images)
    assert (figures["f1_exact"], figures["f1"], figures["f1_error"], figures["empty"]) == (1, 1, 0, 0)
    assert figures["density"] == pytest.approx(np.mean([(cv2.Canny(p, 100, 200) > 0).mean() for p in images]))
    assert colour_share(scenes, images) == 1


def test_edge_figures_are_means_without_the_empty_maps():
    stripes, plain = draw_stripes("white", "black"), draw_stripes("white")
    maps = [edges(stripes), edges(stripes), edges(plain)]
    figures = edge_figures(maps, [stripes, plain, stripes])
    assert figures["f1"] == figures["f1_exact"] == 0.5 and figures["empty"] == 1
    assert figures["f1_error"] == pytest.approx(0.5)  # deviation of (1, 0), by n - 1, over the root of 2
    assert figures["density"] == pytest.approx(2 / 3 * (edges(stripes)[..., 0] > 0).mean())
    assert math.isnan(edge_figures([edges(plain)], [stripes])["f1"])


def test_colours_count_by_thing_against_the_scenes_own_or_other_names():
    each = two_things()
    assert colour_share([each, each], [draw_stripes("red", "green"), draw_stripes("blue", "red")]) == 0.25
    assert colour_share([each], [draw_stripes("green", "pink")]) == 0
    assert colour_share([each], [draw_stripes("green", "pink")], [("green", "pink")]) == 1


def test_a_colour_is_seen_from_two_blocks_on():
    image = draw_stripes("white")
    image[:8, :8] = PALETTE["red"]
    assert colours_seen(image) == {"white"}
    image[24:, 24:] = PALETTE["red"]
    assert colours_seen(image) == {"white", "red"}
    assert seen_share([{"white", "red"}] * 2, [["red", "white"], ["blue", "red"]]) == 0.75


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The embedded model's folder with an untrained UNet and text encoder, and an untrained ControlNet that acts."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    words, unet = make_tokenizer(folder / "words"), make_unet()
    vae = AutoencoderKL.from_pretrained(command.MODEL / "vae", local_files_only=True)
    parts = vae, make_text_encoder(words), words, unet, make_noise_scheduler(), None, None
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    net = ControlNet.from_unet(unet)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_diffusers(net, folder / "controlnet_canny")
    return folder


class SpyPipeline:
    """A pipeline's calls: the latents that its UNet saw first in each."""

    def __init__(self, pipe: Any):
        self.first: list[torch.Tensor] = []
        self._begins = False
        pipe.unet.register_forward_pre_hook(self._sees, with_kwargs=True)
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._begins = True
        return self._pipe(*args, **kwargs)

    def _sees(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._begins:
            self.first.append(args[0].clone())
        self._begins = False


@pytest.fixture(scope="module")
def pair(model) -> tuple[Any, Any]:
    pipe = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    return pipe, command.load(str(model / "controlnet_canny"))


@pytest.fixture
def spy(pair) -> Any:
    pair[0].unet._forward_pre_hooks.clear()
    pair[0].unet._forward_pre_hooks_with_kwargs.clear()
    return SpyPipeline(pair[0])


@pytest.fixture
def measurement(pair, spy, tmp_path) -> Measurement:
    return Measurement.of(CHOOSING[:3], Sampler(spy, pair[1], 2, {"base": "untrained"}, tmp_path), 4.0)


def test_every_arm_starts_from_the_same_noise(measurement, spy):
    figures = {name: dict(GROUPS[name](measurement)) for name in ("guided", "unguided")}
    other = Measurement.of(CHOOSING[:1], measurement.sampler, 2.0)
    other.measure("alone", other.guided_arm)
    first, second, alone = spy.first
    assert first.shape == (6, 4, 16, 16)  # the empty caption's rows, then the captions'
    assert torch.equal(first, second) and torch.equal(first[:1], alone[:1])
    assert not torch.equal(first[0], first[1])
    assert figures["guided"]["guided"]["f1"] != figures["unguided"]["unguided"]["f1"]
    assert set(figures["guided"]) == {"guided", "guided, another scene's map"}


def test_what_was_drawn_is_not_drawn_again_and_all_else_is(measurement, monkeypatch):
    samples = []
    monkeypatch.setattr(measurement.sampler, "_sample_batch", lambda part: samples.append(part) or measurement.truth)
    arm = measurement.guided_arm
    for same in (arm, arm, replace(arm, weight=1, window=Window(0, 1))):
        assert np.array_equal(measurement.sampler.sample("guided", same)[0], measurement.truth)
    assert len(samples) == 1
    others = [
        measurement.unguided_arm,
        replace(arm, guidance=3.0),
        replace(arm, weight=0.5),
        replace(arm, window=Window(0, 0.5)),
        replace(arm, noise=[0, 1, 2]),
        replace(arm, captions=["a red star on a grey ground"] * 3),
        replace(arm, maps=[arm.maps[1]] * 3),
    ]
    for other in others:
        measurement.sampler.sample("other", other)
    assert len(samples) == 1 + len(others)


def test_a_weight_of_0_is_the_unguided_image(measurement):
    arm = measurement.guided_arm
    nothing = measurement.sampler.sample("weight 0", replace(arm, weight=0.0))[0]
    assert np.array_equal(nothing, measurement.sampler.sample("unguided", measurement.unguided_arm)[0])


def test_the_truth_is_its_own_ceiling_and_the_vae_stays_below_it(measurement):
    figures = dict(truth_figures(measurement))
    assert figures["scenes"]["f1"] == figures["scenes"]["colours"] == figures["scenes"]["seen"] == 1
    assert 0.8 < figures["VAE"]["f1"] < 1 and figures["VAE"]["colours"] == 1
    assert figures["another scene"]["f1"] < 0.5


class Remembering:
    """A sampler that gives the scenes themselves and keeps the arms it was asked for."""

    def __init__(self) -> None:
        self.arms: list[Arm] = []

    def sample(self, name: str, arm: Arm) -> tuple[np.ndarray, float]:
        self.arms.append(arm)
        return np.stack([draw_scene(number).pixels for number in arm.noise]), 0.25


def test_swapped_captions_are_drawn_with_the_scenes_own_maps_and_noise():
    sampler = Remembering()
    some = Measurement.of(CHOOSING[:12], sampler, 4.0)
    figures = dict(swapped_figures(some))
    row = figures["guided, colours swapped"]
    assert (row["colours"], row["colours_asked"], row["seconds"]) == (1, 0, 0.25)
    assert len(sampler.arms) == len(figures) == 2
    for arm in sampler.arms:
        assert all(np.array_equal(a, b) for a, b in zip(arm.maps, some.maps, strict=True))
        assert list(arm.noise) == list(some.seeds)
        assert all(a != b.caption for a, b in zip(arm.captions, some.scenes, strict=True))


def test_curves_share_captions_noise_and_maps_and_vary_one_thing(monkeypatch):
    monkeypatch.setattr(arms, "SUBSET", 2)
    sampler = Remembering()
    some = Measurement.of(CHOOSING[100:103], sampler, 4.0)
    assert [*dict(window_figures(some))] == ["window 0..0", *(f"window 0..{x:g}" for x in (0.2, 0.4, 0.6, 0.8, 1))]
    assert [*dict(weight_figures(some))] == [f"weight {w:g}" for w in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)]
    of_windows, of_weights = sampler.arms[:6], sampler.arms[6:]
    assert of_windows[0].maps is None and [arm.window.end for arm in of_windows[1:]] == [0.2, 0.4, 0.6, 0.8, 1]
    assert [arm.weight for arm in of_weights] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    for arm in sampler.arms:
        assert list(arm.captions) == [each.caption for each in some.scenes[:2]]
        assert list(arm.noise) == list(some.seeds[:2])
    sampler.arms.clear()
    figures = dict(guidance_figures(Measurement.of(EVALUATION_SEEDS[:3], sampler, 4.0)))
    assert [*figures][:2] == ["guidance 1", "guidance 2"]
    assert [arm.guidance for arm in sampler.arms] == [1, 2, 3, 4, 5, 7.5]
    assert all(list(arm.noise) == list(CHOOSING[:2]) for arm in sampler.arms)


def test_photos_are_scored_from_four_noises_and_only_the_folders_count_in_the_mean(tmp_path, monkeypatch):
    for name, colours in {"a.png": ("red", "blue"), "b.jpg": ("white", "black"), "house_line.png": ("red",)}.items():
        write_image(tmp_path / name, draw_stripes(*colours))
    monkeypatch.setattr(photo_arms, "through_vae", lambda vae, images: images)

    class MapSampler(Remembering):
        vae = None

        def sample(self, name: str, arm: Arm) -> tuple[np.ndarray, float]:
            self.arms.append(arm)
            return np.stack([arm.maps[i] if arm.maps else np.zeros((128, 128, 3), np.uint8) for i in range(12)]), 0.0

    sampler = MapSampler()
    figures = dict(photo_arms.photos(tmp_path, sampler))
    assert [*figures] == ["photo coffee.jpg", "photo a.png", "photo b.jpg", "photos"]
    assert all(list(arm.noise) == [0, 1, 2, 3] * 3 and set(arm.captions) == {""} for arm in sampler.arms)
    assert all(each["VAE"] == 1 and each["unguided"] == 0 for each in figures.values())
    assert figures["photos"]["count"] == 2
    assert figures["photos"]["guided"] == (figures["photo a.png"]["guided"] + figures["photo b.jpg"]["guided"]) / 2


def run(model: Path, work: Path, *words: str) -> dict[str, Any]:
    command.main(["--base", str(model), "--scenes", "2", "--steps", "2", "--work", str(work), *words])
    return json.loads((work / "embedded_figures.json").read_text())["arms"]


def test_the_command_draws_once_and_keeps_figures_of_the_same_settings(model, tmp_path, monkeypatch, capsys):
    first = run(model, tmp_path, "--only", "guided,unguided,sheet")
    out = capsys.readouterr().out
    assert "| F1 within 1 px, guided |" in out and "| ≥ 0.80 | **no** |" in out
    assert cv2.imread(str(tmp_path / "embedded_sheet.png")).shape[1] > 2 * 5 * 128
    monkeypatch.setattr(Sampler, "_sample_batch", None)  # nothing may be drawn again
    second = run(model, tmp_path, "--only", "guided,truth")
    assert second.keys() == {*first, "scenes", "VAE", "another scene"} and second.items() >= first.items()
    assert [*run(model, tmp_path, "--only", "truth", "--guidance", "3")] == ["scenes", "VAE", "another scene"]


def test_a_base_alone_has_no_guided_arms(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "EVALUATION_DRAWS", 4)
    figures = run(model, tmp_path, "--control", "none", "--only", "losses")
    assert figures.keys() == {"loss"} and 0.1 < figures["loss"]["held_out"] < 2
    with pytest.raises(SystemExit, match="2"):
        run(model, tmp_path, "--control", "none", "--only", "guided")
    assert "--only guided: expected some of truth,unguided,losses" in capsys.readouterr().err


def test_the_report_says_which_goals_are_reached_and_draws_curves_that_are_whole():
    figures = {"guided": {"f1": 0.81, "f1_error": 0.01, "f1_exact": 0.7, "density": 0.05, "empty": 2, "colours": 0.89}}
    figures["guided"]["seconds"] = 0.5
    figures["guided, another scene's map"] = {"f1": 0.3, "f1_error": 0.02}
    figures |= {
        f"weight {w:g}": {"f1": w / 2, "f1_exact": w / 3, "colours": 1.0} for w in (0, 0.25, 0.5, 0.75, 1, 1.25)
    }
    lines = report(figures).splitlines()
    assert "| F1 within 1 px, guided | 0.810 ± 0.010 | ≥ 0.80 | yes |" in lines
    assert "| F1, guided, against another scene's map | 0.300 ± 0.020 | ≤ 0.30 | yes |" in lines
    assert "| colour words right, guided | 0.890 | ≥ 0.90 | **no** |" in lines
    assert "| empty maps, left out of F1 | 2 |  |  |" in lines and "| 0.25 | 0.125 | 0.083 | 1.000 |" in lines
    assert curves(figures) == {}
    figures["weight 1.5"] = figures["weight 1"]
    assert curves(figures).keys() == {"weights"}


def test_a_chart_is_xml_whose_points_lie_where_the_values_do():
    svg = chart("a < b", "x", "y", {"rising": [(0, 0), (1, 0.5), (2, 1.0)]})
    points = [
        (float(c.get("cx")), float(c.get("cy"))) for c in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert points == [(60, 316), (338, 184), (616, 52)]


def test_ticks_are_round_and_hold_all_values():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(100, 8000) == [0, 2000, 4000, 6000, 8000]
    assert decades(0.13, 0.7) == [0.1, 0.2, 0.5, 1.0]


def test_the_sentence_for_a_base_follows_its_held_out_loss():
    def rows(*losses: float) -> list[dict[str, float]]:
        return [{"step": 100 * (i + 1), "loss": 1.0, "held_out": loss} for i, loss in enumerate(losses)]

    assert training.fitting(rows(4, 3, 2, 1)).startswith("underfits: the held-out loss fell from 2 in the last quarter")
    assert training.fitting(rows(4, 2, 1, 0.99)).startswith("fits")
    assert training.fitting(rows(4, 1, 2, 2)).startswith("overfits: the held-out loss was lowest, 1, after 200 steps")


def test_a_log_becomes_curves_and_a_sentence(tmp_path, capsys):
    rows = [{"step": step, "loss": 1 / step, "held_out": 1 / step} for step in (100, 200, 200, 300, 400)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training.main([str(tmp_path / "log.jsonl"), str(tmp_path / "curves.svg")])
    assert capsys.readouterr().out.startswith("underfits")
    words = [t.text for t in ET.parse(tmp_path / "curves.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "steps' own loss" in words and "held out" in words and "0.002" in words
