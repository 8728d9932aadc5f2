"""Two processes that train together, forked and joined by gloo, against one with the doubled batch."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import nn

from controlnet_ext.training.config import Execution, TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.processes import Processes, check_launch, count_processes, is_first_on_machine, read_rank
from controlnet_ext.training.stopping import Decision

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
BATCH = 8  # of one process
SCHEDULE = TrainingSchedule(6, 1e-2, accumulation_steps=2, evaluation_interval=2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def make_loss(batch: int, rank: int = 0, count: int = 1) -> Callable[[nn.Module, int, int], torch.Tensor]:
    def loss(network: nn.Module, step: int, part: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(step * 7 + part)
        x = torch.randn(batch * count, 4, generator=rng)[rank::count]
        return (network(x).float() - x.sum(1, keepdim=True)).square().mean()

    return loss


def measure(network: nn.Module, step: int) -> dict[str, float]:
    with torch.no_grad():
        return {"held_out": make_loss(64)(network, 1000, 0).item()}


def read_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def describe_failure(action: Callable[[], Any]) -> str:
    try:
        action()
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def run_scenarios(folder: Path) -> dict[str, Any]:
    """Everything that two processes do in these tests; each has a folder of its own, as on two machines."""
    processes = Processes()
    rank, count = processes.rank, processes.count
    loss, own = make_loss(BATCH, rank, count), folder / str(rank)

    def run(name: str, loss: Any = loss, evaluate: Any = measure, **more: Any) -> nn.Module | None:
        return train(net(), loss, evaluate, SCHEDULE, own / name, execution=Execution("fp32"), **more)

    def fail_at(step: int, guilty: int, error: type[Exception]) -> Any:
        def failing(network: nn.Module, at: int, part: int) -> torch.Tensor:
            if (at, part, rank) == (step, 1, guilty):
                raise error("this example is broken")
            return loss(network, at, part)

        return failing

    def interrupt(network: nn.Module, at: int, part: int) -> torch.Tensor:
        if (at, part, rank) == (4, 0, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return loss(network, at, part)

    def break_down(network: nn.Module, at: int) -> dict[str, float]:
        raise OSError("the disk is full")

    def poison(network: nn.Module, at: int, part: int) -> torch.Tensor:
        return loss(network, at, part) * (float("nan") if (at, rank) == (3, 1) else 1)

    found: dict[str, Any] = {"count": count, "whole": run("whole").state_dict()}
    found["failed"] = describe_failure(lambda: run("cut", fail_at(3, 1, ValueError)))
    found["interrupted"] = describe_failure(lambda: run("cut", interrupt))
    found["resumed"] = run("cut").state_dict()
    found["evaluation"] = describe_failure(lambda: run("evaluation", evaluate=break_down))
    found["nan"] = describe_failure(lambda: run("nan", poison, list_suspects=lambda: [f"image {rank}"]))
    stop = Decision(2, None, "enough")
    found["stopped"] = run("stopped", stop_rule=lambda rows: stop).state_dict()
    found["files"] = sorted(str(path.relative_to(own)) for path in own.rglob("*") if path.is_file())
    return found


def work_as(rank: int, port: int, folder: Path) -> None:
    """Run the scenarios in a forked process and leave what they found in a file."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(run_scenarios(folder)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module | None]:
    """The folder and the network of one process with the doubled batch."""
    folder = tmp_path_factory.mktemp("alone")
    network = train(net(), make_loss(2 * BATCH), measure, SCHEDULE, folder, execution=Execution("fp32"))
    return folder, network


@pytest.fixture(scope="module")
def found(alone: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """What each of two processes found, which were forked once torch has loaded all that it trains with."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                work_as(rank, port, folder)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0]
    yield folder, [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def test_two_processes_learn_what_one_learns_from_the_doubled_batch(found, alone):
    folder, (first, second) = found
    expected, network = alone
    assert first["count"] == second["count"] == 2
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(
            first["whole"][name], tensor, rtol=1e-5, atol=1e-5
        )  # order of sums; Adam divides by small numbers
        assert torch.equal(first["whole"][name], second["whole"][name])
    one, two = read_rows(expected), read_rows(folder / "0/whole")
    assert [row["step"] for row in one] == [row["step"] for row in two] == [2, 4, 6]
    for name in ("loss", "held_out"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-5)  # order of sums


def test_the_first_process_alone_reads_and_writes(found):
    _, (first, second) = found
    assert {"whole/checkpoint.safetensors", "whole/log.jsonl", "stopped/best_2.safetensors"} <= set(first["files"])
    assert second["files"] == []


def test_processes_that_were_stopped_twice_go_on_as_if_they_had_not_been(found):
    folder, results = found
    for each in results:
        assert all(torch.equal(each["whole"][name], tensor) for name, tensor in each["resumed"].items())
    assert (folder / "0/cut/log.jsonl").read_text() == (folder / "0/whole/log.jsonl").read_text()


def test_all_processes_end_together(found):
    _, (first, second) = found
    assert first["failed"] == "RuntimeError: process 1: this example is broken"
    assert second["failed"] == "ValueError: this example is broken"
    assert first["interrupted"] == second["interrupted"] == "KeyboardInterrupt: "
    assert first["evaluation"] == "OSError: the disk is full"
    assert second["evaluation"] == "RuntimeError: process 0: the disk is full"
    for each in (first, second):
        assert each["nan"].startswith("FloatingPointError: the loss of step 4 is nan with image 0, image 1; ")
    assert all(torch.equal(t, second["stopped"][name]) for name, t in first["stopped"].items())


def test_the_place_among_processes_is_known_before_torch_is_loaded(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (read_rank(), count_processes(), is_first_on_machine()) == (0, 1, True)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert (read_rank(), count_processes(), is_first_on_machine()) == (0, 1, True)  # of another launcher
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (read_rank(), count_processes(), is_first_on_machine()) == (3, 4, False)


def test_processes_that_accelerate_counts_otherwise_are_refused(monkeypatch):
    Processes()  # alone, as accelerate then remembers
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"accelerate finds process 0 of 1, the environment names 1 of 2: start them"):
        Processes()


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_weights_that_are_to_be_divided_among_processes_are_refused(variable, monkeypatch):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=r"train does not use (DeepSpeed|FSDP), which accelerate launch was asked for"):
        check_launch()
