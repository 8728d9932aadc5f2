"""Networks that judge what the embedded model draws.

`python -m tools.embedded_model.judges classes WORLDS runs/classes` and `... depth WORLDS runs/depth` train them.

Both learn on rendered scenes only, and log their accuracy or error on held-out ones. The classifier names the thing of
a scene of one thing, and the season and the time of day of a landscape. The depth network draws the map of depth of a
scene of any domain, as `render_worlds` does. Images are shifted, blurred, brightened and made noisy while they learn,
so that what an autoencoder does to an image does not change their mind.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from controlnet_ext.training.config import TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.losses import make_generator
from tools.embedded_model import landscapes, things
from tools.embedded_model.render_worlds import list_file, read_rows
from tools.embedded_model.world_sets import DOMAINS

SIDE = 96  # pixels that the networks look at
MARGIN = 8  # of them an image is shifted by, at most
BATCH = 32
UNNAMED = -100  # the label that cross entropy leaves out
KINDS = tuple(kind for group in things.read_catalog().values() for kind in group)
HEADS = {"thing": KINDS, "season": landscapes.SEASONS, "time": tuple(landscapes.TIMES)}


def read_labels(caption: str) -> dict[str, str | None]:
    """Return what a caption says of a scene by HEADS: its thing if it has just one, its season and its time of day."""
    labels: dict[str, str | None] = dict.fromkeys(HEADS)
    words = re.findall(r"\w+", caption)
    if caption.startswith(landscapes.STYLE):
        labels["season"] = next((season for season in landscapes.SEASONS if season in words), None)
        labels["time"] = next((time for time, text in landscapes.TIMES.items() if text in caption), None)
    elif caption.startswith(things.STYLE):
        named = [kind for kind in KINDS if kind in words]
        labels["thing"] = named[0] if len(named) == 1 else None
    return labels


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution of 3x3 with its normalization and activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU())


class SceneClassifier(nn.Module):
    """Logits of each of HEADS, (B, n), for images (B, 3, 96, 96) in -1..1."""

    def __init__(self, width: int = 32):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 6 * width)
        stages = [conv(3, width, 2)]
        for before, after in zip((width, *widths), widths, strict=False):
            stages += [conv(before, after, 2), conv(after, after)]
        self.trunk = nn.Sequential(*stages)
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], len(names)) for name, names in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x).mean((2, 3))
        return {name: head(features) for name, head in self.heads.items()}


class DepthNetwork(nn.Module):
    """Maps of depth (B, 1, 96, 96) in 0..1, 1 the nearest, for images (B, 3, 96, 96) in -1..1."""

    def __init__(self, width: int = 24):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 5 * width)
        self.first = conv(3, width)
        self.down = nn.ModuleList(
            nn.Sequential(conv(before, after, 2), conv(after, after))
            for before, after in zip((width, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            conv(below + beside, beside) for below, beside in zip(widths[::-1], (*widths[-2::-1], width), strict=True)
        )
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for stage in self.down:
            kept.append(stage(kept[-1]))
        x = kept.pop()
        for stage in self.up:
            skip = kept.pop()
            x = stage(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))
        return torch.sigmoid(self.last(x))


@dataclass(frozen=True, eq=False)
class JudgeSet:
    """Images (N, 96, 96, 3) uint8 RGB; their labels by head, (N,) indices or UNNAMED; their maps of depth (N, 96, 96)
    uint8."""

    images: np.ndarray
    labels: dict[str, Tensor]
    depths: np.ndarray

    @classmethod
    def read(cls, worlds: Path, split: str, domains: Iterable[str]) -> JudgeSet:
        """Read the rendered sets of these domains."""
        images, depths, named = [], [], []
        for domain in domains:
            folder = list_file(worlds, domain, split).parent
            for row in read_rows(worlds, domain, split):
                image = cv2.imread(str(folder / row["file_name"]), cv2.IMREAD_COLOR_RGB)
                depth = cv2.imread(str(folder / row["depth"]), cv2.IMREAD_GRAYSCALE)
                images.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
                depths.append(cv2.resize(depth, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
                named.append(read_labels(row["text"]))
        labels = {
            head: torch.tensor([UNNAMED if each[head] is None else names.index(each[head]) for each in named])
            for head, names in HEADS.items()
        }
        return cls(np.stack(images), labels, np.stack(depths))

    def named_rows(self) -> Tensor:
        """Numbers of the images that have a label."""
        return torch.nonzero(torch.stack(list(self.labels.values())).ne(UNNAMED).any(0))[:, 0]


def to_input(images: np.ndarray) -> Tensor:
    """Return (N, 3, H, W) float32 in -1..1 of images (N, H, W, 3) uint8 RGB."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def disturb(x: Tensor, depth: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, H, W) and their maps (B, 1, H, W), shifted alike; the images half the time blurred, all
    brighter or darker and a little noisy."""
    top, left = torch.randint(2 * MARGIN + 1, (2,), generator=rng).tolist()
    both = F.pad(torch.cat([x, depth], 1), (MARGIN,) * 4, "replicate")
    both = both[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    x, depth = both[:, :3], both[:, 3:]
    if torch.rand((), generator=rng) < 0.5:
        x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    gain = 1 + 0.2 * (torch.rand(len(x), 1, 1, 1, generator=rng) - 0.5)
    return x * gain + 0.05 * torch.randn(x.shape, generator=rng), depth


def classes_loss(net: nn.Module, data: JudgeSet, rng: torch.Generator) -> Tensor:
    """Mean cross entropy of the labels that a batch has."""
    named = data.named_rows()
    rows = named[torch.randint(len(named), (BATCH,), generator=rng)]
    x = to_input(data.images[rows.numpy()])
    x, _ = disturb(x, torch.zeros(len(x), 1, *x.shape[2:]), rng)
    logits = net(x)
    parts = [F.cross_entropy(logits[head].float(), labels[rows]) for head, labels in data.labels.items()]
    return torch.stack(parts).nan_to_num(0).sum()  # nan where a batch has no label of a head


def depth_loss(net: nn.Module, data: JudgeSet, rng: torch.Generator) -> Tensor:
    """Mean absolute error of the maps of a batch."""
    rows = torch.randint(len(data.images), (BATCH,), generator=rng).numpy()
    x, depth = disturb(to_input(data.images[rows]), torch.from_numpy(data.depths[rows])[:, None] / 255, rng)
    return (net(x).float() - depth).abs().mean()


@torch.no_grad()
def measure_classes(net: nn.Module, data: JudgeSet) -> dict[str, float]:
    """Share of right names by head."""
    chosen = [{head: x.argmax(1) for head, x in net(to_input(part)).items()} for part in batches(data.images)]
    shares = {}
    for head, labels in data.labels.items():
        right = torch.cat([part[head] for part in chosen])[labels != UNNAMED] == labels[labels != UNNAMED]
        shares[f"held_out_{head}"] = right.float().mean().item()
    return shares


@torch.no_grad()
def measure_depth(net: nn.Module, data: JudgeSet) -> dict[str, float]:
    """Mean absolute error of the maps, which are 0..1."""
    maps = torch.cat([net(to_input(part))[:, 0].float() for part in batches(data.images)])
    return {"held_out": (maps - torch.from_numpy(data.depths) / 255).abs().mean().item()}


def batches(images: np.ndarray) -> list[np.ndarray]:
    """Images in parts of at most 64."""
    return [images[first : first + 64] for first in range(0, len(images), 64)]


JUDGES = {
    "classes": (SceneClassifier, classes_loss, measure_classes, ("things", "landscapes")),
    "depth": (DepthNetwork, depth_loss, measure_depth, DOMAINS),
}


def load_judge(name: str, folder: Path) -> nn.Module:
    """Return the judge of JUDGES that was trained in a folder."""
    net = JUDGES[name][0]()
    net.load_state_dict(load_file(folder / "judge.safetensors"))
    return net.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", choices=JUDGES)
    parser.add_argument("worlds", type=Path, help="what render_worlds filled")
    parser.add_argument("folder", type=Path, help="where checkpoint, log.jsonl and judge.safetensors go")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--every", type=int, default=250)
    options = parser.parse_args()
    create, loss, measure, domains = JUDGES[options.judge]
    training, held_out = (JudgeSet.read(options.worlds, split, domains) for split in ("training", "held_out"))
    torch.manual_seed(0)
    net = train(
        create(),
        lambda net, step, part: loss(net, training, make_generator(step, part)),
        lambda net, step: measure(net, held_out),
        TrainingSchedule(options.steps, learning_rate=2e-3, evaluation_interval=options.every),
        options.folder,
    )
    if net is not None:
        save_file(net.state_dict(), options.folder / "judge.safetensors")


if __name__ == "__main__":
    main()
