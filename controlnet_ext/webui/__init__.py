"""The extension of stable-diffusion-webui: the only folder that imports the host's `modules` and gradio."""

from __future__ import annotations

from typing import Any


def start() -> Any:
    """Register settings, routes and axes with the host and return the script class; called once per load of scripts.
    In a host with a ControlNet of its own, register our preprocessors with it and return None."""
    from . import forge

    if forge.is_forge():
        forge.register()
        return None
    from . import axes, host, routes, script

    host.register()
    routes.register()
    axes.register()
    return script.ControlNetScript
