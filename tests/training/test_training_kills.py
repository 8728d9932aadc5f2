"""Kills of a training at every operation on files, and two trainings in one folder."""

import itertools
import json
import os
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from killing import Killed, contents, killed_at
from torch import nn

from controlnet_ext.cli.commands import train as command
from controlnet_ext.files.disk import lock_folder
from controlnet_ext.models.state_dict import saving
from controlnet_ext.training.config import TrainingSchedule
from controlnet_ext.training.job import TrainingResult
from controlnet_ext.training.loop import train
from controlnet_ext.training.output import TrainingOutput
from controlnet_ext.training.stopping import Decision
from controlnet_ext.training.work_folder import check_work_folder, open_work_folder, read_log, remove_output_leftovers

WORK, OUT = Path("out.safetensors.training"), Path("out.safetensors")
SETTINGS = {"steps": 2, "seed": 0}


class Line(nn.Linear):
    """A network that `save_ldm` writes."""

    LAYOUTS = {"ldm": lambda tensors: tensors}  # noqa: RUF012


class LineJob:
    """A job that fits y = 2 x."""

    def fit(self, schedule, work, monitor):
        torch.manual_seed(0)

        def loss(net, step, batch):
            x = torch.full((2, 1), step + 1.0)
            return ((net(x) - 2 * x) ** 2).mean()

        def keep_last(rows):
            return Decision(rows[-1]["step"])

        net = train(Line(1, 1), loss, lambda net, step: {"weight": net.weight.item()}, schedule, work, keep_last)
        return TrainingResult(net, schedule.steps, True, "fits")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saving, "build_metadata", lambda net: {})
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def run(steps=2):
    """What the command does once everything is loaded; None where OUT is there already."""
    settings = {**SETTINGS, "steps": steps}
    output = TrainingOutput.parse(str(OUT))
    remove_output_leftovers(WORK, OUT, output.temp_prefix)
    if OUT.exists():
        return None
    check_work_folder(WORK, settings)
    options = Namespace(output=str(OUT), overwrite=False, map="canny", steps=steps, minutes=1e9)
    schedule = TrainingSchedule(steps, evaluation_interval=1)
    with open_work_folder(WORK, settings):
        return command._train(options, output, LineJob(), schedule, WORK, {}, None)


def test_a_training_killed_at_any_operation_on_files_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert run() == 0
    whole = contents(".")
    assert sorted(os.listdir(WORK)) == [
        "arguments.json",
        "best_2.safetensors",
        "checkpoint.safetensors",
        "lock",
        "log.jsonl",
    ]
    for count in itertools.count():
        (tmp_path / str(count)).mkdir()
        monkeypatch.chdir(tmp_path / str(count))
        try:
            with killed_at(count, monkeypatch) as done:
                run()
            break
        except Killed:
            assert run() in (0, None) and contents(".") == whole, f"killed at operation {count}, after {done}"
    assert count > 25 and {"mkdir", "open", "os.open", "write", "fsync", "replace", "link", "unlink"} <= set(done)


def test_a_result_that_cannot_be_written_is_a_failure_of_work_and_written_by_the_same_command(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingOutput, "write", lambda *_, **more: os.write(-1, b""))
        assert run() == 1
    assert "controlnet-ext: [Errno 9] Bad file descriptor\n" in capsys.readouterr().err and not OUT.exists()
    assert run() == 0 and OUT.exists()


def test_a_folder_of_nothing_but_part_files_is_new_and_another_file_makes_it_none():
    WORK.mkdir()
    (WORK / f".{'0' * 16}.part").write_bytes(b"half")
    (WORK / "lock").touch()
    assert run() == 0 and not list(WORK.glob(".*"))
    OUT.unlink()
    for path in WORK.iterdir():
        path.unlink()
    (WORK / "notes.part").touch()
    with pytest.raises(ValueError, match="exists and is no folder of a training: name another with --work"):
        run()


def test_a_second_training_in_the_folder_is_refused_and_touches_nothing():
    with open_work_folder(WORK, SETTINGS):
        part = WORK / f".{'0' * 16}.part"
        part.write_bytes(b"being written")
        other = Path(f".{OUT.name}.{'0' * 16}.part")
        other.write_bytes(b"being written too")
        with pytest.raises(ValueError, match="another process works at this training: it has locked"):
            run()
        assert part.exists() and other.exists()
    assert run() == 0 and not part.exists() and not other.exists()


def test_more_steps_go_on_from_where_the_training_is(monkeypatch):
    assert run(steps=3) == 0
    OUT.unlink()
    steps = []
    update = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *given: (steps.append(1), update(*given))[1])
    assert run(steps=5) == 0 and len(steps) == 2
    assert [row["step"] for row in read_log(WORK / "log.jsonl")] == [1, 2, 3, 4, 5]
    assert json.loads((WORK / "arguments.json").read_text())["steps"] == 5
    OUT.unlink()
    with pytest.raises(ValueError, match=re.escape("another steps (5, now 4)")):
        run(steps=4)


def test_a_log_that_was_cut_short_is_repaired(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 2, "loss": 1}\n{"step": 2, "loss": 3}\n[]\n{"step": 4, "lo')
    assert read_log(log) == [{"step": 2, "loss": 3}]
    assert read_log(tmp_path / "none.jsonl") == []


@pytest.mark.skipif(os.name == "nt", reason="locks")
def test_a_lock_is_free_again_after_its_process(tmp_path):
    again = lock_folder(tmp_path, "job")
    with lock_folder(tmp_path, "job"), pytest.raises(ValueError, match="another process works at this job"), again:
        pass
    with lock_folder(tmp_path, "job"):
        pass
