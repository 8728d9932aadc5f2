"""What the tests of networks for lines share: the test assets, controlnet_aux, and random weights."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.preprocessors.backends.torch import Device, Network

from controlnet_ext.files.image_reader import read_image

ASSETS = Path(os.environ.get("CONTROLNET_EXT_ASSETS", Path(__file__).parents[3] / "shared" / "assets"))


def assets():
    """The folder of test assets; the test is skipped where there is none."""
    if not ASSETS.is_dir():
        pytest.skip(f"no test assets at {ASSETS}")
    return ASSETS


def aux():
    """controlnet_aux; the test is skipped where it does not import."""
    try:
        import controlnet_aux
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        pytest.skip(f"controlnet_aux does not import: {error}")
    return controlnet_aux


def random_state(shapes, seed=0):
    """A state with the shapes of another, every tensor random: weights so that the signal keeps its size, variances
    positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in shapes.items():
        if not tensor.is_floating_point():
            state[key] = torch.ones(tensor.shape, dtype=tensor.dtype)
        elif key.endswith("running_var"):
            state[key] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            fan = tensor[0].numel() if tensor.ndim > 1 else 4
            state[key] = torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5
    return state


def randomised(net):
    """The network with every tensor random, and its state."""
    state = random_state(net.state_dict())
    net.load_state_dict(state)
    return net.eval(), state


class Shelf:
    """In place of a Library: its weights are these tensors, whatever file is asked for."""

    def __init__(self, tensors):
        self.tensors = tensors

    def load_network(self, file, build, device="cpu"):
        return Network.from_module(build(dict(self.tensors)), Device.coerce(device))


def random_shelf(make):
    """A shelf of random weights for the network that `make` makes."""
    with torch.device("meta"):
        shapes = make().state_dict()
    return Shelf(random_state(shapes))


def golden(name):
    """(outputs of the authors' code, their input BGR (1, 3, 256, 256) in 0..255)"""
    image = read_image(assets() / "golden" / "input_256_bgr.png")[..., ::-1]  # a PNG's colours are RGB
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    return [torch.from_numpy(y) for y in np.load(assets() / "golden" / name).values()], x


def asset_image(name, size=None):
    """An image of the assets, (width, height) large."""
    image = read_image(assets() / "images" / name)
    return image if size is None else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def controlnets_size(image, resolution):
    """ControlNet's demo, which made the published maps, takes both sides to multiples of 64."""
    k = resolution / min(image.shape[:2])
    height, width = (64 * round(side * k / 64) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LANCZOS4 if k > 1 else cv2.INTER_AREA)


def likeness(one, published):
    """The correlation of a map (H, W) with a published one, which a browser made smaller."""
    other = read_image(assets() / "maps" / published)[..., 0]
    small = cv2.resize(one, other.shape[::-1], interpolation=cv2.INTER_AREA)
    return np.corrcoef(small.ravel(), other.ravel())[0, 1]
