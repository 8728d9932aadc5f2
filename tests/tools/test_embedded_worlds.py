"""The worlds that the embedded model learns on: the same seed gives the same scene, and captions say what is there."""

import json
from dataclasses import replace
from functools import cache
from shutil import copytree

import cv2
import numpy as np
import pytest
from diffusers import AutoencoderTiny

from controlnet_ext.embedded.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS, draw_scene
from tools.embedded_model import (
    control_lists,
    encode_worlds,
    landscape_plan,
    landscape_terrain,
    landscapes,
    render_worlds,
    things,
)
from tools.embedded_model.world_sets import DOMAINS, find_person, open_pixels, write_part
from tools.embedded_model.world_sets import renderer as make_renderer

SIZE = 64
SHAPE_SEEDS = TRAINING_SEEDS[:5]
PERSON_ROWS = [1, 4]


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    """A renderer whose emoji are discs of one color: the real ones are downloaded."""
    folder = tmp_path_factory.mktemp("emoji")
    codes = sorted({code for group in things.read_catalog().values() for code in group.values()})
    for i, code in enumerate(codes):
        image = np.zeros((64, 64, 4), np.uint8)
        cv2.circle(image, (32, 32), 28, (40, 60, 120 + i % 100, 255), -1)
        cv2.imwrite(str(folder / f"{code}.webp"), image)
    return things.ThingRenderer(folder)


@cache
def landscape(seed):
    return landscapes.render(seed, SIZE)


def words(caption):
    return set(caption.replace(",", " , ").split())


def test_a_landscape_is_the_same_for_the_same_seed():
    again = landscapes.render(3, SIZE)
    assert np.array_equal(landscape(3).pixels, again.pixels)
    assert np.array_equal(landscape(3).depth, again.depth)
    assert landscape(3).caption == again.caption


def test_landscapes_of_two_seeds_differ():
    assert not np.array_equal(landscape(3).pixels, landscape(4).pixels)


@pytest.mark.parametrize("seed", range(3, 7))
def test_depth_of_a_landscape_is_positive_and_its_sky_is_farthest(seed):
    made = landscape(seed)
    assert made.depth.dtype == np.float32
    assert (made.depth > 0).all()
    sky = made.classes == landscape_plan.SKY
    assert (made.depth[sky] == landscape_plan.SKY_DEPTH).all()
    assert (made.depth[~sky] <= landscape_terrain.FARTHEST).all()


@pytest.mark.parametrize("seed", range(3, 7))
def test_normals_of_a_landscape_have_length_one_below_the_sky(seed):
    made = landscape(seed)
    lengths = np.linalg.norm(made.normals, axis=2)
    sky = made.classes == landscape_plan.SKY
    assert np.allclose(lengths[~sky], 1, atol=1e-3)
    assert (lengths[sky] == 0).all()


@pytest.mark.parametrize("seed", range(3, 7))
def test_captions_of_landscapes_hold_only_words_of_the_vocabulary(seed):
    assert words(landscape(seed).caption) <= landscape_plan.vocabulary()


def test_water_of_a_landscape_is_flat_and_named():
    made = next(landscape(seed) for seed in range(3, 40) if "lake" in landscape(seed).caption)
    water = made.classes == landscape_plan.WATER
    assert water.any()
    assert (made.normals[water] == (0, 1, 0)).all()


def test_a_scene_of_things_is_the_same_for_the_same_seed(renderer):
    first, again = renderer.render(5, SIZE), renderer.render(5, SIZE)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.caption == again.caption


@pytest.mark.parametrize("seed", range(12))
def test_captions_of_things_name_every_thing_with_words_of_the_vocabulary(renderer, seed):
    made = renderer.render(seed, SIZE)
    assert words(made.caption) <= things.vocabulary()
    assert all(thing.kind in made.caption for thing in made.things)
    assert all(thing.color is None or f"{thing.color} {thing.kind}" in made.caption for thing in made.things)


