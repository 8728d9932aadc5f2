"""stable-diffusion-webui's extension: the only place that imports the host's `modules` and gradio."""

from __future__ import annotations

from typing import Any


def start() -> Any:
    """The script class, after the host has been told of settings and routes. Once in a process's load of scripts."""
    from . import axes, routes, script, settings

    settings.register()
    routes.register()
    axes.register()
    return script.ControlNetScript
