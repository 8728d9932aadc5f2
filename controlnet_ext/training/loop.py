"""The training loop of ControlNets and of the embedded models: resumable at any step, evaluated on held-out data."""

from __future__ import annotations

import copy
import json
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..files.disk import write_atomically
from ..files.safetensors import write_weights
from ..files.weights import read_weights
from .config import WARM_UP_STEPS, TrainingSchedule
from .stopping import Decision, StopRule, run_all_steps
from .work_folder import LOG_FILE, read_log

CHECKPOINT_FILE = "checkpoint.safetensors"
BEST_PATTERN = re.compile(r"best_(\d+)\.safetensors")


def train(
    network: nn.Module,
    loss: Callable[[nn.Module, int, int], Tensor],
    evaluate: Callable[[nn.Module, int], Mapping[str, float]],
    schedule: TrainingSchedule,
    folder: Path,
    stop_rule: StopRule = run_all_steps,
) -> nn.Module | None:
    """Train and return the averaged weights of the last step; None when the minutes ran out before it.

    `loss(network, step, batch)` may depend on nothing else: then a run that was killed and started again equals one
    that was not, to the bit. `evaluate(averaged, step)`, `step` being the number of steps that are done, returns
    held-out figures; every `evaluation_interval` steps a row of them is appended to log.jsonl, `stop_rule` decides
    from all rows whether this is the last step, and a checkpoint is written. The averaged weights of the row that the
    rule calls best are kept, see `read_best_weights`. Forward passes run under bf16 autocast. Ctrl-C ends the step and
    writes a checkpoint before it raises KeyboardInterrupt; a second one raises at once.

    Raises FloatingPointError when the loss is not finite; ValueError when a tensor has had no gradient in 100 steps.
    """
    accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    network = network.to(accelerator.device)
    averaged = copy.deepcopy(network).requires_grad_(False).eval()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = _make_optimizer(parameters, schedule)
    folder.mkdir(parents=True, exist_ok=True)
    first = _restore_checkpoint(folder / CHECKPOINT_FILE, network, averaged, optimizer)
    _trim_log(folder / LOG_FILE, first)
    if _decide_again(stop_rule, folder).reason is not None:
        return averaged
    prepared = accelerator.prepare_model(network.train())
    began, losses = time.monotonic(), []
    idle = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with _catch_interrupt() as stopping:
        for step in range(first, schedule.steps):
            optimizer.param_groups[0]["lr"] = schedule.learning_rate_at(step)
            optimizer.zero_grad()
            losses += _accumulate_gradients(accelerator, prepared, loss, step, schedule.accumulation_steps)
            _check_finite(losses[-1], step, folder)
            idle = _filter_idle(idle, len(parameters), step - first)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            _update_ema(averaged, network, min(schedule.ema_decay, (step + 1) / (step + 10)))
            done, late = step + 1, time.monotonic() - began > schedule.max_minutes * 60
            if done % schedule.evaluation_interval == 0 or done == schedule.steps or late:
                row = {"step": done, "loss": sum(losses) / len(losses), **evaluate(averaged, done)}
                losses = []
                left = (time.monotonic() - began) / (done - first) * (schedule.steps - done)
                _log_row(row, folder / LOG_FILE, left)  # before the checkpoint: after a kill it is written anew
                decision = _apply_rule(stop_rule, folder, averaged, done)
                _save_checkpoint(folder / CHECKPOINT_FILE, network, averaged, optimizer, done)
                _remove_best(folder, decision.best_step)
                if decision.reason is not None:
                    return averaged
            elif stopping.is_set():
                _save_checkpoint(folder / CHECKPOINT_FILE, network, averaged, optimizer, done)
            if stopping.is_set():
                raise KeyboardInterrupt
            if late and done < schedule.steps:
                return None
    return averaged


def _make_optimizer(parameters: list[nn.Parameter], schedule: TrainingSchedule) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay)


def _accumulate_gradients(
    accelerator: Accelerator, network: nn.Module, loss: Callable[[nn.Module, int, int], Tensor], step: int, count: int
) -> list[float]:
    """Add the gradients of the mean loss of `count` batches of a step, and return their losses."""
    torch.manual_seed(step)
    losses = []
    for batch in range(count):
        with accelerator.autocast():
            value = loss(network, step, batch)
        accelerator.backward(value / count)
        losses.append(value.item())
    return losses


