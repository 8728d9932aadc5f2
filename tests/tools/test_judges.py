"""The networks that judge what the embedded model draws learn on the generators' truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from tools.embedded_model import judges, landscape_plan, landscapes, render_worlds


@pytest.mark.parametrize(
    "caption, labels",
    [
        (
            "landscape of hills with leafy trees in autumn at sunset under a clear sky",
            {"thing": None, "season": "autumn", "time": "sunset"},
        ),
        (
            "glossy render of a small blue car on the left side on sand under an orange sky",
            {"thing": "car", "season": None, "time": None},
        ),
        ("glossy render of a rose and a blue eagle on a red ground", {"thing": None, "season": None, "time": None}),
        ("flat drawing of a red star on a black ground", {"thing": None, "season": None, "time": None}),
    ],
)
def test_labels_of_a_scene_are_read_from_its_caption(caption, labels):
    assert judges.read_labels(caption) == labels


def test_each_rendered_landscape_has_a_season_and_a_time():
    made = landscapes.render(5, 32)
    labels = judges.read_labels(made.caption)
    assert labels["time"] == made.time
    assert labels["season"] in (made.season, None)  # deserts have none


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    render_worlds.render_set(folder, "landscapes", "training", range(3, 7), 32)
    return folder


@pytest.fixture(scope="module")
def data(worlds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "SIDE", 32)
        patch.setattr(judges, "BATCH", 4)
        yield {
            name: judges.JudgeSet.read(worlds, "training", replace(judge, domains=("landscapes",)), 100)
            for name, judge in judges.JUDGES.items()
        }


@pytest.mark.parametrize("name", judges.JUDGES)
def test_a_judge_learns_a_batch_by_heart(name, data):
    judge, data = judges.JUDGES[name], data[name]
    torch.manual_seed(0)
    net = judge.create(8)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = judge.compute_loss(net, data, torch.Generator().manual_seed(0))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0 < losses[-1] < 0.9 * losses[0]
    assert all(0 <= figure <= 1 for figure in judge.measure(net.eval(), data).values() if not np.isnan(figure))


def test_an_image_and_its_map_are_shifted_alike():
    x = torch.linspace(0, 1, 40).cumsum(0).repeat(2, 1, 40, 1) / 20
    shifted, depth = judges.disturb(x.repeat(1, 3, 1, 1), x, torch.Generator().manual_seed(3))
    assert torch.corrcoef(torch.stack([shifted[:, 0].flatten(), depth.flatten()]))[0, 1] > 0.95
    assert not torch.equal(depth, x)


def test_classes_of_a_map_are_read_back():
    classes = np.arange(len(landscape_plan.CLASSES), dtype=np.uint8)[None]
    assert np.array_equal(render_worlds.read_class_map(render_worlds.draw_class_map(classes)), classes)


def test_images_that_a_vae_gives_back_keep_their_labels_and_maps(worlds, data):
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    judge = replace(judges.JUDGES["depth"], domains=("landscapes",))
    given_back = judges.JudgeSet.read(worlds, "training", judge, 100, vae)
    assert given_back.images.shape == data["depth"].images.shape
    assert not np.array_equal(given_back.images, data["depth"].images)
    assert np.array_equal(given_back.maps, data["depth"].maps)
    assert torch.equal(given_back.labels["time"], data["depth"].labels["time"])


def test_a_judge_is_loaded_as_it_was_saved(tmp_path):
    torch.manual_seed(0)
    net = judges.JUDGES["segmentation"].create()
    (tmp_path / "segmentation").mkdir()
    save_file(net.state_dict(), tmp_path / "segmentation" / "judge.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    loaded = judges.load_judge("segmentation", tmp_path)
    assert np.array_equal(judges.draw_classes(loaded, images), judges.draw_classes(net.eval(), images))


def test_the_things_of_a_scene_share_its_label():
    assert judges.read_kinds("glossy render of a rose and a blue eagle on a red ground") == ["eagle", "rose"]
    assert judges.read_kinds("landscape of hills with a rose") == []


def test_a_batch_is_mostly_things_where_there_are_landscapes_too():
    is_thing = torch.arange(20) < 10
    images = np.zeros((20, 32, 32, 3), np.uint8)
    images[10:] = 255
    labels = {head: torch.where(is_thing, judges.NO_LABEL, 0) for head in ("season", "time")}
    labels["thing"] = torch.where(is_thing, 3, judges.NO_LABEL)
    kinds = torch.zeros(20, len(judges.KINDS), dtype=torch.bool)
    kinds[:10, 3] = True
    data = judges.JudgeSet(images, labels, kinds, None)
    inputs = []

    def net(x):
        inputs.append(x)
        return {head: torch.zeros(len(x), len(names)) for head, names in judges.HEADS.items()}

    loss = judges.classes_loss(net, data, torch.Generator().manual_seed(0))
    chance = sum(np.log(len(names)) for names in judges.HEADS.values())
    assert loss.item() == pytest.approx(chance, rel=1e-5)
    means = inputs[0].mean((1, 2, 3))
    assert (means < 0).tolist() == [True] * (judges.BATCH * 3 // 4) + [False] * (judges.BATCH // 4)