@pytest.mark.parametrize("seed", range(12))
def test_things_are_visible_apart_and_nearer_than_what_is_behind_them(renderer, seed):
    made = renderer.render(seed, SIZE)
    masks = np.stack([thing.mask for thing in made.things])
    assert masks.any((1, 2)).all()
    assert masks.sum(0).max() == 1
    assert (made.depth > 0).all()
    assert all((made.depth[thing.mask] <= thing.depth + 1e-4).all() for thing in made.things)


def test_there_are_as_many_kinds_of_things_as_the_catalog_says(renderer):
    codes = [code for group in things.read_catalog().values() for code in group.values()]
    assert 150 <= len(renderer.kinds) == len(codes) == len(set(codes))


def test_a_tinted_thing_has_the_hue_of_its_color_word():
    image = np.full((8, 8, 4), (40, 160, 60, 255), np.uint8)
    for color, (hue, _, _) in things.TINTS.items():
        found, share = things.main_hue(things.tint(image, color))
        assert share == 1.0
        assert abs((found - hue + 180) % 360 - 180) <= 20  # main_hue counts in steps of 10


def test_a_part_of_a_set_comes_back(renderer, tmp_path):
    (tmp_path / "things").mkdir()
    write_part(renderer.render, range(2), SIZE, tmp_path / "things" / "training-000000")
    (pixels,) = open_pixels(tmp_path, "things", "training")
    assert np.array_equal(pixels[1], renderer.render(1, SIZE).pixels)