def _check_finite(loss: float, step: int, folder: Path) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of step {step + 1} is {loss}; {folder / CHECKPOINT_FILE} is from before")


def _filter_idle(idle: dict[str, nn.Parameter], count: int, step: int) -> dict[str, nn.Parameter]:
    """Return the tensors that have no gradient in this step either; `count` is the number of all.

    Raises ValueError after 100 steps: a part of the network would not be trained, and no loss shows it.
    """
    idle = {name: p for name, p in idle.items() if p.grad is None or not p.grad.any()}
    if idle and step == WARM_UP_STEPS:
        raise ValueError(
            f"{len(idle)} of {count} tensors have learnt nothing in {WARM_UP_STEPS} steps, first "
            f"{next(iter(idle))}: the loss does not depend on them, or its gradients are wrong"
        )
    return idle


def _apply_rule(rule: StopRule, folder: Path, averaged: nn.Module, step: int) -> Decision:
    """Return what the rule concludes from the log. Print its sentences, and write the weights if they are the best."""
    decision = rule(read_log(folder / LOG_FILE))
    for sentence in (decision.message, decision.reason):
        if sentence is not None:
            print(sentence, file=sys.stderr, flush=True)
    if decision.best_step == step:  # before the checkpoint, and beside the best of before: a kill leaves one of both
        tensors = {name: t.detach().cpu().contiguous() for name, t in averaged.state_dict().items()}
        write_weights(folder / f"best_{step}.safetensors", tensors, {"step": str(step)}, overwrite=True)
    return decision


def _decide_again(rule: StopRule, folder: Path) -> Decision:
    """Return what the rule concluded from the log of a run before, and remove the weights that a kill left."""
    rows = read_log(folder / LOG_FILE)
    decision = rule(rows) if rows else Decision()
    _remove_best(folder, decision.best_step)
    return decision


def _list_best(folder: Path) -> dict[int, Path]:
    """Return the files of best weights by step."""
    found = ((BEST_PATTERN.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}


def _remove_best(folder: Path, kept: float | None) -> None:
    """Remove the best weights of other steps than this, which a kill may have left."""
    for step, path in _list_best(folder).items():
        if step != kept:
            path.unlink()


def read_best_weights(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Return the step and the averaged weights that the stop rule of a training called best; None where it kept none.

    The names of tensors are those of the network's `state_dict`.
    """
    found = _list_best(folder)
    return None if not found else (max(found), dict(read_weights(found[max(found)]).tensors))


def _trim_log(log: Path, step: int) -> None:
    """Remove rows that were written after the checkpoint of this step."""
    kept = "".join(json.dumps(row) + "\n" for row in read_log(log) if row["step"] <= step)
    if log.exists() and log.read_text() != kept:
        write_atomically(log, kept.encode(), overwrite=True)


def _log_row(row: Mapping[str, float], log: Path, seconds_left: float) -> None:
    """Append a row of figures to the log, and print it to stderr with the minutes that are left."""
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(*(f"{k} {v:.4g}" for k, v in row.items()), f"left {seconds_left / 60:.0f} min", file=sys.stderr, flush=True)


@contextmanager
def _catch_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets, where Python handles signals: in the main thread."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)


@torch.no_grad()
def _update_ema(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    for slow, fast in zip(averaged.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def _iter_checkpoint_tensors(
    network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a checkpoint by name, as views of the live ones."""
    for prefix, module in (("network", network), ("averaged", averaged)):
        yield from ((f"{prefix}.{name}", t) for name, t in module.state_dict().items())
    for i, state in optimizer.state_dict()["state"].items():
        yield from ((f"optimizer.{i}.{name}", t) for name, t in state.items())


def _save_checkpoint(
    path: Path, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    tensors = {
        name: t.detach().cpu().contiguous() for name, t in _iter_checkpoint_tensors(network, averaged, optimizer)
    }
    write_weights(path, tensors, {"step": str(step)}, overwrite=True)


def _restore_checkpoint(path: Path, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a checkpoint, if there is one, and return the number of steps that are done."""
    if not path.exists():
        return 0
    weights = read_weights(path)
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "averaged": {}, "optimizer": {}}
    for name, tensor in weights.tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    network.load_state_dict(groups["network"])
    averaged.load_state_dict(groups["averaged"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        i, _, entry = name.partition(".")
        state.setdefault(int(i), {})[entry] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(weights.metadata["step"])
