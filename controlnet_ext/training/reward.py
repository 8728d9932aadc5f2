"""The reward of a training: how well what a prediction would draw obeys the map, as a loss beside that of the noise.

After ControlNet++ (Li et al., arXiv:2404.07987, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..annotators import hed, lineart
from ..preprocessors.edges.hed import HED_WEIGHTS
from ..preprocessors.edges.lineart import LINEART_WEIGHTS
from ..preprocessors.library import Library
from .bases import EncodedBatch, FrozenBase
from .config import RewardSettings
from .losses import DiffusionLoss

Annotator = Callable[[Tensor], Tensor]
NETWORK_WEIGHTS = {"hed": HED_WEIGHTS, "lineart": LINEART_WEIGHTS}
LOW, HIGH = 100.0, 200.0  # canny's thresholds of the gradient's L1 norm, of pixels in 0..255
CANNY_SIGMA, LINE_SIGMA = 1.0, 6.0  # pixels
MIN_DARKNESS, MIN_MIDDLE = 8.0, 16.0  # of lineart_standard, of pixels in 0..255


def check_reward(settings: RewardSettings | None, is_inpainting: bool) -> None:
    """Raise ValueError for a reward beside an inpainting model, FileNotFoundError where its network is not there."""
    if settings is None:
        return
    if is_inpainting:
        raise ValueError(
            f"reward {settings.name}: the model is for inpainting, which is given most of the image; expected one that "
            "is not, or no --reward"
        )
    if settings.name in NETWORK_WEIGHTS:
        Library().fetch(NETWORK_WEIGHTS[settings.name])


class Reward:
    """The loss of a prediction's image against its example, both seen through an annotator that has gradients.

    The image is the one that the prediction makes of the noised latents in one step, through the frozen VAE. Such an
    image is sharp only where there is little noise, so that examples from `settings.timesteps` on have no such loss;
    nor have those whose map is black, as a dropped one is: there is nothing to obey.

    Raises what `Library.load_network` raises.
    """

    def __init__(
        self, settings: RewardSettings, frozen: FrozenBase, objective: DiffusionLoss, library: Library | None = None
    ):
        self._settings, self._frozen, self._objective = settings, frozen, objective
        self._annotate = load_annotator(settings.name, frozen.device, library)

    def compute_errors(self, x: Tensor, prediction: Tensor, t: Tensor, batch: EncodedBatch) -> Tensor:
        """Return the weighted losses (B,), 0 without one, of predictions (B, C, h, w) for noised latents x of that
        shape, at timesteps t (B,). A mean over examples in several processes is that over all of them."""
        has_map = torch.from_numpy(batch.maps.any((1, 2, 3)))
        rows = ((t < self._settings.timesteps) & has_map).nonzero()[:, 0]
        errors = torch.zeros(len(t), device=prediction.device)
        if len(rows) == 0:
            return errors
        clean = self._objective.predict_clean(x[rows], prediction[rows.to(prediction.device)], t[rows])
        with torch.autocast(prediction.device.type, enabled=False):
            with torch.no_grad():
                expected = self._annotate(self._frozen.decode_latents(batch.latents[rows]))
            actual = self._annotate(self._frozen.decode_latents(clean))
            differences = (actual - expected).square().mean((1, 2, 3))
        return errors.index_put((rows.to(errors.device),), self._settings.weight * differences)


def load_annotator(name: str, device: torch.device, library: Library | None = None) -> Annotator:
    """Return the function with gradients that makes maps (B, 1, H, W), of 0..1, of RGB (B, 3, H, W) in 0..1.

    Its name is that of the preprocessor that it stands for. Raises what `Library.load_network` raises.
    """
    return ANNOTATORS[name](device, library or Library())


def _load_hed(device: torch.device, library: Library) -> Annotator:
    edges = library.load_network(HED_WEIGHTS, hed.load, str(device)).module
    return lambda pixels: hed.fuse_side_outputs(edges(255 * pixels))


def _load_lineart(device: torch.device, library: Library) -> Annotator:
    paper = library.load_network(LINEART_WEIGHTS, lineart.load, str(device)).module
    return lambda pixels: 1 - paper(pixels)


def draw_soft_edges(pixels: Tensor) -> Tensor:
    """Return edges (B, 1, H, W) in 0..1 of RGB (B, 3, H, W): canny without its thinning, with soft thresholds.

    As there, the gradient is that of the strongest channel, in the L1 norm; the pixels are blurred before.
    """
    smooth = F.pad(_blur(255 * pixels, CANNY_SIGMA), (1, 1, 1, 1), mode="replicate")
    columns = smooth[:, :, :-2] + 2 * smooth[:, :, 1:-1] + smooth[:, :, 2:]  # Sobel's
    rows = smooth[..., :-2] + 2 * smooth[..., 1:-1] + smooth[..., 2:]
    norm = (columns[..., 2:] - columns[..., :-2]).abs() + (rows[:, :, 2:] - rows[:, :, :-2]).abs()
    strongest, softness = norm.amax(1, keepdim=True), (HIGH - LOW) / 4
    return (((strongest - LOW) / softness).sigmoid() + ((strongest - HIGH) / softness).sigmoid()) / 2


def draw_soft_lines(pixels: Tensor) -> Tensor:
    """Return lines (B, 1, H, W) in 0..1 of RGB (B, 3, H, W): lineart_standard's, whose scale counts as constant."""
    pixels = 255 * pixels
    darker = (_blur(pixels, LINE_SIGMA) - pixels).amin(1, keepdim=True).clamp(0, 255)
    middles = [max(MIN_MIDDLE, _find_middle(each)) for each in darker.detach()]
    return (darker / darker.new_tensor(middles).view(-1, 1, 1, 1) * 127 / 255).clamp(0, 1)


def _find_middle(darker: Tensor) -> float:
    lines = darker[darker > MIN_DARKNESS]
    return lines.median().item() if lines.numel() else 0.0


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Return x (B, C, H, W) under a Gaussian of `sigma` pixels, which repeats the pixels at the border."""
    radius, channels = round(4 * sigma), x.shape[1]
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = (-offsets.square() / (2 * sigma**2)).softmax(0).expand(channels, 1, -1)
    x = F.pad(x, (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, :, None], groups=channels)
    return F.conv2d(x, kernel[..., None], groups=channels)


ANNOTATORS: dict[str, Callable[[torch.device, Library], Annotator]] = {
    "canny": lambda *_: draw_soft_edges,
    "lineart_standard": lambda *_: draw_soft_lines,
    "hed": _load_hed,
    "lineart": _load_lineart,
}
