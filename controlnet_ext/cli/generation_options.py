"""Help texts of flags that several commands with a pipeline share."""

from ..generation.recipe import DEVICES, DTYPES

DEVICE_HELP = f"one of: {', '.join(DEVICES)}, or cuda:N (default: the fastest one present)"
DTYPE_HELP = f"one of: {', '.join(DTYPES)} (default: float32 on a CPU, float16 elsewhere)"
MODEL_HELP = "folder saved by diffusers (SD1.5, SD2.1, SDXL), or owner/name in the local Hugging Face cache"
