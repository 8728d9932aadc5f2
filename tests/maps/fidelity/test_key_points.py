"""People, animals and faces: OKS equal to pycocotools, PCK of typed cases, who is whom, and who is missing."""

import dataclasses
import math

import numpy as np
import pytest
from controlnet_ext.preprocessors.poses.drawing import render_pose
from controlnet_ext.preprocessors.poses.key_points import Animal, KeyPoint, Person, Poses

from controlnet_ext import ControlMap
from controlnet_ext.maps.fidelity import get_measure
from controlnet_ext.maps.fidelity.points import BODY_SIGMAS, compute_nme, compute_oks, match_pairs, measure_box

POSE, FACE = get_measure("pose"), get_measure("face")
SIDE = 100
# a body in pixels of 100x100, 60 high and 30 wide
BODY = np.array(
    [
        *([50, 20], [50, 30], [40, 30], [37, 42], [35, 54], [60, 30], [63, 42], [65, 54], [44, 52]),
        *([43, 64], [42, 76], [56, 52], [57, 64], [58, 76], [48, 18], [52, 18], [46, 20], [54, 20]),
    ],
    float,
)
RIGHT = np.array([1.0, 0])
REACH = 0.2 * 58  # of its height


def make_person(points, **parts):
    return Person(tuple(None if np.isnan(x) else KeyPoint(x / SIDE, y / SIDE) for x, y in points), **parts)


def make_map(*people, animals=(), side=SIDE):
    poses = Poses(people, animals, side, side)
    return ControlMap(render_pose(poses, side, side), "pose", poses)


def without(points, *numbers):
    points = np.array(points)
    points[list(numbers)] = np.nan
    return points


def make_face(shift=0.0, count=68):
    points = np.random.default_rng(0).uniform(0.3, 0.6, (count, 2))
    points[36], points[45] = (0.4, 0.4), (0.5, 0.4)
    return points + shift * RIGHT


@pytest.mark.parametrize("seed", range(4))
def test_similarity_of_key_points_equals_pycocotools(seed):
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="pycocotools is not installed")
    numbers = np.random.default_rng(seed)
    expected = without(BODY, *numbers.integers(0, 18, seed))
    found = BODY + numbers.normal(0, 4, BODY.shape)
    area = measure_box(expected).area

    evaluation = cocoeval.COCOeval(iouType="keypoints")
    evaluation.params.kpt_oks_sigmas = BODY_SIGMAS
    points = [[*np.nan_to_num(p), 2 * (not np.isnan(p).any())] for p in expected]
    evaluation._gts = {(0, 1): [{"keypoints": np.ravel(points).tolist(), "bbox": [0, 0, 1, 1], "area": area}]}
    evaluation._gts[0, 1][0]["num_keypoints"] = 18
    evaluation._dts = {(0, 1): [{"keypoints": np.ravel([[*p, 1] for p in found]).tolist(), "score": 1.0}]}
    evaluation._gts, evaluation._dts = ({(0, 1): x[0, 1]} for x in (evaluation._gts, evaluation._dts))
    (oks,) = evaluation.computeOks(0, 1).ravel()
    assert compute_oks(expected, found, area, BODY_SIGMAS) == pytest.approx(oks, abs=1e-12)


def test_the_similarity_of_one_point_is_a_bell():
    """d² = 100, area 400, sigma .1: exp(-100 / (8 x 400 x .01)) = exp(-3.125)."""
    value = compute_oks(np.array([[0.0, 0]]), np.array([[6.0, 8]]), 400, np.array([0.1]))
    assert value == pytest.approx(math.exp(-3.125))


def test_people_agree_with_themselves_in_any_order():
    left, right = make_person(BODY - 20 * RIGHT), make_person(BODY + 20 * RIGHT)
    figures = POSE.compare(make_map(left, right), make_map(right, left))
    assert figures["pck"] == 1 and figures["oks"] == pytest.approx(1)
    assert (figures["people"], figures["missing"], figures["extra"]) == (2, 0, 0)


def test_a_point_is_right_within_a_fifth_of_the_longer_side():
    moved = BODY.copy()
    moved[4] += [REACH - 0.01, 0]
    moved[7] += [0, REACH + 0.01]
    assert POSE.compare(make_map(make_person(BODY)), make_map(make_person(moved)))["pck"] == pytest.approx(17 / 18)


def test_points_that_are_not_expected_do_not_count_and_those_not_found_are_wrong():
    expected, found = make_person(without(BODY, 0, 1)), make_person(without(BODY, 10))
    assert POSE.compare(make_map(expected), make_map(found))["pck"] == pytest.approx(15 / 16)


def test_missing_and_extra_people_are_counted():
    one, other = make_person(BODY - 20 * RIGHT), make_person(BODY + 20 * RIGHT)
    figures = POSE.compare(make_map(one, other), make_map(other))
    assert (figures["pck"], figures["oks"], figures["missing"], figures["extra"]) == (0.5, 0.5, 1, 0)
    figures = POSE.compare(make_map(one), make_map(other, one))
    assert (figures["pck"], figures["oks"], figures["missing"], figures["extra"]) == (1, 1, 0, 1)


