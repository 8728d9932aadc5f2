"""hires fix: a picture is made small, enlarged, and gone over once more. Sizes as in AUTOMATIC1111 1.10.1
(modules/processing.py)."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import Fields
from .limits import Limits

LATENT = {  # upscaler: torch's mode and antialias, of the latents
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
PIXELS = {"None": "lanczos", "Lanczos": "lanczos", "Nearest": "nearest"}  # upscaler: of the picture
UPSCALERS = (*LATENT, *PIXELS)
NOT_OFFERED = ("hr_prompt", "hr_negative_prompt", "hr_sampler_name", "hr_scheduler", "hr_checkpoint_name")
SCALE = 4  # at most


@dataclass(frozen=True)
class SecondPass:
    """The picture of the first pass enlarged to `over`, (height, width) that cover `size` and are cut to it, then
    `steps` at that strength."""

    size: tuple[int, int]
    over: tuple[int, int]
    upscaler: str
    steps: int
    strength: float


def read_second_pass(fields: Fields, height: int, width: int, steps: int, limits: Limits) -> SecondPass | None:
    """What the request for a first pass of this size and steps says of a second; None without `enable_hr`."""
    if not fields.flag("enable_hr"):
        return None
    for name in NOT_OFFERED:
        if fields.get(name) is not None and fields.get(name) != fields.get(name.removeprefix("hr_")):
            raise ValueError(f"{fields.where}: {name} is not offered by this server")
    x, y = (fields.whole(f"hr_resize_{axis}", default=0, low=0, high=limits.side) for axis in ("x", "y"))
    scale = fields.number("hr_scale", default=2, low=1, high=SCALE)
    if x and y:
        scale = max(x / width, y / height)
    elif x or y:
        scale = x / width if x else y / height
    over = _eights(height * scale), _eights(width * scale)
    size = (min(_eights(y), over[0]), min(_eights(x), over[1])) if x and y else over
    if min(size) < 64 or max(size) > limits.side:
        raise ValueError(
            f"{fields.where}: the second pass makes {size[1]}x{size[0]}, expected sides of 64..{limits.side}"
        )
    return SecondPass(
        size,
        over,
        _upscaler(fields),
        fields.whole("hr_second_pass_steps", default=0, low=0, high=limits.steps) or steps,
        fields.number("denoising_strength", default=0.75, low=0, high=1),
    )


def _eights(side: float) -> int:
    return int(side + 1e-6) // 8 * 8  # 1e-6: 3 * (64 / 3) is 64


def _upscaler(fields: Fields) -> str:
    value = fields.values.get("hr_upscaler") or "Latent"  # "None" is one
    for known in UPSCALERS:
        if str(value).strip().casefold() == known.casefold():
            return known
    raise fields.wrong("hr_upscaler", value, "one of " + ", ".join(map(repr, UPSCALERS)))
