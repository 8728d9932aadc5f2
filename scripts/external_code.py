"""What other extensions import: see controlnet_ext/webui/external_code.py."""

try:
    from sd_webui_controlnet_ext.webui.external_code import *  # noqa: F403
except ModuleNotFoundError as error:
    raise ImportError("sd-webui-controlnet-ext is not loaded yet; import this when the host has started") from error