def test_a_person_elsewhere_is_another_one():
    figures = POSE.compare(make_map(make_person(BODY - 30 * RIGHT)), make_map(make_person(BODY + 30 * RIGHT)))
    assert (figures["pck"], figures["oks"], figures["missing"], figures["extra"]) == (0, 0, 1, 1)


def test_nobody_has_no_score():
    empty = make_map()
    figures = POSE.compare(empty, make_map(make_person(BODY)))
    assert math.isnan(figures["pck"]) and math.isnan(figures["oks"]) and figures["extra"] == 1
    assert POSE.compare(make_map(make_person(BODY)), empty)["pck"] == 0


def test_a_single_point_is_no_person():
    alone = make_person(without(BODY, *range(1, 18)))
    assert math.isnan(POSE.compare(make_map(alone), make_map(alone))["pck"])


def test_hands_and_faces_have_their_own_figures():
    hand = np.stack([np.linspace(35, 45, 21), np.linspace(54, 64, 21)], 1)
    face = make_face()

    def make(shift):
        points = [KeyPoint((x + shift) / SIDE, y / SIDE) for x, y in hand]
        return make_map(
            make_person(BODY, left_hand=points, face=[KeyPoint(x, y) for x, y in face + shift / 100 * RIGHT])
        )

    assert POSE.compare(make(0), make(0))["pck_hands"] == 1
    figures = POSE.compare(make(0), make(4))
    assert (figures["pck"], figures["pck_hands"]) == (1, 0)  # 4 pixels are more than 0.2 x 10
    assert figures["nme_face"] == pytest.approx(0.4)  # of 10 between the eyes
    bare = POSE.compare(make(0), make_map(make_person(BODY)))
    assert (bare["pck"], bare["pck_hands"], bare["nme_face"]) == (1, 0, 1)
    assert math.isnan(POSE.compare(make_map(make_person(BODY)), make(0))["pck_hands"])


def test_animals_are_measured_too():
    points = BODY[:17]
    animal = Animal(tuple(KeyPoint(x / SIDE, y / SIDE) for x, y in points))
    figures = POSE.compare(make_map(animals=[animal]), make_map(animals=[animal]))
    assert figures["pck"] == 1 and figures["people"] == 1


def test_a_map_of_another_size_has_its_points_fitted():
    """Of 200x100 the middle is kept: a person at its left end is not expected, one in the middle is."""
    poses = Poses(
        [
            Person(tuple(KeyPoint((x + left) / 200, y / 100) for x, y in BODY))
            for left in (50, -25)
        ],
        (),
        200,
        100,
    )  # fmt: skip
    wide = ControlMap(render_pose(poses, 100, 200), "pose", poses)
    figures = POSE.compare(wide, make_map(make_person(BODY)), (100, 100))
    assert figures["pck"] == 1 and figures["people"] == 1
    filled = POSE.compare(wide, make_map(make_person(BODY)), (100, 100), "fill")
    assert filled["people"] == 2 and filled["pck"] < 0.8


def test_pairs_are_made_from_the_best_on():
    assert match_pairs(np.array([[0.9, 0.8], [0.85, 0.1]])) == [(0, 0), (1, 1)]
    assert match_pairs(np.array([[0.0, np.nan]])) == [] == match_pairs(np.zeros((0, 3)))


def test_pixels_alone_are_refused():
    drawn = dataclasses.replace(make_map(make_person(BODY)), values=None)
    with pytest.raises(ValueError, match="map of pose that is pixels alone cannot be measured"):
        POSE.compare(drawn, make_map(make_person(BODY)))


def make_faces(*faces):
    return ControlMap(np.zeros((SIDE, SIDE, 3), np.uint8), "face", tuple(faces))


def test_a_faces_error_is_in_units_of_the_distance_of_its_eyes():
    """Moved by 2 of 10 pixels."""
    figures = FACE.compare(make_faces(make_face()), make_faces(make_face(0.02)))
    assert figures == {"nme": pytest.approx(0.2), "faces": 1, "missing": 0, "extra": 0}
    assert FACE.compare(make_faces(make_face()), make_faces(make_face()))["nme"] == 0


def test_a_missing_face_counts_as_one_and_none_expected_as_nothing():
    a, b = make_face(), make_face(0.3)
    figures = FACE.compare(make_faces(a, b), make_faces(b))
    assert figures == {"nme": pytest.approx(0.5), "faces": 2, "missing": 1, "extra": 0}
    assert math.isnan(FACE.compare(make_faces(), make_faces(a))["nme"])


def test_faces_of_another_layout_are_measured_by_their_box():
    points = np.array([[0, 0], [20, 0], [20, 5], [0, 5.0]])
    assert compute_nme(points, points + 5 * RIGHT) == pytest.approx(0.5)
    assert compute_nme(points, points + 50 * RIGHT) == 1  # no further


def test_the_faces_of_people_are_read_too():
    person = make_person(np.full((18, 2), np.nan), face=[KeyPoint(x, y) for x, y in make_face()])
    figures = FACE.compare(make_map(person), make_map(person))
    assert (figures["nme"], figures["faces"]) == (0, 1)
