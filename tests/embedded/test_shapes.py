import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_ext.embedded.captions import VOCABULARY, make_tokenizer
from controlnet_ext.embedded.scenes import (
    HELD_OUT_SEEDS,
    MIN_VISIBLE_PIXELS,
    PALETTE,
    THING_COLORS,
    THING_KINDS,
    TRAINING_SEEDS,
    draw_scene,
    find_majority_color,
)

SEEDS = (*range(40), *HELD_OUT_SEEDS[:40])


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed) for seed in SEEDS]


def test_a_seed_is_the_same_scene_for_ever():
    # Pixels may differ by rounding between versions of numpy; captions and masks do not.
    drawn = draw_scene(7)
    assert drawn.caption == "a blue curve and a white moon on a wavy black ground"
    masks = hashlib.sha256(b"".join(np.packbits(thing.mask).tobytes() for thing in drawn.things)).hexdigest()
    assert masks[:16] == "e09e6f059a456c45"
    assert np.array_equal(draw_scene(7).pixels, drawn.pixels)


def test_training_and_held_out_seeds_are_disjoint():
    assert (
        not set(TRAINING_SEEDS[:: len(TRAINING_SEEDS) // 1000]) & set(HELD_OUT_SEEDS)
        and TRAINING_SEEDS.stop <= HELD_OUT_SEEDS.start
    )


def test_the_true_image_shows_each_named_colour_inside_its_mask(scenes):
    shown = [(find_majority_color(s.pixels, thing.mask), thing.color) for s in scenes for thing in s.things]
    assert all(seen == named for seen, named in shown) and len(shown) > 150
    assert {named for _, named in shown} == set(THING_COLORS)


def test_the_caption_names_each_thing_with_its_colour(scenes):
    for s in scenes:
        for thing in s.things:
            assert f"{thing.color} {thing.kind}" in s.caption
        assert s.caption.endswith(" ground") and "a orange" not in s.caption
        assert len({thing.kind for thing in s.things}) == len(s.things)


def test_masks_are_apart_and_large_enough_to_be_seen(scenes):
    for s in scenes:
        masks = np.stack([thing.mask for thing in s.things])
        assert masks.dtype == bool and masks.sum(0).max() <= 1
        assert masks.sum((1, 2)).min() >= MIN_VISIBLE_PIXELS


def test_depth_is_the_nearest_thing_or_the_ground(scenes):
    for s in scenes:
        assert s.depth.shape == (128, 128) and s.depth.dtype == np.float32 and s.depth.min() > 0
        for thing in s.things:
            assert (s.depth[thing.mask] == np.float32(thing.depth)).all()
        metres = [thing.depth for thing in s.things]
        assert metres == sorted(metres, reverse=True)


def test_only_people_have_key_points_and_they_lie_on_the_person():
    drawn = [draw_scene(seed) for seed in range(150)]
    people = [(s, thing) for s in drawn for thing in s.things if thing.kind == "person"]
    assert len(people) > 15
    assert all((thing.points is not None) == (thing.kind == "person") for s in drawn for thing in s.things)
    for s, thing in people:
        if len(s.things) == 1:
            inside = [p for p in np.rint(thing.points).astype(int) if (p >= 0).all() and (p < 128).all()]
            assert all(cv2.dilate(thing.mask.astype(np.uint8), np.ones((5, 5)))[y, x] for x, y in inside)


def test_scenes_have_edges_for_canny_but_are_not_full_of_them(scenes):
    density = [(cv2.Canny(s.pixels, 100, 200) > 0).mean() for s in scenes]
    assert 0.03 < np.mean(density) < 0.08 and max(density) < 0.2


def test_a_larger_scene_is_the_same_scene():
    small, large = draw_scene(3), draw_scene(3, 256)
    assert small.caption == large.caption
    shrunk = cv2.resize(large.pixels, (128, 128), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(shrunk - small.pixels).mean() < 6


def test_all_kinds_and_colours_occur():
    things = [thing for seed in range(300) for thing in draw_scene(seed).things]
    assert {thing.kind for thing in things} == set(THING_KINDS)


def test_every_word_of_a_caption_is_one_token(scenes, tmp_path):
    words = make_tokenizer(tmp_path)
    for s in scenes:
        assert [token.removesuffix("</w>") for token in words.tokenize(s.caption)] == s.caption.replace(
            ",", " ,"
        ).split()
    assert set(VOCABULARY) >= set(PALETTE)
    assert len(words("a white cat")["input_ids"]) > 5  # an unknown word falls into letters


def test_an_empty_mask_has_no_colour():
    with pytest.raises(ValueError, match="empty mask"):
        find_majority_color(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool))


def test_the_trained_vae_keeps_edges_and_is_small_enough():
    import torch
    from diffusers import AutoencoderKL

    from controlnet_ext import embedded
    from tools.embedded_model.train_vae import evaluate_held_out, make_vae

    vae = AutoencoderKL.from_pretrained(Path(embedded.__file__).parent / "model" / "vae", local_files_only=True).eval()
    assert sum(p.numel() for p in vae.parameters()) == sum(p.numel() for p in make_vae().parameters()) <= 1_200_000
    assert vae.dtype == torch.float32
    figures = evaluate_held_out(vae, 16)
    assert figures["held_out_f1"] > 0.92 and figures["held_out_error"] < 9
