"""The networks of normals: controlnet_aux's on the same random weights, batches, sizes and strict loading."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import normal_bae
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.depth.normals_of_depth import encode_normals
from lines import Shelf, aux, random_state

rng = np.random.default_rng(0)
IMAGE = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (90, 70), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def bae():
    with torch.device("meta"):
        shapes = normal_bae.NormalBaeNetwork().state_dict()
    return random_state(shapes)


def test_normal_bae_equals_controlnet_auxs(bae):
    aux()
    from controlnet_aux.normalbae.nets.NNET import NNET

    theirs = NNET(SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7)).eval()
    theirs.load_state_dict(bae)
    ours = normal_bae.load({f"module.{key}": tensor for key, tensor in bae.items()}).eval()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for result, y in zip(ours(x), theirs(x)[0], strict=True):
            assert y.std() > 0.1
            # a convolution of one pixel comes before the enlargement: float32's last bits, 2.2e-6 measured
            torch.testing.assert_close(result, y, atol=2e-5, rtol=0)

    import controlnet_aux

    image = IMAGE[:64, :64]
    expected = controlnet_aux.NormalBaeDetector(theirs)(image, 64, 64, output_type="np")
    made = preprocess("normal_bae", image, library=Shelf({f"module.{key}": tensor for key, tensor in bae.items()}))
    difference = np.abs(made.pixels.astype(int) - expected)
    assert expected.std() > 5 and difference.max() <= 1 and (difference > 0).mean() < 1e-3  # cut after other last bits


def test_a_map_is_the_networks_normals_in_colour(bae):
    shelf = Shelf({f"module.{key}": tensor for key, tensor in bae.items()})
    net = normal_bae.load(bae).eval()
    image = IMAGE[:64, :64]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(image) / 255 - mean) / deviation).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = net(x)[-1][0, :3].permute(1, 2, 0).numpy()
    made = preprocess("normal_bae", image, library=shelf)
    assert made.kind == "normals"
    np.testing.assert_allclose(made.values, expected, atol=1e-4)
    np.testing.assert_array_equal(made.pixels, encode_normals(made.values))
    np.testing.assert_allclose(np.linalg.norm(made.values, axis=2), 1, atol=1e-4)

    run = find("normal_bae").load(library=shelf)
    for height, width in ((1, 1), (5, 33), (70, 90)):
        assert run(IMAGE[:height, :width]).values.shape == (height, width, 3)
    both = run.run_batch([IMAGE, IMAGE[::-1].copy()])
    for one, alone in zip(both, (IMAGE, IMAGE[::-1].copy()), strict=True):
        np.testing.assert_allclose(one.values, run(alone).values, atol=1e-3)  # sums in another order


def test_normal_bae_takes_all_tensors_and_no_others():
    with torch.device("meta"):
        state = normal_bae.NormalBaeNetwork().state_dict()
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in state.items()}
    normal_bae.load(state)
    key = next(iter(state))
    for broken in (state | {"more": torch.zeros(1)}, state | {key: torch.zeros(7)}):
        with pytest.raises(RuntimeError, match=r"more|size mismatch"):
            normal_bae.load(broken)
    del state[key]
    with pytest.raises(RuntimeError, match="Missing key"):
        normal_bae.load(state)
