"""Poses by OpenPose: bodies, then hands and faces where a body says they are.

Hands and faces follow controlnet_aux 0.0.10, open_pose (hand.py, face.py, util.py); a hand's box is CMU's own
(src/openpose/hand/handDetector.cpp). Bodies are put together in `openpose_grouping`, the networks are in
annotators/openpose.py, and `drawing` draws the poses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ...files.hub import HORDE_CATALOG, WeightsFile
from ..registry import Traits, preprocessor
from .drawing import render_pose
from .key_points import Person, Poses, key_points_from_pixels
from .openpose_grouping import HEATMAP_STRIDE, blur_matrix, group_bodies, make_upsampling_matrix

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device, Network
    from ..library import Library


SquareBox = tuple[int, int, int]  # x, y of the upper left corner, side; in pixels
HAND_INPUT_SIZES = (184, 368, 552, 736)  # sides in pixels at which a hand is looked at
FACE_INPUT_SIZE = 384
_HAND_MAP_SIZE = 128  # of the maps in which its points are sought
_MIN_HEAT = 0.05
_MIN_BOX_SIZE = 20  # pixels of a box
_ARMS = {"left": (5, 6, 7), "right": (2, 3, 4)}  # shoulder, elbow, wrist
_HEAD_REACH = (
    (14, 3.0),
    (15, 3.0),
    (16, 1.5),
    (17, 1.5),
)  # eyes and ears, and what their distance to the nose is times


def find_hand_boxes(body: np.ndarray, height: int, width: int) -> dict[str, SquareBox]:
    """Squares around the hands, "left" and "right", of a body (18, 3) in pixels of an image: where a whole arm is
    seen and the square has 20 pixels or more."""
    boxes = {}
    for side, arm in _ARMS.items():
        shoulder, elbow, wrist = body[list(arm), :2]
        if np.isnan([shoulder, elbow, wrist]).any():
            continue
        length = 1.5 * max(_distance(wrist, elbow), 0.9 * _distance(elbow, shoulder))
        x, y = np.maximum(wrist + 0.33 * (wrist - elbow) - length / 2, 0)
        fitting = min(length, width - x, height - y)
        if fitting >= _MIN_BOX_SIZE:
            boxes[side] = int(x), int(y), int(fitting)
    return boxes


def find_face_box(body: np.ndarray, height: int, width: int) -> SquareBox | None:
    """Find the square around a face from key points `(18, 3)` of a body, where the nose and an eye or ear are seen, and
    the square has 20 pixels or more."""
    nose = body[0, :2]
    reach = [factor * np.abs(nose - body[part, :2]).max() for part, factor in _HEAD_REACH]
    if np.isnan(nose).any() or np.isnan(reach).all():
        return None
    half = np.nanmax(reach)
    x, y = np.maximum(nose - half, 0)
    side = min(2 * half if x + half <= width else width - x, 2 * half if y + half <= height else height - y)
    return (int(x), int(y), int(side)) if side >= _MIN_BOX_SIZE else None


def find_hand_points(heatmaps: list[np.ndarray], side: int) -> np.ndarray:
    """A hand's points (21, 3) from its heat maps (22, h, w) at each of HAND_INPUTS: x and y in pixels of its box of
    that side, and score. A point is the highest of the region with the greatest sum; NaN where there is none."""
    average = np.zeros((21, _HAND_MAP_SIZE, _HAND_MAP_SIZE))
    for one in heatmaps:
        cells = one.shape[1]
        matrix = make_upsampling_matrix(cells, HEATMAP_STRIDE * cells, _HAND_MAP_SIZE, cv2.INTER_AREA)
        average += matrix @ one[:21] @ matrix.T / len(heatmaps)
    blur = blur_matrix(np.eye(_HAND_MAP_SIZE))
    points = np.full((21, 3), np.nan)
    for i, one in enumerate(average):
        count, regions = cv2.connectedComponents((blur @ one @ blur.T > _MIN_HEAT).astype(np.uint8), connectivity=8)
        if count > 1:
            best = 1 + np.argmax(np.bincount(regions.ravel(), one.ravel(), count)[1:])
            points[i] = _find_peak(np.where(regions == best, one, 0), side / _HAND_MAP_SIZE)
    return points


def find_face_points(heatmaps: Tensor, side: int) -> np.ndarray:
    """A face's points (70, 3) from heat maps (71, h, w): x and y in pixels of its box of that side, and score; NaN
    where a map is nowhere over 0.05. The 71st map, of what is no point, is left out; controlnet_aux draws its highest
    place too, as if it were one."""
    from torch.nn import functional as F

    points = np.full((70, 3), np.nan)
    for i, one in enumerate(heatmaps[:70]):
        heat_map = F.interpolate(one[None, None], (side, side), mode="bilinear", align_corners=True)[0, 0].numpy()
        if heat_map.max() > _MIN_HEAT:
            points[i] = _find_peak(heat_map, 1)
    return points


def _find_peak(values: np.ndarray, scale: float) -> tuple[float, float, float]:
    """Find the place of the greatest value `(H, W)`, in whole pixels after scaling, and the value; NaN in the first row
    or column, which the original takes for not found."""
    y, x = np.unravel_index(np.argmax(values), values.shape)
    px, py = int(x * scale), int(y * scale)
    return (px, py, values[y, x]) if px and py else (np.nan, np.nan, np.nan)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).sum()))


_LICENSE = "CMU, non-commercial only"
OPENPOSE_BODY_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "body_pose_model.pth",
    webui_folder="openpose",
    license=_LICENSE,
    size=209267595,
    sha256="25a948c16078b0f08e236bda51a385d855ef4c153598947c28c0d47ed94bb746",
    source=f"{HORDE_CATALOG}; lllyasviel/Annotators @ 733558ac5d0b",
)
OPENPOSE_HAND_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "hand_pose_model.pth",
    webui_folder="openpose",
    license=_LICENSE,
    size=147341049,
    sha256="b76b00d1750901abd07b9f9d8c98cc3385b8fe834a26d4b4f0aad439e75fc600",
    source=f"{HORDE_CATALOG}; lllyasviel/Annotators @ 733558ac5d0b",
)
OPENPOSE_FACE_WEIGHTS = WeightsFile(
    "lllyasviel/Annotators",
    "facenet.pth",
    webui_folder="openpose",
    license=_LICENSE,
    size=153718792,
    sha256="8beb52e548624ffcc4aed12af7aee7dcbfaeea420c75609fee999fe7add79d43",
    source=f"{HORDE_CATALOG}; lllyasviel/Annotators @ 03b402ee1c5b",
)
_INPUT_HEIGHT = 184  # pixels of the body network's input
_MAX_INPUT_WIDTH = 16 * _INPUT_HEIGHT  # to which an image that is still wider is shrunk


@dataclass(frozen=True)
class _OpenPoseNetworks:
    """Those that were asked for."""

    body: Network
    hand: Network | None
    face: Network | None


def _load_networks(device: str | Device, library: Library, *, hands: bool, face: bool) -> _OpenPoseNetworks:
    from ...annotators import openpose

    return _OpenPoseNetworks(
        library.load_network(OPENPOSE_BODY_WEIGHTS, openpose.load_body, device),
        library.load_network(OPENPOSE_HAND_WEIGHTS, openpose.load_hand, device) if hands else None,
        library.load_network(OPENPOSE_FACE_WEIGHTS, openpose.load_face, device) if face else None,
    )


def _detect_poses(
    networks: _OpenPoseNetworks, images: np.ndarray, **render_options: bool
) -> list[Callable[[int, int], Any]]:
    """For each of the images (B, H, W, 3) what draws it at the height and width that are kept of it."""
    tensor, inside = _prepare_input(images)
    fields, heat = (maps.numpy() for maps in networks.body(tensor))
    size = images.shape[1:3]
    return [
        partial(
            _render_people,
            [_detect_parts(networks, image, body) for body in group_bodies(one, field, inside, size)],
            render_options,
        )
        for image, one, field in zip(images, heat, fields, strict=True)
    ]


def _render_people(
    people: list[dict[str, np.ndarray]], render_options: dict[str, bool], height: int, width: int
) -> Any:
    persons = [
        Person(**{part: key_points_from_pixels(points.tolist(), height, width) for part, points in person.items()})
        for person in people
    ]
    poses = Poses(tuple(persons), (), width, height)
    return render_pose(poses, height, width, **render_options), poses


def _prepare_input(images: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
    """Return the body network's input for images `(B, H, W, 3)`, and its rows and columns that are no padding."""
    height, width = images.shape[1:3]
    scale = min(_INPUT_HEIGHT / height, _MAX_INPUT_WIDTH / width)
    rows, columns = max(int(height * scale), 1), max(int(width * scale), 1)
    bottom, right = -rows % HEATMAP_STRIDE, -columns % HEATMAP_STRIDE
    inputs = [
        cv2.copyMakeBorder(_resize(image, rows, columns), 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(128,) * 3)
        for image in images
    ]
    return _to_bgr_tensor(inputs), (rows, columns)


