"""The training loop of ControlNets and of the embedded models: resumable at any step, evaluated on held-out data."""

from __future__ import annotations

import copy
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from .checkpoints import (
    CHECKPOINT_FILE,
    TrainingState,
    append_row,
    remove_best_weights,
    trim_log,
    write_best_weights,
)
from .config import WARM_UP_STEPS, Execution, TrainingSchedule
from .memory import checkpoint_activations, compile_network, compile_with_check
from .optimizers import OptimizerState, make_optimizer
from .processes import Processes
from .stopping import Decision, StopRule, run_all_steps
from .work_folder import LOG_FILE, read_log

PRECISION_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MIN_SCALE = 2.0**-14  # of losses in float16; one whose gradients still overflow is not finite
MAX_NAMES = 8  # in a message

TrainedModule = TypeVar("TrainedModule", bound=nn.Module)
Loss = Callable[[TrainedModule, int, int], Tensor]
Evaluation = Callable[[TrainedModule, int], Mapping[str, float]]


def train(
    network: TrainedModule,
    loss: Loss[TrainedModule],
    evaluate: Evaluation[TrainedModule],
    schedule: TrainingSchedule,
    folder: Path,
    stop_rule: StopRule = run_all_steps,
    execution: Execution | None = None,
    compile_parts: Callable[[nn.Module], None] = compile_network,
    list_suspects: Callable[[], Sequence[str]] = list,
) -> TrainedModule | None:
    """Train and return the averaged weights of the last step; None when the minutes ran out before it.

    `loss(network, step, part)` is the loss of one of the batches of a step. It may depend on nothing else: then a run
    that was killed and started again equals one that was not, to the bit. `evaluate(averaged, step)`, `step` being the
    number of steps that are done, returns held-out figures; every `evaluation_interval` steps a row of them is appended
    to log.jsonl, `stop_rule` decides from all rows whether this is the last step, and a checkpoint is written. The
    averaged weights of the row that the rule calls best are kept, see `read_best_weights`. Ctrl-C ends the step and
    writes a checkpoint before it raises KeyboardInterrupt; a second one raises at once, but not under a launcher,
    which passes the first on.

    Where `accelerate launch` started several processes, `loss` gives each its part of the batch; the first one
    evaluates and writes, and all end together.

    `compile_parts(network)` compiles what computes, if the execution asks for it. `list_suspects()` names the examples
    of the last step that may have made its loss not finite.

    Raises FloatingPointError when the loss or its gradients are not finite; ValueError when a tensor has had no
    gradient in 100 steps, and as `compile_with_check` does.
    """
    loop = TrainingLoop(network, loss, schedule, folder, execution or Execution())
    loop.list_suspects, loop.compile_parts = list_suspects, compile_parts
    return loop.run(evaluate, stop_rule)


