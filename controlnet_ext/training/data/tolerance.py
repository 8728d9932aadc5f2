"""Examples that cannot be read: reported by name, counted, and left out, up to a share."""

from __future__ import annotations

from collections.abc import Callable

MAX_REASONS = 5  # that an error lists
MIN_SEEN = 1000  # of a stream whose length nobody knows: the share is taken of so many at least


class Tolerance:
    """A count of broken examples, each once. `share` of all may be broken; `report` prints a line.

    listed: number of examples of folders, lists and tables.
    streamed: number of examples of shards that were seen.
    """

    def __init__(self, share: float, report: Callable[[str], None]):
        if not 0 <= share <= 1:
            raise ValueError(f"--tolerate {share:g} is outside 0..1")
        self.share, self._report = share, report
        self.listed, self.streamed = 0, 0
        self._reasons: dict[str, str] = {}  # by name
        self._reported = 0
        self._notes: set[str] = set()

    @property
    def count(self) -> int:
        """Number of broken examples."""
        return len(self._reasons)

    def note(self, line: str) -> None:
        """Print a line that counts for nothing, once."""
        if line not in self._notes:
            self._notes.add(line)
            self._report(line)

    def add(self, name: str, reason: str) -> None:
        """Note that an example is broken; the reason names it."""
        self._reasons.setdefault(name, reason)

    def check(self, at_least: int = 0, is_whole: bool = False) -> None:
        """Report the examples that are new. Raises ValueError when over the share of all are broken.

        All are `listed`, `at_least` so many where none was listed, and of streams those that were seen, 1,000 at least
        unless they are seen as a whole.
        """
        list_count = self.listed if self.listed or self.streamed else at_least
        stream_count = self.streamed if is_whole or not self.streamed else max(self.streamed, MIN_SEEN)
        reasons = list(self._reasons.values())
        if len(reasons) > self.share * (list_count + stream_count):
            more = f", and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
            raise ValueError(
                f"{len(reasons)} of {list_count + self.streamed} examples cannot be learnt from, over --tolerate "
                f"{self.share:g}: {'; '.join(reasons[:MAX_REASONS])}{more}"
            )
        for reason in reasons[self._reported :]:
            self._report(f"left out: {reason}")
        self._reported = len(reasons)
