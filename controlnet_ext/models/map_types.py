"""Networks that read maps of several kinds and have to be told which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..guidance.contract import ControlModel


class MapTypeSelection(ControlModel):
    """`types` are the numbers of the kinds that it was told by the network's own `of`, None if by nobody."""

    types: tuple[int, ...] | None = None

    def with_types(self, *kinds: str) -> Any:
        """This network on the same weights, for units with as many images, of these kinds in this order."""
        raise NotImplementedError

    def for_map_types(self, kinds: Sequence[str | None]) -> Any:
        """This network for maps of these kinds, unless `of` said them. ValueError when nobody did."""
        if self.types is not None:
            if len(self.types) != len(kinds):
                raise ValueError(f"the ControlNet Union was told {len(self.types)} kinds for {len(kinds)} images")
            return self
        stated = [kind for kind in kinds if kind is not None]
        if len(stated) < len(kinds):
            raise ValueError(
                "the ControlNet Union reads maps of several kinds, and nothing says of which this one is: give a "
                'ControlMap or a preprocessor, or say it with model=union.with_types("depth")'
            )
        return self.with_types(*stated)
