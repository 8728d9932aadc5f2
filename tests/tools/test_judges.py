"""The networks that judge what the embedded model draws learn on the generators' truth."""

import numpy as np
import pytest
import torch

from tools.embedded_model import judges, landscapes, render_worlds


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
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    render_worlds.render_set(folder, "landscapes", "training", range(3, 7), 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "SIDE", 32)
        patch.setattr(judges, "BATCH", 4)
        yield judges.JudgeSet.read(folder, "training", ["landscapes"])


@pytest.mark.parametrize("name", judges.JUDGES)
def test_a_judge_learns_a_batch_by_heart(name, data):
    create, compute_loss, measure, _ = judges.JUDGES[name]
    torch.manual_seed(0)
    net = create(8)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = compute_loss(net, data, torch.Generator().manual_seed(0))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(0 <= figure <= 1 for figure in measure(net.eval(), data).values() if not np.isnan(figure))


def test_an_image_and_its_map_are_shifted_alike():
    x = torch.linspace(0, 1, 40).cumsum(0).repeat(2, 1, 40, 1) / 20
    shifted, depth = judges.disturb(x.repeat(1, 3, 1, 1), x, torch.Generator().manual_seed(3))
    assert torch.corrcoef(torch.stack([shifted[:, 0].flatten(), depth.flatten()]))[0, 1] > 0.95
    assert not torch.equal(depth, x)
