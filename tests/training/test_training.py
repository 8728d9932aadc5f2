import io
import json
import math
import os
import signal
import sys

import pytest
import torch
from torch import nn

from controlnet_ext.files.weights import read_weights
from controlnet_ext.training.checkpoints import CHECKPOINT_FILE, read_best_weights
from controlnet_ext.training.config import Execution, TrainingSchedule
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


def _write_whole_run(folder):
    return train(_net(), _loss, _held_out, TrainingSchedule(6, evaluation_interval=2), folder)


@pytest.mark.skipif(os.name == "nt", reason="limits of a process")
@pytest.mark.parametrize("limit", [2000, 20])  # bytes: for the log and not the checkpoint, for neither
def test_a_full_disk_ends_the_training_and_leaves_the_last_checkpoint(limit, tmp_path):
    import resource

    whole = _write_whole_run(tmp_path / "whole")
    before, seen = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def fill_disk(net, step):
        if step == 4:
            seen.append((tmp_path / "cut" / CHECKPOINT_FILE).read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return _held_out(net)

    try:
        with pytest.raises(OSError, match="File too large"):
            train(_net(), _loss, fill_disk, TrainingSchedule(6, evaluation_interval=2), tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "cut" / CHECKPOINT_FILE).read_bytes() == seen[0]
    assert sorted(os.listdir(tmp_path / "cut")) == [CHECKPOINT_FILE, LOG_FILE]
    resumed = _write_whole_run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "cut" / LOG_FILE).read_text() == (tmp_path / "whole" / LOG_FILE).read_text()


def test_an_interruption_between_measurements_changes_no_row(sigint, tmp_path):
    def interrupt(net, step, batch):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return _loss(net, step, batch)

    _write_whole_run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(_net(), interrupt, _held_out, TrainingSchedule(6, evaluation_interval=2), tmp_path / "cut")
    _write_whole_run(tmp_path / "cut")
    for name in (LOG_FILE, CHECKPOINT_FILE):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_launcher_that_passes_ctrl_c_on_does_not_break_the_checkpoint(sigint, monkeypatch, tmp_path):
    """It goes to all processes of a terminal, and then from torch.distributed.elastic to those that it started."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")

    def interrupt(net, step, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return _loss(net, step, batch)

    with pytest.raises(KeyboardInterrupt):
        train(_net(), interrupt, _held_out, TrainingSchedule(6), tmp_path)
    assert read_weights(tmp_path / CHECKPOINT_FILE).metadata["step"] == "1"


class _PoisonousBackward(torch.autograd.Function):
    """Passes values on, and gradients as NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def test_gradients_that_are_not_finite_stop_the_training_before_they_break_it(tmp_path):
    """Though the loss is finite: one step later the checkpoint could be broken already."""

    def poison(net, step, batch):
        loss = _loss(net, step, batch)
        return _PoisonousBackward.apply(loss) if step == 1 else loss

    names = [f"'{i}.png'" for i in range(10)]
    with pytest.raises(FloatingPointError) as error:
        train(
            _net(),
            poison,
            _held_out,
            TrainingSchedule(5, evaluation_interval=1),
            tmp_path,
            list_suspects=lambda: names,
        )
    assert "the norm of the gradients of step 2 is nan with '0.png', '1.png'" in str(error.value)
    assert "'7.png' and 2 more; " in str(error.value) and str(error.value).endswith("is from before")
    tensors = read_weights(tmp_path / CHECKPOINT_FILE).tensors
    assert all(t.isfinite().all() for t in tensors.values())


def test_a_step_whose_gradients_overflow_in_float16_is_left_out(tmp_path):
    def overflow(net, step, batch):
        return _loss(net, step, batch) * (1e6 if step == 0 else 1)

    def run(folder, steps):
        schedule = TrainingSchedule(steps, evaluation_interval=1, ema_decay=0)
        return train(_net(), overflow, _held_out, schedule, folder, execution=Execution("fp16"))

    first = run(tmp_path / "one", 1)
    assert all(torch.equal(a, b) for a, b in zip(_net().parameters(), first.parameters(), strict=True))
    scale = json.loads(read_weights(tmp_path / "one" / CHECKPOINT_FILE).metadata["scaler"])["scale"]
    assert scale == 2**15  # half of PyTorch's first
    resumed, whole = run(tmp_path / "one", 4), run(tmp_path / "two", 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not torch.equal(next(resumed.parameters()), next(first.parameters()))


def test_without_averages_the_weights_of_the_last_step_are_measured_and_returned(tmp_path):
    network, seen = _net(), []
    schedule = TrainingSchedule(4, ema_decay=0, evaluation_interval=2)
    trained = train(network, _loss, lambda net, step: seen.append(net) or {}, schedule, tmp_path)
    assert trained is network and all(net is network for net in seen)
    assert not {name for name in read_weights(tmp_path / CHECKPOINT_FILE).tensors if name.startswith("averaged")}
    again = train(_net(), _loss, lambda *_: {}, schedule, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_progress_bar_shows_rate_and_time_left_on_a_terminal_alone(is_terminal, tmp_path, monkeypatch):
    class Stream(io.StringIO):
        def isatty(self):
            return is_terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    train(_net(), _loss, _held_out, TrainingSchedule(4, evaluation_interval=2), tmp_path)
    rows = [line for line in stream.getvalue().replace("\r", "\n").splitlines() if line.startswith("step ")]
    assert [row.split()[1] for row in rows] == ["2", "4"]
    assert ("4/4" in stream.getvalue()) is is_terminal
    assert ("step/s" in stream.getvalue() or "s/step" in stream.getvalue()) is is_terminal
    assert is_terminal or len(stream.getvalue().splitlines()) == 2
