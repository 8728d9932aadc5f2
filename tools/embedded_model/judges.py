"""Networks that judge what the embedded model draws.

`python -m tools.embedded_model.judges classes WORLDS runs/judges` trains one, so do `depth` and `segmentation`.

They learn on rendered scenes only, and log their accuracy or error on held-out ones. The classifier names the thing of
a scene of one thing, and the season and the time of day of a landscape. The depth network draws the map of depth of a
scene of any domain, as `render_worlds` does, and the segmentation network the classes of a landscape. Images are
shifted, blurred, brightened and made noisy while they learn, so that what an autoencoder does to an image does not
change their mind; `--vae VAE` measures that it does not.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from controlnet_ext.maps.fidelity.regions import compute_class_ious
from controlnet_ext.training.config import TrainingSchedule
from controlnet_ext.training.loop import train
from controlnet_ext.training.losses import make_generator
from tools.embedded_model import landscape_plan, things
from tools.embedded_model.render_worlds import list_file, read_class_map, read_rows
from tools.embedded_model.world_sets import DOMAINS

SIDE = 96  # pixels that the networks look at
MARGIN = 8  # of them an image is shifted by, at most
BATCH = 32
NO_LABEL = -100  # the label that cross entropy leaves out
KINDS = tuple(kind for group in things.read_catalog().values() for kind in group)
HEADS = {"thing": KINDS, "season": landscape_plan.SEASONS, "time": tuple(landscape_plan.TIMES)}


def read_labels(caption: str) -> dict[str, str | None]:
    """Return what a caption says of a scene by HEADS: its thing if it has just one, its season and its time of day."""
    labels: dict[str, str | None] = dict.fromkeys(HEADS)
    words = re.findall(r"\w+", caption)
    if caption.startswith(landscape_plan.STYLE):
        labels["season"] = next((season for season in landscape_plan.SEASONS if season in words), None)
        labels["time"] = next((time for time, text in landscape_plan.TIMES.items() if text in caption), None)
    elif caption.startswith(things.STYLE):
        kinds = read_kinds(caption)
        labels["thing"] = kinds[0] if len(kinds) == 1 else None
    return labels


def read_kinds(caption: str) -> list[str]:
    """Return the things that a caption of a glossy scene names."""
    words = set(re.findall(r"\w+", caption)) if caption.startswith(things.STYLE) else set()
    return [kind for kind in KINDS if kind in words]


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution of 3x3 with its normalization and activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU())


class SceneClassifier(nn.Module):
    """Logits of each of HEADS, (B, n), for images (B, 3, 96, 96) in -1..1."""

    def __init__(self, width: int = 40):
        super().__init__()
        stages = [conv(3, width, 2)]
        for before, after, stride in ((1, 1, 2), (1, 2, 2), (2, 4, 2), (4, 4, 1)):
            stages += [conv(before * width, after * width, stride), conv(after * width, after * width)]
        self.trunk = nn.Sequential(*stages)  # to 6x6: the smallest things fill a cell
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, len(names)) for name, names in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        features = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return {name: head(features) for name, head in self.heads.items()}


class MapNetwork(nn.Module):
    """Maps (B, outputs, 96, 96) for images (B, 3, 96, 96) in -1..1, as fine as half their size."""

    def __init__(self, outputs: int, width: int):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 5 * width)
        self.first = conv(3, width, 2)
        self.down = nn.ModuleList(
            nn.Sequential(conv(before, after, 2), conv(after, after))
            for before, after in zip((width, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            conv(below + beside, beside) for below, beside in zip(widths[::-1], (*widths[-2::-1], width), strict=True)
        )
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        skips = [self.first(x)]
        for stage in self.down:
            skips.append(stage(skips[-1]))
        x = skips.pop()
        for stage in self.up:
            skip = skips.pop()
            x = stage(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))
        return F.interpolate(self.last(x), size=size, mode="bilinear")


class DepthNetwork(MapNetwork):
    """Maps of depth (B, 1, 96, 96) in 0..1, 1 the nearest."""

    def __init__(self, width: int = 24):
        super().__init__(1, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class SegmentationNetwork(MapNetwork):
    """Logits of the classes of landscapes (B, 7, 96, 96)."""

    def __init__(self, width: int = 24):
        super().__init__(len(landscape_plan.CLASSES), width)


@dataclass(frozen=True, eq=False)
class JudgeSet:
    """Images (N, 96, 96, 3) uint8 RGB; their labels by head, (N,) indices or NO_LABEL; which things they show,
    (N, kinds) bool; their maps (N, 96, 96) uint8, of depth or of numbers of classes, none for the classifier."""

    images: np.ndarray
    labels: dict[str, Tensor]
    kinds: Tensor
    maps: np.ndarray | None

    @classmethod
    def read(cls, worlds: Path, split: str, judge: Judge, count: int, vae: Any = None) -> JudgeSet:
        """Read the first `count` images of each domain of a judge; with a VAE as it gives them back."""
        images, maps, captions = [], [], []
        for domain in judge.domains:
            folder = list_file(worlds, domain, split).parent
            for row in read_rows(worlds, domain, split)[:count]:
                image = cv2.imread(str(folder / row["file_name"]), cv2.IMREAD_COLOR_RGB)
                images.append(shrink(image if vae is None else reconstruct(vae, image[None])[0]))
                captions.append(row["text"])
                if judge.column is not None:
                    maps.append(read_map(folder / row[judge.column], judge.column))
        label_rows = [read_labels(caption) for caption in captions]
        labels = {
            head: torch.tensor([NO_LABEL if each[head] is None else names.index(each[head]) for each in label_rows])
            for head, names in HEADS.items()
        }
        shown = [set(read_kinds(caption)) for caption in captions]
        kinds = torch.tensor([[kind in each for kind in KINDS] for each in shown])
        return cls(np.stack(images), labels, kinds, np.stack(maps) if maps else None)

    def labeled_groups(self) -> dict[str, Tensor]:
        """Numbers of the images that show things, and of those that have a season or a time of day."""
        has_landscape = torch.stack([self.labels["season"], self.labels["time"]]).ne(NO_LABEL).any(0)
        groups = {"things": self.kinds.any(1), "landscapes": has_landscape}
        return {name: torch.nonzero(each)[:, 0] for name, each in groups.items()}


def shrink(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) or a map (H, W) uint8 at the size that the networks look at."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def read_map(path: Path, column: str) -> np.ndarray:
    """Return a rendered map (96, 96) uint8: depth, or the number of the class of each pixel."""
    if column == "depth":
        return shrink(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    return cv2.resize(
        read_class_map(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST
    )


@torch.no_grad()
def reconstruct(vae: Any, images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, 3) uint8 RGB encoded and decoded by a VAE of either kind, 16 at a time."""
    parts = []
    for part in to_input(images).to(vae.device).split(16):
        encoding = vae.encode(part)
        latents = encoding.latents if hasattr(encoding, "latents") else encoding.latent_dist.mode()
        parts.append(((vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(parts).permute(0, 2, 3, 1).cpu().numpy()


def to_input(images: np.ndarray) -> Tensor:
    """Return (N, 3, H, W) float32 in -1..1 of images (N, H, W, 3) uint8 RGB."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def disturb(x: Tensor, maps: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, H, W) and their maps (B, 1, H, W), shifted alike; the images half the time blurred, all
    brighter or darker and a little noisy."""
    top, left = torch.randint(2 * MARGIN + 1, (2,), generator=rng).tolist()
    both = F.pad(torch.cat([x, maps], 1), (MARGIN,) * 4, "replicate")
    both = both[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    x, maps = both[:, :3], both[:, 3:]
    if torch.rand((), generator=rng) < 0.5:
        x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    gain = 1 + 0.2 * (torch.rand(len(x), 1, 1, 1, generator=rng) - 0.5)
    return x * gain + 0.05 * torch.randn(x.shape, generator=rng), maps


def classes_loss(net: nn.Module, data: JudgeSet, rng: torch.Generator) -> Tensor:
    """Mean cross entropy of the labels of a batch, three quarters things and the rest landscapes, which are soon
    learnt. The things of a scene share one: so scenes of several teach what things look like too."""
    groups = {name: group for name, group in data.labeled_groups().items() if len(group)}
    counts = {"things": BATCH * 3 // 4, "landscapes": BATCH // 4} if len(groups) > 1 else dict.fromkeys(groups, BATCH)
    rows = torch.cat([each[torch.randint(len(each), (counts[name],), generator=rng)] for name, each in groups.items()])
    x = to_input(data.images[rows.numpy()])
    x, _ = disturb(x, torch.zeros(len(x), 1, *x.shape[2:]), rng)
    logits = {head: each.float() for head, each in net(x).items()}
    kinds = data.kinds[rows].float()
    shares = kinds / kinds.sum(1, keepdim=True).clamp(min=1)
    parts = [-(shares * F.log_softmax(logits["thing"], 1)).sum() / shares.sum().clamp(min=1)]
    parts += [F.cross_entropy(logits[head], data.labels[head][rows]) for head in ("season", "time")]
    return torch.stack(parts).nan_to_num(0).sum()  # nan where a batch has no label of a head


def draw_batch(data: JudgeSet, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return disturbed images (B, 3, H, W) and their maps (B, H, W), 0..255."""
    assert data.maps is not None
    rows = torch.randint(len(data.images), (BATCH,), generator=rng).numpy()
    x, maps = disturb(to_input(data.images[rows]), torch.from_numpy(data.maps[rows])[:, None].float(), rng)
    return x, maps[:, 0]


def depth_loss(net: nn.Module, data: JudgeSet, rng: torch.Generator) -> Tensor:
    """Mean absolute error of the maps of a batch."""
    x, maps = draw_batch(data, rng)
    return (net(x)[:, 0].float() - maps / 255).abs().mean()


def segmentation_loss(net: nn.Module, data: JudgeSet, rng: torch.Generator) -> Tensor:
    """Mean cross entropy of the pixels of a batch."""
    x, maps = draw_batch(data, rng)
    return F.cross_entropy(net(x).float(), maps.long())


def measure_classes(net: nn.Module, data: JudgeSet) -> dict[str, float]:
    """Share of right names by head."""
    predictions = name_images(net, data.images)
    shares = {}
    for head, labels in data.labels.items():
        right = (predictions[head] == labels.numpy())[labels.numpy() != NO_LABEL]
        shares[head] = float(right.mean()) if len(right) else float("nan")
    return shares


def measure_depth(net: nn.Module, data: JudgeSet) -> dict[str, float]:
    """Mean absolute error of the maps, which are 0..1."""
    assert data.maps is not None
    return {"depth": float(np.abs(draw_depths(net, data.images) - data.maps / 255).mean())}


def measure_segmentation(net: nn.Module, data: JudgeSet) -> dict[str, float]:
    """Share of pixels of the right class, and the mean over images of their mean intersection over union."""
    assert data.maps is not None
    found = draw_classes(net, data.images)
    ious = [
        np.mean(list(compute_class_ious(*(each.astype(np.int64).ravel() for each in pair)).values()))
        for pair in zip(data.maps, found, strict=True)
    ]
    return {"pixels": float((found == data.maps).mean()), "miou": float(np.mean(ious))}


@torch.no_grad()
def name_images(net: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the numbers (N,) of the names of each of HEADS for images (N, 96, 96, 3) uint8 RGB."""
    parts = [net(to_input(part)) for part in batches(images)]
    return {head: torch.cat([part[head].argmax(1) for part in parts]).numpy() for head in HEADS}


@torch.no_grad()
def draw_depths(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return maps of depth (N, 96, 96), 0..1, for images (N, 96, 96, 3) uint8 RGB."""
    return torch.cat([net(to_input(part))[:, 0].float() for part in batches(images)]).numpy()


@torch.no_grad()
def draw_classes(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return numbers of classes (N, 96, 96) uint8 for images (N, 96, 96, 3) uint8 RGB."""
    return torch.cat([net(to_input(part)).argmax(1).byte() for part in batches(images)]).numpy()


def batches(images: np.ndarray) -> list[np.ndarray]:
    """Images in parts of at most 64."""
    return [images[first : first + 64] for first in range(0, len(images), 64)]


@dataclass(frozen=True)
class Judge:
    """How a network is made, learns and is measured; its domains, and the column of the maps that it learns."""

    create: Callable[..., nn.Module]
    compute_loss: Callable[[nn.Module, JudgeSet, torch.Generator], Tensor]
    measure: Callable[[nn.Module, JudgeSet], dict[str, float]]
    domains: tuple[str, ...]
    steps: int
    column: str | None = None


JUDGES = {
    "classes": Judge(SceneClassifier, classes_loss, measure_classes, ("things", "landscapes"), 8000),
    "depth": Judge(DepthNetwork, depth_loss, measure_depth, DOMAINS, 4000, "depth"),
    "segmentation": Judge(
        SegmentationNetwork, segmentation_loss, measure_segmentation, ("landscapes",), 2000, "segmentation"
    ),
}


def load_judge(name: str, folder: Path) -> nn.Module:
    """Return the judge of JUDGES that was trained in a folder."""
    net = JUDGES[name].create()
    net.load_state_dict(load_file(folder / name / "judge.safetensors"))
    return net.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judge", choices=JUDGES)
    parser.add_argument("worlds", type=Path, help="what render_worlds filled")
    parser.add_argument("folder", type=Path, help="FOLDER/JUDGE gets checkpoint, log.jsonl and judge.safetensors")
    parser.add_argument("--steps", type=int, help="by default those of the judge")
    parser.add_argument("--every", type=int, default=500, help="steps between two checkpoints and rows of log.jsonl")
    parser.add_argument("--count", type=int, default=20_000, help="images of each domain")
    parser.add_argument("--vae", type=Path, help="only measure the trained judge, also on what this VAE gives back")
    options = parser.parse_args()
    judge, folder = JUDGES[options.judge], options.folder / options.judge
    held_out = JudgeSet.read(options.worlds, "held_out", judge, options.count)
    if options.vae is not None:
        net = load_judge(options.judge, options.folder)
        vae = AutoencoderTiny.from_pretrained(options.vae).eval()
        given_back = JudgeSet.read(options.worlds, "held_out", judge, options.count, vae)
        print(f"{len(held_out.images)} held-out images", judge.measure(net, held_out))
        print("as the VAE gives them back", judge.measure(net, given_back))
        return
    training = JudgeSet.read(options.worlds, "training", judge, options.count)
    print(f"{len(training.images)} images to learn from", flush=True)
    torch.manual_seed(0)
    net = train(
        judge.create(),
        lambda net, step, part: judge.compute_loss(net, training, make_generator(step, part)),
        lambda net, step: {f"held_out_{name}": value for name, value in judge.measure(net, held_out).items()},
        TrainingSchedule(options.steps or judge.steps, learning_rate=2e-3, evaluation_interval=options.every),
        folder,
    )
    if net is not None:
        save_file(net.state_dict(), folder / "judge.safetensors")


if __name__ == "__main__":
    main()