def _detect_parts(networks: _OpenPoseNetworks, image: np.ndarray, body: np.ndarray) -> dict[str, np.ndarray]:
    """A person's parts as points (N, 3) in pixels of the image: the body, hands and face."""
    height, width = image.shape[:2]
    parts = {"body": body}
    if networks.hand:
        for side, box in find_hand_boxes(body, height, width).items():
            crop = cv2.GaussianBlur(_crop(image, box), (0, 0), 0.8)
            heat = [networks.hand(_to_bgr_tensor([_resize(crop, n, n)]))[0].numpy() for n in HAND_INPUT_SIZES]
            parts[f"{side}_hand"] = np.add(find_hand_points(heat, box[2]), (box[0], box[1], 0))
    if networks.face and (square := find_face_box(body, height, width)):
        heat = networks.face(_to_bgr_tensor([_resize(_crop(image, square), FACE_INPUT_SIZE, FACE_INPUT_SIZE)]))[0]
        parts["face"] = np.add(find_face_points(heat, square[2]), (square[0], square[1], 0))
    return parts


def _crop(image: np.ndarray, box: tuple[int, int, int]) -> np.ndarray:
    x, y, side = box
    return image[y : y + side, x : x + side]


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    way = cv2.INTER_AREA if height + width < sum(image.shape[:2]) else cv2.INTER_LANCZOS4
    return cv2.resize(image, (width, height), interpolation=way)


