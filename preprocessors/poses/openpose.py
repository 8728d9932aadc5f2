"""Hands and faces: where in a picture a body says they are, and their points out of heat maps.

After controlnet_aux 0.0.10, open_pose (hand.py, face.py, util.py), where a hand's box is CMU's own
(src/openpose/hand/handDetector.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ...files.hub import HORDE, WeightsFile
from ..registry import preprocessor
from .drawing import drawn
from .key_points import Person, Poses, found
from .openpose_grouping import STRIDE, blurring, bodies, enlarging

if TYPE_CHECKING:
    from torch import Tensor

    from ..backends.torch import Device, Network
    from ..library import Library


Box = tuple[int, int, int]  # x, y of the upper left corner, side; in pixels
HAND_INPUTS = (184, 368, 552, 736)  # sides in pixels at which a hand is looked at
FACE_INPUT = 384
_HAND_SIDE = 128  # of the maps in which its points are sought
_THRESHOLD = 0.05
_SMALLEST = 20  # pixels of a box
_ARMS = {"left": (5, 6, 7), "right": (2, 3, 4)}  # shoulder, elbow, wrist
_HEAD = ((14, 3.0), (15, 3.0), (16, 1.5), (17, 1.5))  # eyes and ears, and what their distance to the nose is times


def hand_boxes(body: np.ndarray, height: int, width: int) -> dict[str, Box]:
    """Squares around the hands, "left" and "right", of a body (18, 3) in pixels of a picture: where a whole arm is
    seen and the square has 20 pixels or more."""
    boxes = {}
    for side, arm in _ARMS.items():
        shoulder, elbow, wrist = body[list(arm), :2]
        if np.isnan([shoulder, elbow, wrist]).any():
            continue
        length = 1.5 * max(_distance(wrist, elbow), 0.9 * _distance(elbow, shoulder))
        x, y = np.maximum(wrist + 0.33 * (wrist - elbow) - length / 2, 0)
        fitting = min(length, width - x, height - y)
        if fitting >= _SMALLEST:
            boxes[side] = int(x), int(y), int(fitting)
    return boxes


def face_box(body: np.ndarray, height: int, width: int) -> Box | None:
    """A square around the face: where the nose and an eye or ear are seen, and it has 20 pixels or more."""
    nose = body[0, :2]
    reach = [factor * np.abs(nose - body[part, :2]).max() for part, factor in _HEAD]
    if np.isnan(nose).any() or np.isnan(reach).all():
        return None
    half = np.nanmax(reach)
    x, y = np.maximum(nose - half, 0)
    side = min(2 * half if x + half <= width else width - x, 2 * half if y + half <= height else height - y)
    return (int(x), int(y), int(side)) if side >= _SMALLEST else None


def hand_points(heat: list[np.ndarray], side: int) -> np.ndarray:
    """A hand's points (21, 3) from its heat maps (22, h, w) at each of HAND_INPUTS: x and y in pixels of its box of
    that side, and score. A point is the highest of the region with the greatest sum; NaN where there is none."""
    average = np.zeros((21, _HAND_SIDE, _HAND_SIDE))
    for one in heat:
        cells = one.shape[1]
        matrix = enlarging(cells, STRIDE * cells, _HAND_SIDE, cv2.INTER_AREA)
        average += matrix @ one[:21] @ matrix.T / len(heat)
    blur = blurring(np.eye(_HAND_SIDE))
    points = np.full((21, 3), np.nan)
    for i, one in enumerate(average):
        count, regions = cv2.connectedComponents((blur @ one @ blur.T > _THRESHOLD).astype(np.uint8), connectivity=8)
        if count > 1:
            best = 1 + np.argmax(np.bincount(regions.ravel(), one.ravel(), count)[1:])
            points[i] = _highest(np.where(regions == best, one, 0), side / _HAND_SIDE)
    return points


def face_points(heat: Tensor, side: int) -> np.ndarray:
    """A face's points (70, 3) from heat maps (71, h, w): x and y in pixels of its box of that side, and score; NaN
    where a map is nowhere over 0.05. The 71st map, of what is no point, is left out; controlnet_aux draws its highest
    place too, as if it were one."""
    from torch.nn import functional as F

    points = np.full((70, 3), np.nan)
    for i, one in enumerate(heat[:70]):
        enlarged = F.interpolate(one[None, None], (side, side), mode="bilinear", align_corners=True)[0, 0].numpy()
        if enlarged.max() > _THRESHOLD:
            points[i] = _highest(enlarged, 1)
    return points


def _highest(values: np.ndarray, scale: float) -> tuple[float, float, float]:
    """Where the greatest value is, in whole pixels after scaling, and the value. NaN in the first row or column, which
    the original takes for not found."""
    y, x = np.unravel_index(np.argmax(values), values.shape)
    px, py = int(x * scale), int(y * scale)
    return (px, py, values[y, x]) if px and py else (np.nan, np.nan, np.nan)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).sum()))


_LICENCE = "CMU, non-commercial only"
BODY = WeightsFile(
    "lllyasviel/Annotators",
    "body_pose_model.pth",
    folder="openpose",
    licence=_LICENCE,
    size=209267595,
    sha256="25a948c16078b0f08e236bda51a385d855ef4c153598947c28c0d47ed94bb746",
    source=f"{HORDE}; lllyasviel/Annotators @ 733558ac5d0b",
)
HAND = WeightsFile(
    "lllyasviel/Annotators",
    "hand_pose_model.pth",
    folder="openpose",
    licence=_LICENCE,
    size=147341049,
    sha256="b76b00d1750901abd07b9f9d8c98cc3385b8fe834a26d4b4f0aad439e75fc600",
    source=f"{HORDE}; lllyasviel/Annotators @ 733558ac5d0b",
)
FACE = WeightsFile(
    "lllyasviel/Annotators",
    "facenet.pth",
    folder="openpose",
    licence=_LICENCE,
    size=153718792,
    sha256="8beb52e548624ffcc4aed12af7aee7dcbfaeea420c75609fee999fe7add79d43",
    source=f"{HORDE}; lllyasviel/Annotators @ 03b402ee1c5b",
)
_HEIGHT = 184  # pixels of the body network's input
_WIDEST = 16 * _HEIGHT  # to which a picture that is still wider is shrunk


@dataclass(frozen=True)
class _Networks:
    """Those that were asked for."""

    body: Network
    hand: Network | None
    face: Network | None


def _loaded(device: str | Device, library: Library, *, hands: bool, face: bool) -> _Networks:
    from ...annotators import openpose

    return _Networks(
        library.network(BODY, openpose.body, device),
        library.network(HAND, openpose.hand, device) if hands else None,
        library.network(FACE, openpose.face, device) if face else None,
    )


def _maps(networks: _Networks, images: np.ndarray, **drawing: bool) -> list[Callable[[int, int], Any]]:
    """For each of the images (B, H, W, 3) what draws it at the height and width that are kept of it."""
    tensor, inside = _input(images)
    fields, heat = (maps.numpy() for maps in networks.body(tensor))
    size = images.shape[1:3]
    return [
        partial(_map, [_parts(networks, image, body) for body in bodies(one, field, inside, size)], drawing)
        for image, one, field in zip(images, heat, fields, strict=True)
    ]


def _map(people: list[dict[str, np.ndarray]], drawing: dict[str, bool], height: int, width: int) -> Any:
    persons = [
        Person(**{part: found(points.tolist(), height, width) for part, points in person.items()}) for person in people
    ]
    poses = Poses(tuple(persons), (), width, height)
    return drawn(poses, height, width, **drawing), poses


def _input(images: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
    """What the body network reads of images (B, H, W, 3), and the rows and columns of it that are no padding."""
    height, width = images.shape[1:3]
    scale = min(_HEIGHT / height, _WIDEST / width)
    rows, columns = max(int(height * scale), 1), max(int(width * scale), 1)
    bottom, right = -rows % STRIDE, -columns % STRIDE
    inputs = [
        cv2.copyMakeBorder(_resized(image, rows, columns), 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(128,) * 3)
        for image in images
    ]
    return _tensor(inputs), (rows, columns)


def _parts(networks: _Networks, image: np.ndarray, body: np.ndarray) -> dict[str, np.ndarray]:
    """A person's parts as points (N, 3) in pixels of the image: the body, hands and face."""
    height, width = image.shape[:2]
    parts = {"body": body}
    if networks.hand:
        for side, box in hand_boxes(body, height, width).items():
            crop = cv2.GaussianBlur(_cut(image, box), (0, 0), 0.8)
            heat = [networks.hand(_tensor([_resized(crop, n, n)]))[0].numpy() for n in HAND_INPUTS]
            parts[f"{side}_hand"] = np.add(hand_points(heat, box[2]), (box[0], box[1], 0))
    if networks.face and (square := face_box(body, height, width)):
        heat = networks.face(_tensor([_resized(_cut(image, square), FACE_INPUT, FACE_INPUT)]))[0]
        parts["face"] = np.add(face_points(heat, square[2]), (square[0], square[1], 0))
    return parts


