"""Between routes and the work: what a server offers, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..preprocessors.registry import LoadedPreprocessor
from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.detect import detect_maps
from ..sdwebui.fields import RequestLimits
from ..sdwebui.requests import SCRIPT_TITLES, parse_generation_request
from ..sdwebui.samplers import NOISE_SCHEDULES, SAMPLERS
from .engine import GenerationEngine
from .fetch import replace_urls


class Service:
    """An engine, its control models, and what gives preprocessors by name. `fetch` gives the content of
    addresses in requests; without it they are refused."""

    def __init__(
        self,
        engine: GenerationEngine,
        catalog: ModelCatalog,
        load_preprocessor: Callable[[str], LoadedPreprocessor],
        limits: RequestLimits,
        fetch: Callable[[str], bytes] | None = None,
    ):
        self._fetch = fetch
        self.engine, self.catalog, self.limits, self._load_preprocessor = engine, catalog, limits, load_preprocessor

    def generate(self, value: Any, from_image: bool) -> dict[str, Any]:
        """The answer to a request for pictures."""
        echo = _echo_scalars(value)
        asked = parse_generation_request(self._replace_urls(value), self.engine.size, self.limits, from_image)
        return {**self.engine.generate(asked), "parameters": echo}

    def detect_maps(self, value: Any) -> dict[str, Any]:
        """The answer to a request for maps."""
        return detect_maps(self._replace_urls(value), self._load_preprocessor)

    def _replace_urls(self, value: Any) -> Any:
        return value if self._fetch is None else replace_urls(value, self._fetch)

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """The one checkpoint."""
        name = self.engine.checkpoint_name
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]

    def get_options(self) -> dict[str, Any]:
        return {"sd_model_checkpoint": self.engine.checkpoint_name, "control_net_unit_count": self.limits.max_units}

    def set_options(self, value: Any) -> None:
        """Nothing, if it asks for what is there; ValueError otherwise."""
        own = self.get_options()
        if not isinstance(value, dict):
            raise ValueError("the options are no JSON object")
        for name, wanted in value.items():
            if name not in own or wanted != own[name]:
                raise ValueError(f"the option {name!r:.80} cannot be changed on this server")

    def get_progress(self, with_preview: bool) -> dict[str, Any]:
        """As the webui tells it; where it is to be `seen`, with the picture of the last step before which someone
        wanted to see it."""
        now = self.engine.progress
        if with_preview and now.image_count:
            now.preview_requested.set()
        state = {
            "skipped": False,
            "interrupted": now.stop_requested.is_set(),
            "job": f"picture {now.image_index + 1} of {now.image_count}" if now.image_count else "",
            "job_count": now.image_count,
            "job_no": now.image_index,
            "sampling_step": now.step,
            "sampling_steps": now.total_steps,
        }
        return {
            "progress": now.fraction,
            "eta_relative": now.eta_seconds,
            "state": state,
            "current_image": now.preview,
            "textinfo": None,
        }

    def list_samplers(self) -> list[dict[str, Any]]:
        return [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS]

    def list_schedulers(self) -> list[dict[str, Any]]:
        names = ("Automatic", *NOISE_SCHEDULES)
        return [{"name": name.casefold(), "label": name, "aliases": None} for name in names]

    def list_scripts(self) -> dict[str, list[str]]:
        return {"txt2img": list(SCRIPT_TITLES), "img2img": list(SCRIPT_TITLES)}


def _echo_scalars(value: Any) -> dict[str, Any]:
    """What is short of a request. ValueError for what no JSON can say, before there is work in it."""
    said = value.items() if isinstance(value, dict) else ()
    echo = {k: v for k, v in said if isinstance(v, bool | int | float | str) and k != "mask"}
    try:
        json.dumps(echo, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError("the request holds NaN, an infinite number, or half a letter") from error
    return echo