def _to_bgr_tensor(images: list[np.ndarray]) -> Tensor:
    """RGB images (H, W, 3) uint8 as BGR (B, 3, H, W) in -0.5..0.5."""
    import torch

    bgr = np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(bgr)).float() / 256 - 0.5


@preprocessor("openpose", makes="pose", weights=OPENPOSE_BODY_WEIGHTS, batched=True)
class OpenPose:
    """Bodies as sticks, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _load_networks(device, library, hands=False, face=False)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _detect_poses(self.networks, images, scale_sticks=scale_sticks)


@preprocessor("openpose_hand", makes="pose", weights=(OPENPOSE_BODY_WEIGHTS, OPENPOSE_HAND_WEIGHTS), batched=True)
class OpenPoseHand:
    """Bodies as sticks, and hands, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _load_networks(device, library, hands=True, face=False)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _detect_poses(self.networks, images, scale_sticks=scale_sticks)


@preprocessor("openpose_face", makes="pose", weights=(OPENPOSE_BODY_WEIGHTS, OPENPOSE_FACE_WEIGHTS), batched=True)
class OpenPoseFace:
    """Bodies as sticks, and faces as dots, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _load_networks(device, library, hands=False, face=True)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _detect_poses(self.networks, images, scale_sticks=scale_sticks)


@preprocessor(
    "openpose_faceonly",
    makes="pose",
    fidelity="face",
    weights=(OPENPOSE_BODY_WEIGHTS, OPENPOSE_FACE_WEIGHTS),
    batched=True,
    traits=Traits(mirroring="plain"),  # dots of one color
)
class OpenPoseFaceOnly:
    """Faces as dots, by OpenPose, which looks for bodies first."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _load_networks(device, library, hands=False, face=True)

    def __call__(self, images: np.ndarray) -> list[Callable[[int, int], Any]]:
        return _detect_poses(self.networks, images, body=False)


@preprocessor(
    "openpose_full",
    makes="pose",
    weights=(OPENPOSE_BODY_WEIGHTS, OPENPOSE_HAND_WEIGHTS, OPENPOSE_FACE_WEIGHTS),
    batched=True,
    traits=Traits(is_default_for_kind=True),
)
class OpenPoseFull:
    """Bodies as sticks, hands, and faces as dots, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _load_networks(device, library, hands=True, face=True)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _detect_poses(self.networks, images, scale_sticks=scale_sticks)
