"""A training's reports elsewhere: sentences, event files of TensorBoard, runs of wandb."""

from __future__ import annotations

import json
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
from test_stopping import make_rows

from controlnet_ext.training import monitoring
from controlnet_ext.training.monitoring import MonitorSettings, TensorBoardLog, TrainingMonitor
from controlnet_ext.training.stopping import PatienceRule

ROWS = make_rows([0.9, 0.7, 0.6, 0.67, 0.7], [0.8, 0.6, 0.5, 0.4, 0.3])


def test_a_change_of_the_fit_is_said_once_and_the_report_is_written_each_time(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(monitoring, "write_report", written.append)
    monkeypatch.setattr(monitoring, "_is_installed", lambda name: False)
    monitor = TrainingMonitor(tmp_path, MonitorSettings(rule=PatienceRule.parse("gain:2")))
    decisions = [monitor(ROWS[: i + 1]) for i in range(len(ROWS))]
    assert [decision.best_step for decision in decisions] == [200, 400, 600, 600, 600]
    assert (
        decisions[3].message == "overfitting since step 800: training 0.4, held-out 0.67 and rising; best was step 600"
    )
    assert decisions[4].message is None and decisions[4].reason.startswith("stopped after step 1,000")
    assert decisions[3].reason is None and written == [tmp_path] * 5


def test_tensorboard_reads_each_measurement_once_also_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard of the extra train")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for shown in (ROWS[:2], ROWS):  # the second begins as a resumed training does
        log = TensorBoardLog(tmp_path)
        for row in shown:
            log.add(row)
        log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("held_out")]
    assert found == [(row["step"], pytest.approx(row["held_out"])) for row in ROWS]


def test_wandb_gets_the_figures_by_step_and_a_resumed_training_its_run_again(tmp_path, monkeypatch):
    runs, module = [], types.ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)

    class Run:
        def __init__(self, **given):
            self.given, self.logged = given, []
            runs.append(self)

        def log(self, figures, step):
            self.logged.append((step, json.dumps(figures)))

    module.init, module.util = Run, types.SimpleNamespace(generate_id=lambda: f"run{len(runs)}")
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(monitoring, "write_report", lambda folder: [])
    monkeypatch.setattr(monitoring, "_is_installed", lambda name: name == "wandb")
    for last in (2, 3):
        monitor = TrainingMonitor(tmp_path, MonitorSettings(wandb_project="mine"))
        for count in (last - 1, last):
            monitor(ROWS[:count])
    assert [run.given["id"] for run in runs] == ["run0", "run0"] and runs[0].given["project"] == "mine"
    assert [step for step, _ in runs[1].logged] == [200, 400, 600] and '"held_out": 0.6' in runs[1].logged[2][1]
