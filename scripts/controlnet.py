"""The script that stable-diffusion-webui loads.

ADetailer ships a package called `controlnet_ext`, so inside the webui ours has another name: all its imports are
relative.
"""

import sys
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "sd_webui_controlnet_ext"

if NAME not in sys.modules:
    folder = Path(__file__).resolve().parent.parent / "controlnet_ext"
    spec = spec_from_file_location(NAME, folder / "__init__.py", submodule_search_locations=[str(folder)])
    sys.modules[NAME] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])

from sd_webui_controlnet_ext.webui import start  # noqa: E402

ControlNet = start()

with suppress(ImportError):  # without it Tiled Diffusion does not find the extension, and its tiles are refused
    import scripts.cldm  # noqa: F401  # by that name it is imported later, when the path to it is gone
