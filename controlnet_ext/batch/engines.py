"""Where a stage runs: here, or in threads. Lots come back in their order, and only a few are under way at a time, so
memory stays flat however many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Stage = Callable[[list[In]], list[Out]]


class Engine(Protocol):
    """Runs a stage over lots. `lost` is what stands for one of a lot that ended the process it was in. With `whole`
    networks run there too, and are loaded there."""

    whole: bool

    def map(
        self, stage: Stage[In, Out], lots: Iterable[list[In]], lost: Callable[[In], Out]
    ) -> Iterator[list[Out]]: ...


class Here:
    """In this process, one after the other."""

    whole = False

    def map(self, stage: Stage[In, Out], lots: Iterable[list[In]], lost: Callable[[In], Out]) -> Iterator[list[Out]]:
        return map(stage, lots)


def threads(count: int, stage: Callable[[In], Out], lots: Iterable[In]) -> Generator[Out, None, None]:
    """A stage over lots in so many threads of this process."""
    with shut(ThreadPoolExecutor(count)) as pool:
        yield from in_order(lambda lot: pool.submit(stage, lot), lots, count)


def in_order(submit: Callable[[In], Future[Out]], lots: Iterable[In], ahead: int) -> Iterator[Out]:
    """The results of lots, in their order, with up to `ahead` of them under way."""
    waiting: deque[Future[Out]] = deque()
    for lot in lots:
        waiting.append(submit(lot))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def shut(pool: Executor) -> Iterator[Executor]:
    """The pool; at the end what has not begun is dropped, what has is waited for."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