def _cut(image: np.ndarray, box: tuple[int, int, int]) -> np.ndarray:
    x, y, side = box
    return image[y : y + side, x : x + side]


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    way = cv2.INTER_AREA if height + width < sum(image.shape[:2]) else cv2.INTER_LANCZOS4
    return cv2.resize(image, (width, height), interpolation=way)


def _tensor(images: list[np.ndarray]) -> Tensor:
    """RGB images (H, W, 3) uint8 as BGR (B, 3, H, W) in -0.5..0.5."""
    import torch

    bgr = np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(bgr)).float() / 256 - 0.5


@preprocessor("openpose", makes="pose", weights=BODY, stacks=True)
class OpenPose:
    """Bodies as sticks, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _loaded(device, library, hands=False, face=False)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _maps(self.networks, images, scale_sticks=scale_sticks)


@preprocessor("openpose_hand", makes="pose", weights=(BODY, HAND), stacks=True)
class OpenPoseHand:
    """Bodies as sticks, and hands, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _loaded(device, library, hands=True, face=False)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _maps(self.networks, images, scale_sticks=scale_sticks)


@preprocessor("openpose_face", makes="pose", weights=(BODY, FACE), stacks=True)
class OpenPoseFace:
    """Bodies as sticks, and faces as dots, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _loaded(device, library, hands=False, face=True)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _maps(self.networks, images, scale_sticks=scale_sticks)


@preprocessor("openpose_faceonly", makes="pose", weights=(BODY, FACE), stacks=True)
class OpenPoseFaceOnly:
    """Faces as dots, by OpenPose, which looks for bodies first."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _loaded(device, library, hands=False, face=True)

    def __call__(self, images: np.ndarray) -> list[Callable[[int, int], Any]]:
        return _maps(self.networks, images, body=False)


@preprocessor("openpose_full", makes="pose", weights=(BODY, HAND, FACE), stacks=True)
class OpenPoseFull:
    """Bodies as sticks, hands, and faces as dots, by OpenPose."""

    def __init__(self, device: str | Device, library: Library):
        self.networks = _loaded(device, library, hands=True, face=True)

    def __call__(self, images: np.ndarray, *, scale_sticks: bool = False) -> list[Callable[[int, int], Any]]:
        return _maps(self.networks, images, scale_sticks=scale_sticks)
