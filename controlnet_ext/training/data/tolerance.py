"""Examples that cannot be read: reported by name, counted, and left out, up to a share."""

from __future__ import annotations

from collections.abc import Callable

MAX_REASONS = 5  # that an error lists
MIN_SEEN = 1000  # of a stream whose length nobody knows: the share is taken of so many at least


class Tolerance:
    """A count of broken examples, each once. `share` of all may be broken; `report` prints a line."""

    def __init__(self, share: float, report: Callable[[str], None]):
        if not 0 <= share <= 1:
            raise ValueError(f"--tolerate {share:g} is outside 0..1")
        self.share, self._report = share, report
        self.seen = 0  # examples of a stream
        self._reasons: dict[str, str] = {}  # by name
        self._reported = 0

    @property
    def count(self) -> int:
        """Number of broken examples."""
        return len(self._reasons)

    def note(self, line: str) -> None:
        """Print a line that counts for nothing."""
        self._report(line)

    def add(self, name: str, reason: str) -> None:
        """Note that an example is broken; the reason names it."""
        self._reasons.setdefault(name, reason)

    def add_streamed(self, name: str, reason: str) -> None:
        """Note that an example of a stream is broken. Raises ValueError as `check` does, of at least 1,000 examples."""
        self.add(name, reason)
        self.check(max(self.seen, MIN_SEEN), self.seen)

    def check(self, total: int, seen: int | None = None) -> None:
        """Report the examples that are new. Raises ValueError when over the share of `total` examples are broken;
        `seen` is the number to state, where it is another."""
        reasons, stated = list(self._reasons.values()), total if seen is None else seen
        if len(reasons) > self.share * total:
            more = f", and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
            raise ValueError(
                f"{len(reasons)} of {stated} examples cannot be learnt from, over --tolerate {self.share:g}: "
                f"{'; '.join(reasons[:MAX_REASONS])}{more}"
            )
        for reason in reasons[self._reported :]:
            self._report(f"left out: {reason}")
        self._reported = len(reasons)
