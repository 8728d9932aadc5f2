"""The panel on a page of the gradio that is installed, with stand-ins for the rest of the host:
`python tests/webui_page.py FOLDER PORT`. Beside the panel the page has what it talks to: the host's size and its paste
of PNG info."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gradio
import pytest
from webui_host import fresh, install


def page() -> Any:
    """The blocks; the host's stand-ins are installed."""
    from controlnet_ext.webui.panel import build_panel

    with gradio.Blocks() as made:
        gradio.Number(512, elem_id="txt2img_width")
        gradio.Number(512, elem_id="txt2img_height")
        said = gradio.Textbox(elem_id="infotext")
        panel = build_panel(Tab(), False, 1)
        paste = gradio.Button("Paste", elem_id="paste")
        paste.click(
            lambda text: _pasted(json.loads(text), panel.paste_fields), [said], [c for c, _ in panel.paste_fields]
        )
        told = gradio.Textbox(elem_id="told")
        tell = gradio.Button("Tell", elem_id="tell")
        tell.click(_told, panel.components, [told])
    return made


class Tab:
    """The script in txt2img."""

    def elem_id(self, name: str) -> str:
        return f"script_txt2img_controlnet_{name}"


def _pasted(said: dict[str, Any], readers: list[tuple[Any, Any]]) -> list[Any]:
    """As modules/infotext_utils.py of stable-diffusion-webui 1.10.1 does it with functions."""
    found = []
    for component, read in readers:
        value = read(said)
        if value is None or isinstance(value, dict):
            found.append(value or gradio.update())
        else:
            found.append(gradio.update(value=type(component.value)(value)))
    return found


def _told(*values: Any) -> str:
    """What a generation would get: the first unit, with its image's and its mask's size and mean."""
    from controlnet_ext.webui.inputs import parse_unit_arguments

    (unit,) = parse_unit_arguments(values)
    image = unit.pop("image")
    image = image if isinstance(image, dict) else {"image": image, "mask": None}
    for name, pixels in image.items():
        unit[name] = None if pixels is None else [*pixels.shape, round(float(pixels[..., :3].mean()), 1)]
    return json.dumps(unit)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "models" / "ControlNet").mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, fresh():
        install(patch, folder, None, gradio)
        page().launch(server_name="127.0.0.1", server_port=int(sys.argv[2]), show_api=False)
