"""LeReS: controlnet_aux's network and maps on the same random weights, batches, sizes and strict loading."""

import cv2
import numpy as np
import pytest
import torch
from controlnet_ext.annotators import leres
from controlnet_ext.preprocessors import find, preprocess
from lines import Shelf, aux, random_state

IMAGE = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8), (128, 64), interpolation=cv2.INTER_CUBIC
)
SMALL = (1, 1, 2, 1)


@pytest.fixture(scope="module")
def state():
    with torch.device("meta"):
        shapes = leres.LeReS(SMALL).state_dict()
    return random_state(shapes)


def theirs(state):
    aux()
    from controlnet_aux.leres.leres.multi_depth_model_woauxi import RelDepthModel
    from controlnet_aux.leres.leres.Resnext_torch import Bottleneck, ResNet

    net = RelDepthModel(backbone="resnext101")
    with torch.device("meta"):
        whole = leres.LeReS().state_dict()
    assert {k: t.shape for k, t in net.state_dict().items()} == {k: t.shape for k, t in whole.items()}
    net.depth_model.encoder_modules.encoder = ResNet(Bottleneck, list(SMALL), groups=32, width_per_group=8)
    net.load_state_dict(state)
    return net.eval()


def test_depth_and_maps_are_controlnet_auxs(state):
    net = theirs(state)
    ours = leres.load({f"module.{key}": tensor for key, tensor in state.items()}).eval()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result, y = ours(x), net.depth_model(x)
    assert y.std() > 0.01
    torch.testing.assert_close(result, y, atol=1e-5 * y.abs().max().item(), rtol=0)  # float32's last bits

    import controlnet_aux

    detector = controlnet_aux.LeresDetector(net, None)
    for near, background in ((0, 0), (30, 0), (12.5, 40)):
        made = preprocess("depth_leres", IMAGE, library=Shelf(state), remove_near=near, remove_background=background)
        other = detector(IMAGE, near, background, detect_resolution=64, image_resolution=64, output_type="np")
        off = np.abs(made.pixels.astype(int) - other)
        # theirs rounds to 8 bits before it cuts: a value at a limit may fall on its other side
        assert np.ptp(other) > 50 and (off > 1).mean() < (0.01 if near or background else 1e-9)
        assert made.values.shape == IMAGE.shape[:2] and made.values.dtype == np.float32


def test_near_is_white_and_ends_are_cut(state):
    made = {
        cuts: preprocess("depth_leres", IMAGE, library=Shelf(state), remove_near=cuts[0], remove_background=cuts[1])
        for cuts in ((0, 0), (25, 10), (100, 100))
    }
    plain = made[0, 0]
    way = (plain.values - plain.values.min()) / np.ptp(plain.values)  # 0 nearest, 1 farthest
    assert np.abs(plain.pixels16 - (1 - way) * 65535).max() < 2
    cut = made[25, 10]
    assert (cut.pixels16[way < 0.249] == 65535).all() and (cut.pixels16[way > 0.901] == 0).all()
    between = (way > 0.251) & (way < 0.899)
    np.testing.assert_array_equal(cut.pixels16[between], plain.pixels16[between])
    assert not made[100, 100].pixels16.any()


def test_every_size_and_batch(state):
    run = find("depth_leres").load(library=Shelf(state))
    for height, width in ((1, 1), (5, 33), (40, 70)):
        assert run(IMAGE[:height, :width]).values.shape == (height, width)
    assert run(IMAGE, resolution=80).pixels16.shape == (80, 160)
    for one, image in zip(run.run_batch([IMAGE, IMAGE[::-1].copy()]), (IMAGE, IMAGE[::-1].copy()), strict=True):
        alone = run(image).values
        np.testing.assert_allclose(one.values, alone, atol=1e-5 * np.abs(alone).max())


def test_all_tensors_are_taken_and_no_others(state):
    key = next(iter(state))
    for broken in (state | {"more": torch.zeros(1)}, state | {key: torch.zeros(7)}):
        with pytest.raises(RuntimeError, match=r"more|size mismatch"):
            leres.load(broken)
    with pytest.raises(RuntimeError, match="Missing key"):
        leres.load({name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(RuntimeError, match="Missing key"):
        leres.load({})
