import json

import pytest
import torch
from torch import nn

from controlnet_ext.training.checkpoints import CHECKPOINT_FILE, read_best_weights
from controlnet_ext.training.config import TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.stopping import Decision
from controlnet_ext.training.work_folder import LOG_FILE


def _net() -> nn.Module:
    torch.manual_seed(0)
    inner = [part for _ in range(4) for part in (nn.Linear(8, 8), nn.SiLU())]  # over ten tensors: "10" sorts before "2"
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), *inner, nn.Linear(8, 1))


def _loss(net, step, batch):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step * 7 + batch))
    return (net(x).float() - x.sum(1, keepdim=True)).square().mean()


def _held_out(net, step=None):
    return {"held_out": _loss(net, 10_000, 0).item()}


def test_training_learns_and_writes_a_row_for_each_measurement(tmp_path):
    net = _net()
    before = _held_out(net)["held_out"]
    averaged = train(net, _loss, _held_out, TrainingSchedule(300, 1e-2, evaluation_interval=100), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [100, 200, 300]
    assert rows[-1]["held_out"] == _held_out(averaged)["held_out"] < before / 4


def test_a_run_that_was_stopped_twice_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = train(
        _net(), _loss, _held_out, TrainingSchedule(20, accumulation_steps=2, evaluation_interval=5), tmp_path / "whole"
    )

    class Killed(Exception):
        pass

    def dies_at(last):
        def loss(net, step, batch):
            if step == last:
                raise Killed
            return _loss(net, step, batch)

        return loss

    for last in (8, 13):
        with pytest.raises(Killed):
            train(
                _net(),
                dies_at(last),
                _held_out,
                TrainingSchedule(20, accumulation_steps=2, evaluation_interval=5),
                tmp_path / "cut",
            )
    resumed = train(
        _net(), _loss, _held_out, TrainingSchedule(20, accumulation_steps=2, evaluation_interval=5), tmp_path / "cut"
    )
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "whole" / LOG_FILE).read_text() == (tmp_path / "cut" / LOG_FILE).read_text()


def test_minutes_that_run_out_leave_a_checkpoint(tmp_path):
    assert train(_net(), _loss, _held_out, TrainingSchedule(50, max_minutes=1e-9), tmp_path) is None
    assert (tmp_path / CHECKPOINT_FILE).exists()
    assert json.loads((tmp_path / LOG_FILE).read_text())["step"] == 1


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        train(_net(), lambda *_: _loss(*_) * float("nan"), _held_out, TrainingSchedule(5), tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"learning_rate": -1.0},
        {"ema_decay": 1.0},
        {"accumulation_steps": 0},
        {"warm_up_steps": -1},
        {"decay_share": 1.1},
        {"weight_decay": -0.1},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="training"):
        TrainingSchedule(**{"steps": 10, **wrong})


def test_the_learning_rate_rises_stays_and_falls():
    schedule = TrainingSchedule(100, 2.0, warm_up_steps=10, decay_share=0.5)
    assert [schedule.learning_rate_at(step) for step in (0, 9, 50, 75, 99)] == [0.2, 2.0, 2.0, 1.0, 0.04]
    level = TrainingSchedule(100, 2.0, warm_up_steps=0, decay_share=0)
    assert {level.learning_rate_at(step) for step in range(100)} == {2.0}


def test_a_part_without_gradients_stops_the_training(tmp_path):
    """As those that torch.compile once gave all but the first level of the embedded UNet."""

    def loss(net, step, batch):
        return _loss(nn.Sequential(net[0], _Cut(), net[1:]), step, batch)

    with pytest.raises(ValueError, match=r"2 of 12 tensors have learnt nothing in 100 steps, first 0\.weight"):
        train(_net(), loss, _held_out, TrainingSchedule(150), tmp_path)


class _Cut(nn.Module):
    def forward(self, x):
        return x.detach()


def _stop_after_two_without_gain(rows):
    best = min(rows, key=lambda row: row["held_out"])["step"]
    later = [row["step"] for row in rows if row["step"] > best]
    return Decision(best, "no gain" if later else None, f"stops at {rows[-1]['step']}" if len(later) == 2 else None)


def test_a_stop_rule_ends_the_training_and_keeps_the_best_weights(tmp_path, capsys):
    figures = {5: 3.0, 10: 1.0, 15: 2.0, 20: 2.0}
    seen = {}

    def evaluate(net, step):
        seen[step] = {name: t.clone() for name, t in net.state_dict().items()}
        return {"held_out": figures[step]}

    def run():
        return train(
            _net(), _loss, evaluate, TrainingSchedule(40, evaluation_interval=5), tmp_path, _stop_after_two_without_gain
        )

    last = run()
    assert capsys.readouterr().err.count("no gain\n") == 2
    for network in (last, run()):  # the second time nothing is left to do
        assert all(torch.equal(seen[20][name], t) for name, t in network.state_dict().items())
        step, best = read_best_weights(tmp_path)
        assert step == 10 and all(torch.equal(seen[10][name], t) for name, t in best.items())
    assert sorted(seen) == [5, 10, 15, 20] and "stops at 20" not in capsys.readouterr().err
