"""Between routes and the work: what a server offers, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..preprocessors.registry import Ready
from ..sdwebui.catalog import Shelf
from ..sdwebui.detect import detect
from ..sdwebui.limits import Limits
from ..sdwebui.requests import TITLES, read_generation
from ..sdwebui.samplers import SAMPLERS, SPACINGS
from .engine import Engine
from .fetch import fetched


class Desk:
    """An engine, its control models, and what gives preprocessors by name. `fetch` gives the content of
    addresses in requests; without it they are refused."""

    def __init__(
        self,
        engine: Engine,
        shelf: Shelf,
        ready: Callable[[str], Ready],
        limits: Limits,
        fetch: Callable[[str], bytes] | None = None,
    ):
        self._fetch = fetch
        self.engine, self.shelf, self.limits, self._ready = engine, shelf, limits, ready

    def generation(self, value: Any, from_image: bool) -> dict[str, Any]:
        """The answer to a request for pictures."""
        echo = _echo(value)
        asked = read_generation(self._fetched(value), self.engine.size, self.limits, from_image)
        return {**self.engine.make(asked), "parameters": echo}

    def detection(self, value: Any) -> dict[str, Any]:
        """The answer to a request for maps."""
        return detect(self._fetched(value), self._ready)

    def _fetched(self, value: Any) -> Any:
        return value if self._fetch is None else fetched(value, self._fetch)

    def models(self) -> list[dict[str, Any]]:
        """The one checkpoint."""
        name = self.engine.name
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]

    def options(self) -> dict[str, Any]:
        return {"sd_model_checkpoint": self.engine.name, "control_net_unit_count": self.limits.units}

    def choose(self, value: Any) -> None:
        """Nothing, if it asks for what is there; ValueError otherwise."""
        own = self.options()
        if not isinstance(value, dict):
            raise ValueError("the options are no JSON object")
        for name, wanted in value.items():
            if name not in own or wanted != own[name]:
                raise ValueError(f"the option {name!r:.80} cannot be changed on this server")

    def progress(self, seen: bool) -> dict[str, Any]:
        """As the webui tells it; where it is to be `seen`, with the picture of the last step before which someone
        wanted to see it."""
        now = self.engine.progress
        if seen and now.count:
            now.wanted.set()
        state = {
            "skipped": False,
            "interrupted": now.stop.is_set(),
            "job": f"picture {now.picture + 1} of {now.count}" if now.count else "",
            "job_count": now.count,
            "job_no": now.picture,
            "sampling_step": now.step,
            "sampling_steps": now.steps,
        }
        return {
            "progress": now.fraction,
            "eta_relative": now.left,
            "state": state,
            "current_image": now.image,
            "textinfo": None,
        }

    def samplers(self) -> list[dict[str, Any]]:
        return [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS]

    def schedulers(self) -> list[dict[str, Any]]:
        names = ("Automatic", *SPACINGS)
        return [{"name": name.casefold(), "label": name, "aliases": None} for name in names]

    def scripts(self) -> dict[str, list[str]]:
        return {"txt2img": list(TITLES), "img2img": list(TITLES)}


def _echo(value: Any) -> dict[str, Any]:
    """What is short of a request. ValueError for what no JSON can say, before there is work in it."""
    said = value.items() if isinstance(value, dict) else ()
    echo = {k: v for k, v in said if isinstance(v, bool | int | float | str) and k != "mask"}
    try:
        json.dumps(echo, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError("the request holds NaN, an infinite number, or half a letter") from error
    return echo
