"""Answers of the webui's routes: requests read, and handed to the engine or to preprocessors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..generation.recipe import LATENT_UPSCALERS, PIXEL_UPSCALERS
from ..preprocessors.registry import LoadedPreprocessor
from ..sdwebui.catalog import ModelCatalog
from ..sdwebui.detect import detect_maps
from ..sdwebui.fields import RequestLimits
from ..sdwebui.requests import MAX_HIRES_SCALE, NOISE_SCHEDULES, SAMPLERS, SCRIPT_TITLES, parse_generation_request
from .engine import GenerationEngine
from .fetch import replace_urls
from .worker import check_abandoned


class Service:
    """The answers of a server, from its engine, its control models and its preprocessors.

    `load_preprocessor` returns a loaded preprocessor by name. `fetch` returns the content of a URL; without
    it URLs are refused.
    """

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

    def generate(self, value: object, from_image: bool, stop_event: threading.Event | None = None) -> dict[str, Any]:
        """Return the answer to a request for images: img2img with `from_image`, else txt2img.

        Raises ValueError, TypeError or FileNotFoundError for the client, RuntimeError for what failed on the way,
        RequestAbandoned between two steps once `stop_event` is set.
        """
        parameters = _select_scalars(value)
        request = parse_generation_request(
            self._replace_urls(value, stop_event), self.engine.size, self.limits, from_image
        )
        return {**self.engine.generate(request, stop_event), "parameters": parameters}

    def detect_maps(self, value: object, stop_event: threading.Event | None = None) -> dict[str, Any]:
        """Return the answer to a request for maps. Raises ValueError for the client, RequestAbandoned between two
        images once `stop_event` is set."""
        value = self._replace_urls(value, stop_event)
        return detect_maps(value, self._load_preprocessor, partial(check_abandoned, stop_event))

    def _replace_urls(self, value: object, stop_event: threading.Event | None) -> Any:
        fetch = self._fetch
        if fetch is None:
            return value

        def fetch_next(url: str) -> bytes:
            check_abandoned(stop_event)
            return fetch(url)

        return replace_urls(value, fetch_next)

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """Return the one checkpoint, as the webui lists its own."""
        name = self.engine.checkpoint_name
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]

    def get_options(self) -> dict[str, Any]:
        """Return the settings of the webui that this server has."""
        return {"sd_model_checkpoint": self.engine.checkpoint_name, "control_net_unit_count": self.limits.max_units}

    def list_upscalers(self) -> list[dict[str, Any]]:
        """Return the upscalers of hires fix that enlarge pixels, as the webui lists them."""
        more = dict.fromkeys(("model_name", "model_path", "model_url"))
        return [{"name": name, **more, "scale": MAX_HIRES_SCALE} for name in PIXEL_UPSCALERS]

    def list_latent_upscalers(self) -> list[dict[str, str]]:
        """Return the upscalers of hires fix that enlarge latents."""
        return [{"name": name} for name in LATENT_UPSCALERS]

    def set_options(self, value: object) -> None:
        """Accept settings that are those of the server. Raises ValueError for others."""
        own = self.get_options()
        if not isinstance(value, dict):
            raise ValueError("the options are no JSON object")
        for name, setting in value.items():
            if name not in own or setting != own[name]:
                raise ValueError(f"the option {name!r:.80} cannot be changed on this server")

    def get_progress(self, with_preview: bool) -> dict[str, Any]:
        """Return the progress in the webui's form; `with_preview` with an image of the last step before which a client
        asked for one."""
        now = self.engine.progress
        if with_preview and now.image_count:
            now.preview_requested.set()
        state = {
            "skipped": now.skip_requested.is_set(),
            "interrupted": now.stop_requested.is_set(),
            "job": f"image {now.image_index + 1} of {now.image_count}" if now.image_count else "",
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
        """Return the samplers, by the webui's names."""
        return [{"name": name, "aliases": [], "options": {}} for name in SAMPLERS]

    def list_schedulers(self) -> list[dict[str, Any]]:
        """Return the schedules of noise, by the webui's names."""
        names = ("Automatic", *NOISE_SCHEDULES)
        return [{"name": name.casefold(), "label": name, "aliases": None} for name in names]

    def list_scripts(self) -> dict[str, list[str]]:
        """Return the always-on scripts that a request may name."""
        return {"txt2img": list(SCRIPT_TITLES), "img2img": list(SCRIPT_TITLES)}

    def describe_scripts(self) -> list[dict[str, Any]]:
        """Return these scripts as the webui describes its own, without the arguments of their interface."""
        return [
            {"name": title, "is_alwayson": True, "is_img2img": is_img2img, "args": []}
            for title in SCRIPT_TITLES
            for is_img2img in (False, True)
        ]


def _select_scalars(value: object) -> dict[str, Any]:
    """Return the numbers, booleans and texts of a request, which the answer repeats."""
    items = value.items() if isinstance(value, dict) else ()
    return {k: v for k, v in items if isinstance(v, bool | int | float | str) and k != "mask"}


def measure_memory() -> dict[str, Any]:
    """Return the bytes of main memory and of the GPU, free, used by this process (on the GPU by all) and in all; an
    error where they cannot be told."""
    import torch

    memory: dict[str, Any] = {"ram": {"error": "unavailable"}, "cuda": {"error": "unavailable"}}
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf, macOS no /proc
        page = os.sysconf("SC_PAGE_SIZE")
        total, used = page * os.sysconf("SC_PHYS_PAGES"), page * int(Path("/proc/self/statm").read_text().split()[1])
        memory["ram"] = {"free": total - used, "used": used, "total": total}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        memory["cuda"] = {"system": {"free": free, "used": total - free, "total": total}}
    return memory