def test_a_rendered_set_lists_images_with_their_maps_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(render_worlds, "PART", 2)
    seeds = TRAINING_SEEDS[3:7]
    render_worlds.render_set(tmp_path, "landscapes", "training", seeds[:2], SIZE)
    first = (tmp_path / "images" / "landscapes" / "training" / "000000.jpg").stat().st_mtime_ns
    render_worlds.render_set(tmp_path, "landscapes", "training", seeds, SIZE)
    rows = render_worlds.read_rows(tmp_path, "landscapes", "training")
    assert [row["text"] for row in rows] == [landscape(seed).caption for seed in seeds]
    folder = tmp_path / "images" / "landscapes"
    assert (folder / rows[0]["file_name"]).stat().st_mtime_ns == first
    depth = cv2.imread(str(folder / rows[3]["depth"]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(depth, render_worlds.draw_depth_map(landscape(6).depth))
    classes = cv2.imread(str(folder / rows[3]["segmentation"]), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(classes, render_worlds.draw_class_map(landscape(6).classes))


def test_a_map_of_depth_is_white_where_near_and_black_in_the_sky():
    depth = np.array([[1, 2, 4, landscape_plan.SKY_DEPTH]], np.float32)
    assert render_worlds.draw_depth_map(depth).tolist() == [[255, 255, 236, 0]]  # 1 + 254 log(5000) / log(10000)


def test_latents_of_a_rendered_set_are_those_of_its_images_and_keep_its_captions(tmp_path, monkeypatch):
    for module in (render_worlds, encode_worlds):
        monkeypatch.setattr(module, "PART", 2)
    render_worlds.render_set(tmp_path, "shapes", "training", TRAINING_SEEDS[:3], SIZE)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    encode_worlds.encode_set(tmp_path, vae, "shapes", "training", 32)
    latents, captions = encode_worlds.read_latents(tmp_path, "shapes", "training", 32)
    rows = render_worlds.read_rows(tmp_path, "shapes", "training")
    assert captions == [row["text"] for row in rows[:2]]  # whole parts only
    image = cv2.imread(str(tmp_path / "images" / "shapes" / rows[1]["file_name"]), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(latents[1], encode_worlds.encode_images(vae, [image], 32)[0])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder with a rendered set of five scenes of shapes, of which two have a person."""
    folder = tmp_path_factory.mktemp("shapes")
    render_worlds.render_set(folder, "shapes", "training", SHAPE_SEEDS, SIZE)
    return folder


def test_shapes_with_a_person_have_a_map_of_its_pose(shapes):
    rows = render_worlds.read_rows(shapes, "shapes", "training")
    assert [i for i, row in enumerate(rows) if "pose" in row] == PERSON_ROWS
    drawn = cv2.imread(str(shapes / "images" / "shapes" / rows[4]["pose"]), cv2.IMREAD_COLOR_RGB)
    person = find_person(draw_scene(SHAPE_SEEDS[4], SIZE))
    assert np.array_equal(drawn, render_worlds.draw_pose_map(person, scale=2))


def test_a_map_of_pose_shows_the_points_that_are_visible():
    person = find_person(draw_scene(SHAPE_SEEDS[1], 192))
    whole = render_worlds.draw_pose_map(person, 1)
    nose = person.points[0].astype(int)
    assert tuple(whole[nose[1], nose[0]]) == (255, 0, 0)  # OpenPose's color of the nose
    hidden = replace(person, mask=person.mask & (np.arange(192)[:, None] > nose[1] + 30))
    below = render_worlds.draw_pose_map(hidden, 1)
    assert not below[nose[1], nose[0]].any()
    assert below.any()
    thin = render_worlds.draw_pose_map(person, 3)
    assert 0 < (thin > 0).sum() < 0.6 * (whole > 0).sum()


def test_maps_of_pose_are_added_to_a_set_that_lacks_them_and_only_once(shapes, tmp_path):
    copytree(shapes, tmp_path, dirs_exist_ok=True)
    path = render_worlds.list_file(tmp_path, "shapes", "training")
    complete = path.read_text()
    rows = render_worlds.read_rows(tmp_path, "shapes", "training")
    drawn = [row.pop("pose") for row in rows if "pose" in row]
    contents = [(path.parent / name).read_bytes() for name in drawn]
    for name in drawn:
        (path.parent / name).unlink()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert render_worlds.add_maps(tmp_path, "shapes", "training", SHAPE_SEEDS) == len(drawn) > 0
    assert path.read_text() == complete
    assert [(path.parent / name).read_bytes() for name in drawn] == contents
    assert render_worlds.add_maps(tmp_path, "shapes", "training", SHAPE_SEEDS) == 0


def test_maps_are_not_added_to_a_set_of_other_seeds(shapes, tmp_path):
    copytree(shapes, tmp_path, dirs_exist_ok=True)
    path = render_worlds.list_file(tmp_path, "shapes", "training")
    path.write_text(path.read_text().replace('"pose"', '"other"'))
    with pytest.raises(ValueError, match=r"is 'flat drawing of .*, but its seed gives 'flat drawing of"):
        render_worlds.add_maps(tmp_path, "shapes", "training", range(20, 30))


@pytest.mark.parametrize("seed", [TRAINING_SEEDS[3], HELD_OUT_SEEDS[3]])
def test_people_are_scenes_with_a_person_of_the_same_seeds(seed, tmp_path):
    made = make_renderer("people", tmp_path)(seed, SIZE)
    assert find_person(made) is not None
    assert made.caption == make_renderer("people", tmp_path)(seed, SIZE).caption


def test_a_control_is_listed_with_the_scenes_that_have_its_map(shapes, tmp_path):
    copytree(shapes, tmp_path, dirs_exist_ok=True)
    path = render_worlds.list_file(tmp_path, "landscapes", "training")
    path.parent.mkdir()
    row = {"file_name": "training/000000.jpg", "text": "landscape", "depth": "depth.png", "segmentation": "classes.png"}
    path.write_text(f"{json.dumps(row)}\n" * 2)
    lists = {name: control_lists.list_control(tmp_path, name, DOMAINS) for name in control_lists.MAPS}
    assert {name: len(rows) for name, rows in lists.items()} == {
        "canny": 7,
        "depth": 7,
        "segmentation": 2,
        "pose": len(PERSON_ROWS),
    }
    assert [row["file_name"] for row in lists["canny"]][:3] == [
        "shapes/training/000000.jpg",
        "landscapes/training/000000.jpg",
        "shapes/training/000001.jpg",
    ]
    assert "map" not in lists["canny"][0]
    assert lists["segmentation"][0]["map"] == "landscapes/classes.png"
    assert [row["map"] for row in lists["pose"]] == [f"shapes/training/{i:06d}_pose.png" for i in PERSON_ROWS]
    together = control_lists.take_in_turn([lists["canny"], lists["pose"]])
    assert together[:3] == [lists["canny"][0], lists["pose"][0], lists["canny"][1]]
    assert len(together) == len(lists["canny"]) + len(lists["pose"])
