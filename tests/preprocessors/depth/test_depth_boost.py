"""LeReS++: controlnet_aux's merging with networks typed out, and its network for merging on random weights."""

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import depth_merge, leres
from controlnet_ext.preprocessors import preprocess
from controlnet_ext.preprocessors.backends.torch import Device, Network
from controlnet_ext.preprocessors.depth.leres import _fit_linear, boost_depth
from lines import aux, random_state, randomised

rng = np.random.default_rng(0)
BUSY = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC)


def depth(x):
    """In place of LeReS, of (B, 3, H, W)."""
    grey = (x * torch.tensor([0.3, 0.5, 0.2])[:, None, None]).sum(dim=1, keepdim=True)
    return torch.nn.functional.avg_pool2d(grey, 9, 1, 4) + x[:, :1].sin()


def merge(x):
    """In place of the network for merging, of (B, 2, H, W)."""
    return (x[:, :1] * 0.7 + (x[:, 1:] * 0.3) ** 3).tanh()


def estimate(image, size):
    x = cv2.resize(np.ascontiguousarray(image[..., ::-1]), (size, size)).astype(np.float32)
    x = (x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    y = depth(torch.from_numpy(x).permute(2, 0, 1)[None])[0, 0].numpy()
    return cv2.resize(y, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def merged(coarse, fine):
    return (merge(torch.from_numpy(np.stack([coarse, fine])[None] * 2 - 1)[:, :])[0, 0].numpy() + 1) / 2


class TheirDepth(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.on = torch.nn.Parameter(torch.zeros(1))
        self.depth_model = depth


class TheirMerge:
    def set_input(self, outer, inner):
        outer, inner = (torch.from_numpy(x)[None, None] for x in (outer, inner))
        self.x = torch.cat([(x - x.min()) / (x.max() - x.min()) * 2 - 1 for x in (outer, inner)], dim=1)

    def test(self):
        self.result = merge(self.x)

    def get_current_visuals(self):
        return {"fake_B": self.result}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Polyfit")
def test_parts_are_merged_as_controlnet_aux_does():
    aux()
    from controlnet_aux.leres.leres.depthmap import estimateboost

    quiet = np.full((500, 560, 3), 90, np.uint8)  # edges in one place: parts are merged; elsewhere: only the whole
    cv2.circle(quiet, (250, 210), 50, (220, 40, 90), -1)
    quiet[210:250, 250:300] = rng.integers(0, 256, (40, 50, 3))
    for image in (quiet, cv2.resize(BUSY, (600, 480))):
        expected = estimateboost(image, TheirDepth(), 0, TheirMerge(), max(image.shape[:2]))
        np.testing.assert_allclose(boost_depth(image, estimate, merged), expected, atol=1e-5)  # 3e-7 measured


def test_the_network_for_merging_equals_controlnet_auxs():
    aux()
    from controlnet_aux.leres.pix2pix.models.networks import UnetGenerator, get_norm_layer

    with torch.device("meta"):
        whole, ours = UnetGenerator(2, 1, 10, 64, get_norm_layer("none")), depth_merge.DepthMergeNetwork()
    assert {k: t.shape for k, t in whole.state_dict().items()} == {k: t.shape for k, t in ours.state_dict().items()}
    theirs, state = randomised(UnetGenerator(2, 1, 6, 8, get_norm_layer("none")))
    small = depth_merge.DepthMergeNetwork(6, 8)
    small.load_state_dict(state)
    x = torch.rand(2, 2, 128, 64) * 2 - 1
    with torch.inference_mode():
        y = theirs(x.clone())
        assert y.std() > 0.1
        torch.testing.assert_close(small(x), y, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("error")
def test_a_line_is_fitted():
    x = rng.random((50, 70)).astype(np.float32)
    np.testing.assert_allclose(_fit_linear(x, 3 * x + 2), 3 * x + 2, rtol=1e-5)
    np.testing.assert_allclose(_fit_linear(np.ones_like(x), x), x.mean(), rtol=1e-5)  # one of the unknowns is open


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (200, 64)])
def test_every_size_has_depth(height, width):
    for image in (np.zeros((height, width, 3), np.uint8), np.resize(BUSY, (height, width, 3))):
        result = boost_depth(image, estimate, merged)
        assert result.shape == (height, width) and np.isfinite(result).all()


class Shelf:
    """Random weights of both networks, small ones."""

    def load_network(self, file, build, device="cpu"):
        if file.name == "res101.pth":
            with torch.device("meta"):
                shapes = leres.LeReS((1, 1, 1, 1)).state_dict()
            return Network.from_module(leres.load(random_state(shapes)), Device.coerce(device))
        return Network.from_module(randomised(depth_merge.DepthMergeNetwork(5, 4))[0], Device.coerce(device))


def test_a_boosted_map_is_depth():
    made = preprocess("depth_leres++", BUSY, library=Shelf(), remove_background=10)
    assert made.kind == "depth" and made.values.shape == made.pixels16.shape == (64, 96)
    way = (made.values - made.values.min()) / np.ptp(made.values)
    assert (made.pixels16[way > 0.901] == 0).all() and made.pixels16.max() == 65535


def test_all_tensors_are_taken_and_no_others():
    with torch.device("meta"):
        state = depth_merge.DepthMergeNetwork().state_dict()
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in state.items()}
    depth_merge.load(state)
    for broken in (state | {"more": torch.zeros(1)}, dict(list(state.items())[1:])):
        with pytest.raises(RuntimeError, match=r"more|Missing key"):
            depth_merge.load(broken)
