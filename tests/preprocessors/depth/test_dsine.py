"""DSINE: its authors' code on the same random weights where it is, its geometry typed out, batches, sizes."""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import dsine
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.depth.normals_of_depth import encode_normals
from lines import Shelf, aux, random_state
from torch.nn import functional as F

IMAGE = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8), (90, 70), interpolation=cv2.INTER_CUBIC
)


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = dsine.DSINE().state_dict()
    return random_state(shapes)


def camera(height, width, fov):
    focal = max(height, width) / 2 / np.tan(np.radians(fov) / 2)
    return torch.tensor([focal, width / 2, height / 2], dtype=torch.float32)


def test_normals_are_those_of_the_authors_code(state, monkeypatch):
    where = os.environ.get("CONTROLNET_EXT_DSINE")
    if not where:
        pytest.skip("CONTROLNET_EXT_DSINE names no checkout of baegwangbin/DSINE @ dd85d6f")
    repo = Path(aux().__file__).parent / "normalbae/nets/submodules/efficientnet_repo"  # holds geffnet
    monkeypatch.syspath_prepend(str(repo))
    import geffnet

    create = geffnet.create_model
    monkeypatch.setattr(geffnet, "create_model", lambda name, pretrained: create(name, pretrained=False))
    sys.path.remove(str(repo))
    monkeypatch.syspath_prepend(where)
    from models.dsine import DSINE

    theirs = DSINE().eval()
    theirs.load_state_dict(state)
    ours = dsine.load({f"module.{key}": tensor for key, tensor in state.items()}).eval()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    f, u, v = view = camera(64, 96, 60)
    intrinsics = torch.tensor([[f, 0, u - 0.5], [0, f, v - 0.5], [0, 0, 1]]).repeat(2, 1, 1)
    with torch.inference_mode():
        for result, y in zip(ours(x, view), theirs(x, intrinsics), strict=True):
            assert y.std() > 0.1
            torch.testing.assert_close(result, y, atol=1e-4, rtol=0)  # quaternions there: 5.8e-5 measured


def test_vectors_turn_around_their_axes():
    draw = torch.Generator().manual_seed(0)
    n, axes = (F.normalize(torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64), dim=1) for _ in range(2))
    angles = torch.rand(2, 1, 4, 5, generator=draw, dtype=torch.float64) * 3
    x, y, z = (axes * angles).unbind(1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    expected = (torch.matrix_exp(skew) @ n.permute(0, 2, 3, 1)[..., None])[..., 0].permute(0, 3, 1, 2)
    torch.testing.assert_close(dsine._rotate_normals(n, axes, angles), expected)
    torch.testing.assert_close(dsine._rotate_normals(n, torch.zeros_like(axes), angles), n)


def test_axes_lie_in_the_plane_and_are_seen_as_the_steps():
    draw = torch.Generator().manual_seed(0)
    n = F.normalize(torch.randn(1, 3, 25, 4, 5, generator=draw, dtype=torch.float64), dim=1)
    uv = torch.randn(1, 2, 25, 4, 5, generator=draw, dtype=torch.float64)
    steps = torch.randn(1, 2, 25, 4, 5, generator=draw, dtype=torch.float64) * 1e-6
    axes = dsine._compute_rotation_axes(n, steps, uv)
    assert (n * axes).sum(dim=1).abs().max() < 1e-9
    seen = axes[:, :2] - uv * axes[:, 2:]  # how (u, v, 1) Z moves in the image, at Z = 1
    torch.testing.assert_close(F.normalize(seen, dim=1), F.normalize(steps, dim=1), atol=1e-3, rtol=0)


def test_normals_face_the_viewer():
    rays = F.normalize(torch.tensor([0.5, -0.2, 1.0]), dim=0).view(1, 3, 1, 1)
    for n in ((0, 0, 1.0), (0.6, 0, -0.8), (1, 0, 0.0), (-1, 0, 0.0)):
        n = torch.tensor(n).view(1, 3, 1, 1)
        seen = dsine._clamp_to_visible(n, rays)
        if (n * rays).sum() >= 0.01:
            torch.testing.assert_close(seen, n)
        else:
            across = n - rays * (n * rays).sum()
            torch.testing.assert_close(seen, F.normalize(across + 0.01 * rays, dim=1))


def test_a_map_is_the_networks_normals_in_colour(state):
    shelf = Shelf(state)
    net = dsine.load(state).eval()
    made = preprocess("normal_dsine", IMAGE, library=shelf, fov=45, iterations=2)
    padded = np.pad(IMAGE, ((13, 13), (3, 3), (0, 0)))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(padded) / 255 - mean) / deviation).permute(2, 0, 1)[None]
    view = camera(70, 90, 45) + torch.tensor([0, 3, 13])
    with torch.inference_mode():
        results = net(x, view, 2)
    assert len(results) == 3
    expected = results[-1][0, :, 13:83, 3:93].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(made.values, expected, atol=2e-3)  # channels last: float32's last bits, then refined
    np.testing.assert_array_equal(made.pixels, encode_normals(made.values))
    np.testing.assert_allclose(np.linalg.norm(made.values, axis=2), 1, atol=1e-4)

    run = find("normal_dsine").load(library=shelf)
    assert run(IMAGE[:5, :33], iterations=1).values.shape == (5, 33, 3)
    for one, alone in zip(run.run_batch([IMAGE, IMAGE[::-1].copy()], iterations=1), (IMAGE, IMAGE[::-1]), strict=True):
        np.testing.assert_allclose(one.values, run(alone.copy(), iterations=1).values, atol=2e-3)


def test_all_tensors_are_taken_and_no_others(state):
    key = next(iter(state))
    for broken in (state | {"more": torch.zeros(1)}, state | {key: torch.zeros(7)}):
        with pytest.raises(RuntimeError, match=r"more|size mismatch"):
            dsine.load(broken)
    with pytest.raises(RuntimeError, match="Missing key"):
        dsine.load({name: tensor for name, tensor in state.items() if name != key})
