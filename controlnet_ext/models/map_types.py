"""The base of networks that read maps of several kinds and must be given the kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..guidance.contract import ControlModel


class MapTypeSelection(ControlModel):
    """A control model for maps of several kinds.

    `types` are the numbers of the kinds set with `with_types()`, None if they follow from the unit's maps.
    """

    types: tuple[int, ...] | None = None

    def with_types(self, *kinds: str) -> Any:
        """Return this network on the same weights, for units with as many images, of these kinds in this order."""
        raise NotImplementedError

    def for_map_types(self, kinds: Sequence[str | None]) -> Any:
        """Return this network for maps of these kinds; kinds set with `with_types()` stay.

        Raises ValueError if a kind is unknown, or the number of images differs.
        """
        if self.types is not None:
            if len(self.types) != len(kinds):
                raise ValueError(f"the ControlNet Union was told {len(self.types)} kinds for {len(kinds)} images")
            return self
        names = [kind for kind in kinds if kind is not None]
        if len(names) < len(kinds):
            raise ValueError(
                "the ControlNet Union reads maps of several kinds, and nothing says of which this one is: give a "
                'ControlMap or a preprocessor, or say it with model=union.with_types("depth")'
            )
        return self.with_types(*names)
