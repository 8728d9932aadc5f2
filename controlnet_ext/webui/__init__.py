"""stable-diffusion-webui's extension: the only place that imports the host's `modules` and gradio."""

from __future__ import annotations

from typing import Any


def start() -> Any:
    """The script class, after the host has been told of settings, routes and axes; None in a host that has a ControlNet
    of its own, to which our preprocessors are added. Once in a load of scripts."""
    from . import forge

    if forge.is_forge():
        forge.register()
        return None
    from . import axes, host, routes, script

    host.register()
    routes.register()
    axes.register()
    return script.ControlNetScript
