"""OpenPose's networks for bodies, hands and faces: convolutional pose machines, each a trunk and six stages that look
at the trunk's features and at what the stage before said (Cao et al., arXiv 1611.08050; Simon et al., arXiv
1704.07809).

Modules have the names of the published files, which list all layers side by side. All read BGR in -0.5..0.5 and answer
at an eighth of its size. CMU licenses the weights for non-commercial use only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BODY_PAF_CHANNELS, BODY_HEATMAP_CHANNELS = (
    38,
    19,
)  # maps of the body: two fields for each of 19 limbs, 18 points and what is nobody
HAND_HEATMAP_CHANNELS, FACE_HEATMAP_CHANNELS = 22, 71  # points, and what is none
_FEATURE_CHANNELS = 128
# (name, output channels), 3x3; a pooling is written as None. VGG-19's layers to conv4_2, then what was added
_VGG_LAYERS = (
    *(("conv1_1", 64), ("conv1_2", 64), None, ("conv2_1", 128), ("conv2_2", 128), None),
    *(("conv3_1", 256), ("conv3_2", 256), ("conv3_3", 256), ("conv3_4", 256), None, ("conv4_1", 512), ("conv4_2", 512)),
)
_BODY_TRUNK = (*_VGG_LAYERS, ("conv4_3_CPM", 256), ("conv4_4_CPM", _FEATURE_CHANNELS))
_PART_TRUNK = (
    *(*_VGG_LAYERS, ("conv4_3", 512), ("conv4_4", 512), ("conv5_1", 512), ("conv5_2", 512)),
    ("conv5_3_CPM", _FEATURE_CHANNELS),
)


class BodyPoseNetwork(nn.Module):
    """Fields (B, 38, h, w) and heat maps (B, 19, h, w) of images (B, 3, 8h, 8w)."""

    def __init__(self) -> None:
        super().__init__()
        _add_trunk(self, _BODY_TRUNK)
        for branch, outputs in (("L1", BODY_PAF_CHANNELS), ("L2", BODY_HEATMAP_CHANNELS)):
            for i in (1, 2, 3):
                _add_conv(self, f"conv5_{i}_CPM_{branch}", _FEATURE_CHANNELS, 128, 3)
            _add_conv(self, f"conv5_4_CPM_{branch}", 128, 512, 1)
            _add_conv(self, f"conv5_5_CPM_{branch}", 512, outputs, 1)
            for stage in range(2, 7):
                _add_stage(
                    self,
                    f"stage{stage}_{branch}",
                    _FEATURE_CHANNELS + BODY_PAF_CHANNELS + BODY_HEATMAP_CHANNELS,
                    outputs,
                )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = _apply_trunk(self, _BODY_TRUNK, x)
        first = [[f"conv5_{i}_CPM_{branch}" for i in range(1, 6)] for branch in ("L1", "L2")]
        fields, heat = (_apply_layers(self, names, features) for names in first)
        for stage in range(2, 7):
            x = torch.cat([fields, heat, features], dim=1)
            fields, heat = (_apply_stage(self, f"stage{stage}_{branch}", x) for branch in ("L1", "L2"))
        return fields, F.relu(heat)  # in the original, whose list of layers without a relu names L1 twice


class PartPoseNetwork(nn.Module):
    """Heat maps (B, N, h, w) of images (B, 3, 8h, 8w) of one hand (N = 22) or one face (N = 71)."""

    def __init__(self, out_channels: int):
        super().__init__()
        _add_trunk(self, _PART_TRUNK)
        _add_conv(self, "conv6_1_CPM", _FEATURE_CHANNELS, 512, 1)
        _add_conv(self, "conv6_2_CPM", 512, out_channels, 1)
        for stage in range(2, 7):
            _add_stage(self, f"stage{stage}", _FEATURE_CHANNELS + out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        features = _apply_trunk(self, _PART_TRUNK, x)
        heat = _apply_layers(self, ["conv6_1_CPM", "conv6_2_CPM"], features)
        for stage in range(2, 7):
            heat = _apply_stage(self, f"stage{stage}", torch.cat([heat, features], dim=1))
        return heat


def load_body(tensors: dict[str, Tensor]) -> BodyPoseNetwork:
    """The network of body_pose_model.pth. RuntimeError unless the tensors are exactly its own; so below."""
    with torch.device("meta"):
        net = BodyPoseNetwork()
    net.load_state_dict(tensors, assign=True)
    return net


def load_hand(tensors: dict[str, Tensor]) -> PartPoseNetwork:
    """The network of hand_pose_model.pth."""
    return _load_part(tensors, HAND_HEATMAP_CHANNELS)


def load_face(tensors: dict[str, Tensor]) -> PartPoseNetwork:
    """The network of facenet.pth."""
    return _load_part(tensors, FACE_HEATMAP_CHANNELS)


def _load_part(tensors: dict[str, Tensor], out_channels: int) -> PartPoseNetwork:
    with torch.device("meta"):
        net = PartPoseNetwork(out_channels)
    net.load_state_dict(tensors, assign=True)
    return net


def _add_conv(net: nn.Module, name: str, in_channels: int, out_channels: int, kernel_size: int) -> None:
    net.add_module(name, nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2))


def _add_trunk(net: nn.Module, layers: tuple[tuple[str, int] | None, ...]) -> None:
    inputs = 3
    for layer in layers:
        if layer:
            _add_conv(net, layer[0], inputs, layer[1], 3)
            inputs = layer[1]


def _add_stage(net: nn.Module, name: str, in_channels: int, out_channels: int) -> None:
    for i in range(1, 6):
        _add_conv(net, f"Mconv{i}_{name}", in_channels if i == 1 else 128, 128, 7)
    _add_conv(net, f"Mconv6_{name}", 128, 128, 1)
    _add_conv(net, f"Mconv7_{name}", 128, out_channels, 1)


def _apply_trunk(net: nn.Module, layers: tuple[tuple[str, int] | None, ...], x: Tensor) -> Tensor:
    for layer in layers:
        x = F.relu(getattr(net, layer[0])(x)) if layer else F.max_pool2d(x, 2)
    return x


def _apply_stage(net: nn.Module, name: str, x: Tensor) -> Tensor:
    return _apply_layers(net, [f"Mconv{i}_{name}" for i in range(1, 8)], x)


def _apply_layers(net: nn.Module, names: list[str], x: Tensor) -> Tensor:
    """One layer after another, a relu after each but the last."""
    for name in names[:-1]:
        x = F.relu(getattr(net, name)(x))
    return getattr(net, names[-1])(x)
