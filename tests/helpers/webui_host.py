"""Stand-ins for the few names of stable-diffusion-webui 1.10.1 and gradio that the extension uses. What they do was
read off the real host, in which the extension is tried too (docs/evidence/webui.md)."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

COMPONENTS = "Accordion Tabs Tab Row Image HTML Checkbox Radio Dropdown Slider Textbox Button"


class Component:
    """Any component of gradio, and any layout."""

    def __init__(self, *args: Any, **values: Any):
        self.args, self.values, self.events = args, values, []

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def click(self, function: Any, inputs: Any = None, outputs: Any = None) -> None:
        self.events.append((function, inputs, outputs))

    change = input = click

    @property
    def value(self) -> Any:
        nothing = "" if type(self).__name__ == "Textbox" else None
        return self.values.get("value", self.args[0] if self.args else nothing)


class Options:
    """modules.options.Options: what was changed is in `data`, and the rest has defaults, which only attributes give."""

    def __init__(self, **defaults: Any):
        self.data: dict[str, Any] = {}
        self.defaults = defaults

    def __getattr__(self, key: str) -> Any:
        if key in self.data or key in self.defaults:
            return self.data.get(key, self.defaults.get(key))
        raise AttributeError(key)


class Script:
    """modules.scripts.Script."""

    def elem_id(self, name: str) -> str:
        return f"script_{self.title().lower()}_{name}"  # type: ignore[attr-defined]


def install(monkeypatch: Any, folder: Any, unet: Any, gradio: Any = None) -> SimpleNamespace:
    """Put the stand-ins into sys.modules, also for gradio where none is given; what the tests change of them."""
    callbacks: list[Any] = []
    callback = {f"on_{name}": [] for name in ("ui_settings", "app_started", "before_ui")}
    gradio = gradio or _gradio()
    options = Options(outdir_samples="", outdir_txt2img_samples=str(folder / "results"))
    host = SimpleNamespace(
        callbacks=callbacks,
        options=options.data,
        flags=SimpleNamespace(api=True, nowebui=False, api_auth=None),
        model=SimpleNamespace(model=SimpleNamespace(diffusion_model=unet)),
        replaced=_module("modules.sd_unet", current_unet=None, current_option=None),
        on=callback,
    )
    added = {name: (lambda function, its=its: its.append(function)) for name, its in callback.items()}
    parts = {
        "scripts": _module("modules.scripts", Script=Script, AlwaysVisible=object(), scripts_data=[]),
        "script_callbacks": _module(
            "modules.script_callbacks",
            on_cfg_denoiser=callbacks.append,
            remove_callbacks_for_function=lambda gone: callbacks.remove(gone),
            **added,
        ),
        "sd_unet": host.replaced,
        "shared": _module("modules.shared", opts=options, cmd_opts=host.flags, sd_model=host.model),
        "sd_models": _module("modules.sd_models", model_data=SimpleNamespace(sd_model=host.model)),
        "devices": _module("modules.devices", device=torch.device("cpu"), dtype_unet=torch.float32),
        "paths": _module("modules.paths", models_path=str(folder / "models"), data_path=str(folder)),
        "call_queue": _module("modules.call_queue", queue_lock=threading.Lock()),
        "ui_components": _module("modules.ui_components", ToolButton=_tool_button(gradio, monkeypatch)),
    }
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setitem(sys.modules, "modules", _module("modules", **parts))
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"modules.{name}", part)
    host.shared = parts["shared"]
    return host


def _gradio() -> ModuleType:
    made = _module("gradio", __version__="3.41.2", update=lambda **values: values)
    for name in COMPONENTS.split():
        setattr(made, name, type(name, (Component,), {}))
    return made


def _tool_button(gradio: Any, monkeypatch: Any) -> Any:
    if hasattr(gradio, "component_meta"):  # gradio 4 writes a .pyi beside each file that has components
        monkeypatch.setattr(gradio.component_meta, "create_or_modify_pyi", lambda *_: None)

    class ToolButton(gradio.Button):  # type: ignore[misc]
        @wraps(gradio.Button.__init__)  # gradio 4 tells the page what the signature names
        def __init__(self, value: str, tooltip: str = "", **values: Any):
            super().__init__(value=value, **values)

        def get_block_name(self) -> str:
            return "button"

    return ToolButton


@contextmanager
def fresh() -> Any:
    """Load the extension's modules anew, and drop them after."""
    ours = [name for name in sys.modules if name.startswith("controlnet_ext.webui")]
    for name in ours:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith("controlnet_ext.webui")]:
            del sys.modules[name]


class Request:
    """StableDiffusionProcessing: `sample` calls the UNet in the way of modules/sd_samplers_cfg_denoiser.py."""

    def __init__(self, host: Any, unet: Any, prompts: list[int] | None = None, **changes: Any):
        self.host, self.unet, self.prompts = host, unet, prompts or [1]
        self.sd_model, self.steps, self.width, self.height, self.iteration = host.model, 4, 64, 64, 0
        self.extra_generation_params: dict[str, Any] = {}
        self.joined, self.skips, self.batch_size, self.n_iter = True, False, len(self.prompts), 1
        self.all_seeds, self.saves = [1], True
        self.outpath_samples = str(host.shared.opts.outdir_txt2img_samples)
        vars(self).update(changes)

    def save_samples(self) -> bool:
        return self.saves

    def sample(self, **_: Any) -> torch.Tensor:
        numbers = torch.Generator().manual_seed(7)
        count, positive = len(self.prompts), sum(self.prompts)
        batch = [[None] * n for n in self.prompts]
        sampler = SimpleNamespace(sampler_extra_args={"cond": SimpleNamespace(batch=batch)})
        denoiser = SimpleNamespace(p=self, step=0, total_steps=self.steps, sampler=sampler)
        x = torch.randn(count, 4, self.height // 8, self.width // 8, generator=numbers)
        context = torch.randn(positive + count, 16, 32, generator=numbers)
        for i in range(self.steps):
            denoiser.step = i
            whole = torch.cat([x.repeat_interleave(torch.tensor(self.prompts), 0), x])
            for function in list(self.host.callbacks):
                function(SimpleNamespace(denoiser=denoiser, x=whole))
            t = torch.full((len(whole),), 900.0 - 200 * i)
            rows = positive if self.skips and i == 0 else len(whole)
            bounds = [0, rows] if self.joined else [*range(0, rows, count), rows]
            parts = list(pairwise(bounds))
            with torch.no_grad():
                made = torch.cat([self.unet(whole[a:b], t[a:b], context=context[a:b]) for a, b in parts])
            x = x - 0.1 * made[:count]
        return x


def _module(name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(values)
    return module
