"""Key points, their drawing and their JSON: pixels typed out, controlnet_aux's own functions, hostile files."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from controlnet_ext.preprocessors.poses.drawing import render_pose
from controlnet_ext.preprocessors.poses.json import encode_poses, parse_poses, read_poses
from controlnet_ext.preprocessors.poses.key_points import Animal, KeyPoint, Person, Poses
from hypothesis import given, settings
from hypothesis import strategies as st

from controlnet_ext import cli
from controlnet_ext.files.image_reader import read_image

NONE = (None,) * 18
rng = np.random.default_rng(0)


def points(count, low=0.0, high=1.0, absent=0.2):
    return tuple(None if rng.random() < absent else KeyPoint(*rng.uniform(low, high, 2).tolist()) for _ in range(count))


def person(low=0.0, high=1.0):
    return Person(*(points(count, low, high) for count in (18, 21, 21, 70)))


def body(**found):
    """A body of which only some points are there, by index: `_3=(x, y)`."""
    return Person(tuple(KeyPoint(*found[f"_{i}"]) if f"_{i}" in found else None for i in range(18)))


def colours(pixels):
    return {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}


def original():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from controlnet_aux import open_pose
            from controlnet_aux.dwpose import util
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        pytest.skip(f"controlnet_aux does not import: {error}")
    pytest.importorskip("matplotlib", reason="controlnet_aux draws hands with matplotlib")
    return open_pose, util


@pytest.mark.parametrize("span", [(0, 1), (-0.3, 1.3), (0, 0.3)])
def test_people_are_drawn_as_controlnet_aux_draws_them(span):
    open_pose, _ = original()

    def theirs(found, width, height):  # a point of a hand or face that was not found is at (-1, -1) there
        return [open_pose.Keypoint(p.x, p.y) if p else open_pose.Keypoint(-1 / width, -1 / height) for p in found]

    for _ in range(30):
        people = [person(*span) for _ in range(3)]
        height, width = rng.integers(1, 700, 2).tolist()
        results = [
            open_pose.PoseResult(
                open_pose.BodyResult([p and open_pose.Keypoint(p.x, p.y) for p in one.body], 0, 0),
                *(theirs(part, width, height) for part in (one.left_hand, one.right_hand, one.face)),
            )
            for one in people
        ]
        for parts in ({}, {"hand": False}, {"face": False}, {"body": False}):
            expected = open_pose.draw_poses(results, height, width, **{f"draw_{k}": v for k, v in parts.items()})
            own = {"hands" if key == "hand" else key: value for key, value in parts.items()}
            np.testing.assert_array_equal(render_pose(Poses(people, (), width, height), height, width, **own), expected)


def test_a_person_is_drawn_as_controlnet_auxs_dwpose_draws_one():
    _, util = original()  # it draws several limb by limb, not person by person: where two overlap it differs
    for _ in range(30):
        one = person(-0.1, 1.1)
        height, width = rng.integers(1, 700, 2).tolist()
        subset = np.array([[i if p else -1 for i, p in enumerate(one.body)]])
        places = [np.array([(p.x, p.y) if p else (-1, -1) for p in part]) for part in vars(one).values()]
        canvas = util.draw_bodypose(np.zeros((height, width, 3), np.uint8), places[0], subset)
        canvas = util.draw_facepose(util.draw_handpose(canvas, places[1:3]), places[3:])
        np.testing.assert_array_equal(render_pose(Poses([one], (), width, height), height, width), canvas)


def test_a_limb_is_a_stick_of_nine_pixels_with_dots_at_its_ends():
    lower_arm = Poses([body(_3=(0.25, 0.5), _4=(0.75, 0.5))], (), 100, 40)
    pixels = render_pose(lower_arm, 40, 100)
    assert colours(pixels) == {(0, 0, 0), (153, 153, 0), (255, 255, 0), (170, 255, 0)}  # 0.6 x (255, 255, 0)
    assert (pixels[20, 25] == (255, 255, 0)).all() and (pixels[20, 75] == (170, 255, 0)).all()
    assert np.flatnonzero(pixels[:, 50].any(axis=1)).tolist() == list(range(16, 25))
    assert np.flatnonzero(pixels[:, 25].any(axis=1)).tolist() == list(range(16, 25))


@pytest.mark.parametrize(("side", "scale"), [(499, 1), (500, 2), (999, 2), (1000, 3), (3000, 5), (5000, 7), (7000, 7)])
def test_sticks_grow_with_the_image_as_xinsirs_models_saw_them(side, scale):
    poses = Poses([body(_3=(0.25, 0.5), _4=(0.75, 0.5))], (), side, 80)
    heights = render_pose(poses, 80, side, scale_sticks=True).any(axis=2).sum(axis=0)
    assert heights[side // 2] == heights[int(side * 0.25)] == 8 * scale + 1


def test_an_animal_is_lines():
    spine = tuple(KeyPoint(0.5, {3: 0.25, 4: 0.75}[i]) if i in (3, 4) else None for i in range(17))
    pixels = render_pose(Poses((), [Animal(spine)], 32, 64), 64, 32)  # from neck to tail, along a column
    assert colours(pixels) == {(0, 0, 0), (255, 0, 255)}
    width = np.flatnonzero(pixels[32].any(axis=1)).tolist()
    assert {14, 15, 16, 17, 18} <= set(width) and len(width) <= 7  # OpenCV 5 rounds the thickness up


def test_nobody_is_black_and_a_pose_may_be_drawn_at_any_size():
    assert not render_pose(Poses((), (), 8, 8), 5, 7).any()
    with pytest.raises(ValueError, match="0x5"):
        render_pose(Poses((), (), 8, 8), 5, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeyPoint(2.01, 0), "outside -1..2"),
        (lambda: KeyPoint(float("nan"), 0), "outside -1..2"),
        (lambda: KeyPoint(0, 0, 0), "confidence 0"),
        (lambda: KeyPoint(0, 0, float("inf")), "confidence inf"),
        (lambda: Person(NONE[1:]), "17 points of a body, expected 18"),
        (lambda: Person(NONE, face=(None,) * 1001), "1001 points of a face, expected up to 1000"),
        (lambda: Animal(NONE), "18 points of an animal, expected 17"),
        (lambda: Poses((), (), 0, 5), "no pixels"),
        (lambda: Poses((), (), 65536, 5), "65535"),
    ],
)
def test_what_is_no_pose_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


fractions = st.floats(-1, 2)
found = st.builds(KeyPoint, fractions, fractions, st.floats(0, 2, exclude_min=True) | st.just(1.0)) | st.none()


def part(*counts):
    return st.sampled_from(counts).flatmap(lambda n: st.lists(found, min_size=n, max_size=n).map(tuple))


people = st.builds(Person, part(18), part(0, 21), part(0, 21), part(0, 68, 70, 106))


@settings(max_examples=30, deadline=None)
@given(
    st.builds(Poses, st.tuples(people), st.lists(st.builds(Animal, part(17)), max_size=2).map(tuple), *[st.just(9)] * 2)
)
def test_json_and_back_changes_nothing(poses):
    assert parse_poses(json.dumps(encode_poses(poses)).encode(), "text") == (poses,)


def test_what_is_written_is_what_webui_reads():
    one = Person((KeyPoint(0.5, 0.25, 0.5), *NONE[1:]), right_hand=(KeyPoint(1, 0),) * 21)
    value = encode_poses(Poses([one], (), 512, 768))
    assert value == {
        "people": [
            {
                "pose_keypoints_2d": [0.5, 0.25, 1.0, *[0.0] * 51],
                "pose_confidences": [0.5, *[0.0] * 17],
                "hand_left_keypoints_2d": None,
                "hand_right_keypoints_2d": [1.0, 0.0, 1.0] * 21,
                "face_keypoints_2d": None,
            }
        ],
        "canvas_width": 512,
        "canvas_height": 768,
    }


def read(value):
    (poses,) = parse_poses(json.dumps(value).encode(), "'p.json'")
    return poses


CANVAS = {"canvas_width": 200, "canvas_height": 400}


def test_pixels_fractions_triples_and_body_25_are_read():
    pixels = read(CANVAS | {"people": [{"pose_keypoints_2d": [100, 100, 0.5, *[0] * 51]}]})
    assert pixels.people[0].body[0] == KeyPoint(0.5, 0.25, 0.5) and pixels.people[0].body[1] is None
    triples = read([CANVAS | {"people": [], "animals": [[[20, 40, 1]] * 17]}])
    assert triples.animals == (Animal((KeyPoint(0.1, 0.1),) * 17),)
    points_25 = [[i / 100, 0.5, 1] for i in range(25)]
    body_25 = read(CANVAS | {"people": [{"pose_keypoints_2d": [n for point in points_25 for n in point]}]})
    assert [p.x for p in body_25.people[0].body] == [i / 100 for i in (*range(8), *range(9, 19))]


BODY_25 = [(10 * i + 5, 4 * i + 3, 0.5 + i / 100) for i in range(25)]


def openpose_file(folder, points=BODY_25, **more):
    """A file as OpenPose 1.7 writes it (doc/02_output.md): pixels, no canvas, parts that were not looked for empty."""
    parts = ("face", "hand_left", "hand_right")
    person = {"person_id": [-1], "pose_keypoints_2d": [number for point in points for number in point]}
    person |= {f"{part}_keypoints_2d": [] for part in parts} | {f"{part}_keypoints_3d": [] for part in ("pose", *parts)}
    path = folder / "000000000000_keypoints.json"
    path.write_text(json.dumps({"version": 1.3, "people": [person | more]}), encoding="utf-8-sig")
    return path


def test_openpose_s_own_file_is_drawn_on_the_canvas_that_is_given(tmp_path, capsys):
    path = openpose_file(tmp_path)
    (poses,) = read_poses(path, canvas=(400, 300))
    expected = [KeyPoint(x / 300, y / 400, c) for x, y, c in BODY_25]
    assert poses == Poses((Person((*expected[:8], *expected[9:19])),), (), 300, 400)
    assert cli.main(["draw", str(path), "-o", str(tmp_path / "map.png"), "--canvas", "300x400"]) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "map.png"), render_pose(poses, 400, 300))
    assert cli.main(["draw", str(path), "-o", str(tmp_path / "b.png")]) == 2
    assert "give the size of the image (draw --canvas WIDTHxHEIGHT)" in capsys.readouterr().err
    for text in ("300", "300x", "0x400", "300x-4", "300 x 400"):
        assert cli.main(["draw", str(path), "-o", str(tmp_path / "b.png"), "--canvas", text]) == 2
        assert f"--canvas {text!r}: expected WIDTHxHEIGHT" in capsys.readouterr().err


@pytest.mark.parametrize("count", [18, 15])
def test_older_bodies_of_openpose_are_read(tmp_path, count):
    (poses,) = read_poses(openpose_file(tmp_path, BODY_25[:count]), canvas=(400, 300))
    made = [KeyPoint(x / 300, y / 400, c) for x, y, c in BODY_25[:count]]
    assert poses.people[0].body == tuple(made if count == 18 else [None, *made[1:14], *[None] * 4])


def test_parts_that_openpose_missed_are_not_drawn(tmp_path):
    hand = [[9 + i, 9 + i, 0.9] for i in range(21)]
    hand[3:5] = [[0, 0, 0], [0, 0, 0]]
    flat = [number for point in hand for number in point]
    path = openpose_file(tmp_path, [(0, 0, 0)] * 25, hand_left_keypoints_2d=flat, hand_right_keypoints_2d=None)
    (poses,) = read_poses(path, canvas=(40, 40))
    (one,) = poses.people
    assert (
        one.body == NONE
        and one.right_hand == ()
        and [p is None for p in one.left_hand][2:6] == [False, True, True, False]
    )
    assert render_pose(poses, 40, 40, body=False).any() and not render_pose(poses, 40, 40, hands=False).any()


@pytest.mark.parametrize("count", [5, 68, 70, 98, 106, 468, 478])
def test_a_face_of_any_count_is_drawn_point_by_point(count):
    points = [[0.1 + 0.8 * i / count, 0.5, 1] for i in range(count)]
    (one,) = read(CANVAS | {"people": [{"face_keypoints_2d": [number for point in points for number in point]}]}).people
    assert len(one.face) == count
    drawn = render_pose(Poses((one,), (), 1000, 100), 100, 1000)
    assert all((drawn[50, int(x * 1000)] == 255).all() for x, _, _ in points)


def test_a_canvas_of_floats_is_read_and_another_than_the_file_s_is_refused():
    floats = {"canvas_width": 200.0, "canvas_height": 400.0, "people": []}
    assert (read(floats).width, read(floats).height) == (200, 400) and isinstance(read(floats).width, int)
    text = json.dumps(floats).encode()
    assert parse_poses(text, "'p.json'", canvas=(400, 200)) == parse_poses(text, "'p.json'")
    with pytest.raises(ValueError, match=r"'p\.json': its canvas is 200x400, not 9x8: give none"):
        parse_poses(text, "'p.json'", canvas=(8, 9))


def test_a_limb_is_edited_and_drawn_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    value = encode_poses(Poses([body(_3=(0.25, 0.5), _4=(0.75, 0.5))], (), 100, 40))
    value["people"][0]["pose_keypoints_2d"][12:15] = 0.25, 0.9, 1
    (tmp_path / "pose.json").write_text(json.dumps(value))
    assert cli.main(["draw", "pose.json", "-o", "map.png"]) == 0
    (poses,) = read_poses("pose.json")
    assert poses.people[0] == body(_3=(0.25, 0.5), _4=(0.25, 0.9))
    np.testing.assert_array_equal(read_image("map.png"), render_pose(poses, 40, 100))
    assert cli.main(["draw", "pose.json", "-o", "large.png", "--resolution", "80", "--scale-sticks"]) == 0
    np.testing.assert_array_equal(read_image("large.png"), render_pose(poses, 80, 200, scale_sticks=True))
    assert cli.main(["draw", "pose.json", "-o", "none.png", "--no-body"]) == 0
    assert not read_image("none.png").any()
    assert cli.main(["draw", "pose.json", "-o", "map.png"]) == 2
    assert capsys.readouterr().err.endswith("controlnet-ext: 'map.png' exists; --overwrite replaces it\n")


def test_several_images_go_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = encode_poses(Poses([body(_0=(0.5, 0.5))], (), 64, 64))
    (tmp_path / "a.json").write_text(json.dumps([one, one]))
    (tmp_path / "b.json").write_text(json.dumps(one))
    assert cli.main(["draw", "a.json", "b.json", "-o", "maps"]) == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a_1.png", "a_2.png", "b.png"]


FLAT = [0.1, 0.1, 1] * 18


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "poses of an image is a JSON int, expected dict"),
        ("[" * 100000, "nests its JSON too deeply"),
        ({"people": []}, r"are missing, as in OpenPose's own files: .* \(draw --canvas WIDTHxHEIGHT\)"),
        ({"people": [], "canvas_width": 9}, "canvas_height is None, expected pixels"),
        (CANVAS | {"canvas_width": True}, "canvas_width is True"),
        (CANVAS | {"canvas_width": 1000.5}, "canvas_width is 1000.5"),
        (CANVAS | {"canvas_width": float("inf")}, "canvas_width is inf"),
        (CANVAS | {"canvas_width": "200"}, "canvas_width is '200'"),
        (CANVAS | {"canvas_width": 10**9}, "over the limit of 64"),
        (CANVAS | {"canvas_height": -1}, "no pixels"),
        (CANVAS | {"people": {}}, None),
        (CANVAS | {"people": {"a": 1}}, "people is a JSON dict, expected list"),
        (CANVAS | {"people": [[]]}, r"people\[0\] is a JSON list, expected dict"),
        (CANVAS | {"people": [{"pose_keypoints_2d": "x"}]}, r"people\[0\].pose is a JSON str"),
        (CANVAS | {"people": [{"pose_keypoints_2d": FLAT[1:]}]}, "53 numbers"),
        (CANVAS | {"people": [{"pose_keypoints_2d": FLAT[3:]}]}, "17 points of a body"),
        (CANVAS | {"people": [{"pose_keypoints_2d": ["1", *FLAT[1:]]}]}, "holds '1', expected a number"),
        (CANVAS | {"people": [{"pose_keypoints_2d": [float("nan"), *FLAT[1:]]}]}, "holds nan"),
        (CANVAS | {"people": [{"pose_keypoints_2d": [10**200, *FLAT[1:]]}]}, "expected a number below 1e9"),
        (CANVAS | {"people": [{"pose_keypoints_2d": [1e8, *FLAT[1:]]}]}, "outside -1..2 of the image"),
        (CANVAS | {"people": [{"pose_keypoints_2d": [0, 0, -1, *FLAT[3:]]}]}, "confidence -1"),
        (CANVAS | {"people": [{"pose_keypoints_2d": FLAT, "pose_confidences": [1]}]}, "1 numbers for 18 points"),
        (CANVAS | {"animals": [None]}, "0 points of an animal"),
        (CANVAS | {"animals": [{}]}, r"animals\[0\] is a JSON dict"),
    ],
)
def test_hostile_json_is_refused_in_one_line(text, message):
    content = text if isinstance(text, str) else json.dumps(text)
    if message is None:
        assert parse_poses(content.encode(), "'p.json'")[0].people == ()
        return
    with pytest.raises(ValueError, match=message) as refusal:
        parse_poses(content.encode(), "'p.json'")
    assert str(refusal.value).startswith("'p.json'") and "\n" not in str(refusal.value)


def test_a_file_of_poses_has_a_limit(tmp_path):
    (tmp_path / "p.json").write_bytes(b" " * 2**24 + b"{}")
    with pytest.raises(ValueError, match="too large for poses"):
        read_poses(tmp_path / "p.json")


def test_a_person_is_changed_by_making_another():
    one = person()
    other = replace(one, body=(None, *one.body[1:]))
    assert other.body[0] is None and other.face == one.face