def make_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Return what scales losses so that gradients in float16 are not lost; in other precisions it does nothing."""
    make = getattr(torch.amp, "GradScaler", None)  # since PyTorch 2.3
    is_enabled = precision == "fp16"
    return torch.cuda.amp.GradScaler(enabled=is_enabled) if make is None else make(device, enabled=is_enabled)


class TrainingLoop(Generic[TrainedModule]):
    """A training that goes on from the checkpoint in its folder."""

    def __init__(
        self,
        network: TrainedModule,
        loss: Loss[TrainedModule],
        schedule: TrainingSchedule,
        folder: Path,
        execution: Execution,
    ):
        self._processes = Processes()
        self._loss, self._schedule, self._folder, self._execution = loss, schedule, folder, execution
        self.list_suspects: Callable[[], Sequence[str]] = list
        self.compile_parts: Callable[[nn.Module], None] = compile_network
        device = self._processes.device
        self._network = network.to(device)
        averages = schedule.ema_decay > 0
        self._averaged = copy.deepcopy(self._network).requires_grad_(False) if averages else self._network
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(
            execution.optimizer, self._parameters, schedule.learning_rate, schedule.weight_decay
        )
        self._scaler = make_scaler(device.type, execution.precision)
        self._state = TrainingState(self._network, self._averaged, OptimizerState(self._optimizer), self._scaler)
        if self._processes.is_first:
            folder.mkdir(parents=True, exist_ok=True)
        self._first = self._state.restore(folder / CHECKPOINT_FILE, self._processes)
        self._idle = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._began = time.monotonic()

    def run(self, evaluate: Evaluation[TrainedModule], stop_rule: StopRule) -> TrainedModule | None:
        """Train and return the averaged weights of the last step, None when the minutes ran out before it."""
        must_stop = self._processes.call_on_first(lambda: _decide_again(stop_rule, self._folder, self._first))
        if must_stop or self._first >= self._schedule.steps:
            return self._finish()
        self._module = self._wrap()
        saves_memory = self._execution.has_checkpointing
        with (
            _catch_interrupt() as interrupt,
            self._open_bar() as bar,
            checkpoint_activations(self._network) if saves_memory else nullcontext(),
        ):
            for step in range(self._first, self._schedule.steps):
                self._take_step(step)
                bar.update()
                step_count, late = step + 1, self._is_over_time()
                is_measured = (
                    step_count % self._schedule.evaluation_interval == 0 or step_count == self._schedule.steps or late
                )
                must_stop = is_measured and self._measure(step_count, evaluate, stop_rule)
                if self._processes.sum([float(interrupt.is_set())])[0] > 0:
                    if not is_measured:
                        self._processes.call_on_first(lambda step_count=step_count: self._save(step_count))  # type: ignore[misc]
                    raise KeyboardInterrupt
                if must_stop:
                    break
                if late and step_count < self._schedule.steps:
                    return None
        return self._finish()

    def _wrap(self) -> nn.Module:
        """Return the module that computes the loss; with several processes its gradients are the means of theirs."""
        self._network.train()
        if self._execution.is_compiled:
            compile_with_check(
                self._network,
                lambda: self._compute_loss(_LossModule(self._network, self._loss), self._first, 0),
                lambda: self.compile_parts(self._network),
            )
        module = _LossModule(self._network, self._loss)
        if self._processes.count == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _open_bar(self) -> tqdm[None]:
        """Return the progress bar on stderr, silent where that is no terminal, and in all processes but the first."""
        return tqdm(
            total=self._schedule.steps,
            initial=self._first,
            unit="step",
            disable=None if self._processes.is_first else True,
        )

    def _take_step(self, step: int) -> None:
        """Learn from the batches of a step. Raises FloatingPointError before weights change that it would break."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate_at(step)
        self._optimizer.zero_grad()
        loss = self._accumulate_gradients(step)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        *losses, length = torch.cat([loss.double(), norm.double()[None].to(loss.device)]).tolist()
        losses = [each / self._processes.count for each in self._processes.sum(losses)]
        self._check_finite(losses, length, step)
        self._idle = _filter_idle(self._idle, len(self._parameters), step - self._first)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._averaged is not self._network:
            decay = min(self._schedule.ema_decay, (step + 1) / (step + 10))
            average = get_ema_multi_avg_fn(decay)
            average(list(self._averaged.parameters()), list(self._network.parameters()), 0)
        self._state.losses.extend(losses)

    def _accumulate_gradients(self, step: int) -> Tensor:
        """Add the gradients of the mean loss of the batches of a step, and return their losses."""
        torch.manual_seed(step)
        count = self._schedule.accumulation_steps
        losses, failure = [], None
        for part in range(count):
            is_last = part == count - 1
            try:
                value = self._compute_loss(self._module, step, part)
                losses.append(value.detach())
                if not is_last:
                    with self._module.no_sync() if self._processes.count > 1 else nullcontext():  # type: ignore[operator, union-attr]
                        self._scaler.scale(value / count).backward()
            except Exception as error:
                failure = error
                break
        self._processes.raise_together(failure)  # before the backward pass in which all wait for each other
        self._scaler.scale(value / count).backward()
        return torch.stack(losses)

    def _compute_loss(self, module: nn.Module, step: int, part: int) -> Tensor:
        with self._autocast():
            loss: Tensor = module(step, part)
        return loss

    def _autocast(self) -> torch.autocast:
        precision = self._execution.precision
        return torch.autocast(self._processes.device.type, PRECISION_DTYPES[precision], enabled=precision != "fp32")

    def _check_finite(self, losses: Sequence[float], norm: float, step: int) -> None:
        overflows = self._scaler.is_enabled() and self._scaler.get_scale() > MIN_SCALE  # then the step is left out
        wrong = next((f"loss of step {step + 1} is {loss}" for loss in losses if not math.isfinite(loss)), None)
        if wrong is None and (math.isfinite(norm) or overflows):
            return
        names = [name for each in self._processes.gather(list(self.list_suspects())) for name in each]
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        examples = f" with {', '.join(names[:MAX_NAMES])}{more}" if names else ""
        raise FloatingPointError(
            f"the {wrong or f'norm of the gradients of step {step + 1} is {norm}'}{examples}; "
            f"{self._folder / CHECKPOINT_FILE} is from before"
        )

    def _is_over_time(self) -> bool:
        late = time.monotonic() - self._began > self._schedule.max_minutes * 60
        return self._processes.sum([float(late)])[0] > 0

    def _measure(self, step_count: int, evaluate: Evaluation[TrainedModule], stop_rule: StopRule) -> bool:
        """Write a row and a checkpoint in the first process; return True where the stop rule ends the training."""

        def measure() -> bool:
            self._averaged.eval()
            with self._autocast() if self._processes.device.type != "cpu" else nullcontext():
                figures = evaluate(self._averaged, step_count)
            self._network.train()
            row = {"step": step_count, "loss": sum(self._state.losses) / len(self._state.losses), **figures}
            append_row(row, self._folder)  # before the checkpoint: after a kill it is written anew
            self._print_row(row, step_count)
            decision = stop_rule(read_log(self._folder / LOG_FILE))
            for sentence in (decision.message, decision.reason):
                if sentence is not None:
                    _print(sentence)
            if decision.best_step == step_count:
                write_best_weights(self._folder, self._averaged, step_count)
            self._state.losses.clear()
            self._save(step_count)
            remove_best_weights(self._folder, decision.best_step)
            return decision.reason is not None

        must_stop = self._processes.call_on_first(measure)
        self._state.losses.clear()
        return must_stop

    def _print_row(self, row: Mapping[str, float], step_count: int) -> None:
        seconds = (time.monotonic() - self._began) / (step_count - self._first) * (self._schedule.steps - step_count)
        _print(" ".join([*(f"{k} {v:.4g}" for k, v in row.items()), f"left {seconds / 60:.0f} min"]))

    def _save(self, step_count: int) -> None:
        self._state.save(self._folder / CHECKPOINT_FILE, step_count)

    def _finish(self) -> TrainedModule:
        return self._averaged.requires_grad_(False).eval()


class _LossModule(nn.Module, Generic[TrainedModule]):
    """The loss of a network as a module, which is what PyTorch shares among processes."""

    def __init__(self, network: TrainedModule, loss: Loss[TrainedModule]):
        super().__init__()
        self.network = network
        self._loss = loss

    def forward(self, step: int, part: int) -> Tensor:
        return self._loss(self.network, step, part)


def _decide_again(rule: StopRule, folder: Path, first: int) -> bool:
    """Remove what was written after the checkpoint; return True if the rule ended the training there."""
    trim_log(folder, first)
    rows = read_log(folder / LOG_FILE)
    decision = rule(rows) if rows else Decision()
    remove_best_weights(folder, decision.best_step)
    return decision.reason is not None


def _print(sentence: str) -> None:
    """Print a line to stderr above the progress bar."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(sentence, file=sys.stderr, flush=True)


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


@contextmanager
def _catch_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets, where Python handles signals: in the main thread.

    A launcher (torch.distributed.elastic) sends its processes the signal that they have had from the terminal already,
    so there a second one means nothing.
    """
    interrupt = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.getsignal(signal.SIGINT)
    is_launched = "TORCHELASTIC_RUN_ID" in os.environ

    def ask(*_: object) -> None:
        interrupt.set()
        if not is_launched:
            signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
