"""Names of a ControlNet's tensors in ldm's layout (lllyasviel's files, webui, ComfyUI) and in diffusers' layout. The
tensors are the same, so that a file turned there and back is equal to the bit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

LDM_MARKER_KEY, DIFFUSERS_MARKER_KEY = "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"
ZERO_CONV_KEYS = (
    "zero_convs.0.0.weight",
    "controlnet_down_blocks.0.weight",
)  # ldm's and diffusers', in whatever holds residuals
CONTROL_MODEL_PREFIX = "control_model."  # in lllyasviel's whole checkpoints, beside the rest of Stable Diffusion

OUTER_KEYS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
}
RESNET_KEYS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def strip_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors of the ControlNet in a checkpoint that holds more; those of any other file."""
    table = {
        name.removeprefix(CONTROL_MODEL_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(CONTROL_MODEL_PREFIX)
    }
    return table or dict(tensors)


def build_key_table(resnets: Sequence[int], scale_count: int) -> dict[str, str]:
    """diffusers' module names to ldm's, for a net with `resnets[i]` resnets in level i and a hint encoder of `scales`
    scales. A name stands for all that is below it."""
    table = dict(OUTER_KEYS)
    hint = [f"blocks.{k}" for k in range(2 * (scale_count - 1))] + ["conv_out"]
    for k, name in enumerate(hint, 1):
        table[f"controlnet_cond_embedding.{name}"] = f"input_hint_block.{2 * k}"
    blocks = 1  # input_blocks.0 is conv_in
    for level, number in enumerate(resnets):
        for j in range(number):
            table |= build_resnet_table(f"down_blocks.{level}.resnets.{j}", f"input_blocks.{blocks + j}.0")
            table[f"down_blocks.{level}.attentions.{j}"] = f"input_blocks.{blocks + j}.1"
        if level + 1 < len(resnets):
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{blocks + number}.0.op"
        blocks += number + 1
    for j in (0, 1):
        table |= build_resnet_table(f"mid_block.resnets.{j}", f"middle_block.{2 * j}")
    table["mid_block.attentions.0"] = "middle_block.1"
    table |= {f"controlnet_down_blocks.{k}": f"zero_convs.{k}.0" for k in range(blocks - 1)}
    return table


def to_ldm_keys(tensors: Mapping[str, T]) -> dict[str, T]:
    """A ControlNet's tensors under ldm's names, from diffusers' names; names that belong to no ControlNet are left as
    they are."""
    weight = "(weight|up)"  # up: of a LoRA
    levels = _count_matches(rf"down_blocks\.(\d+)\.resnets\.0\.conv1\.{weight}", tensors)
    resnets = [_count_matches(rf"down_blocks\.{i}\.resnets\.(\d+)\.conv1\.{weight}", tensors) for i in range(levels)]
    scales = 1 + _count_matches(r"controlnet_cond_embedding\.blocks\.(\d+)\.weight", tensors) // 2
    return rename_keys(tensors, build_key_table(resnets, scales))


def to_diffusers_keys(tensors: Mapping[str, T]) -> dict[str, T]:
    """A ControlNet's tensors under diffusers' names, from ldm's names; names that belong to no ControlNet are left as
    they are."""
    blocks = _count_matches(r"input_blocks\.\d+\.0\.in_layers\.0\.weight", tensors)
    downs = [name for name in tensors if re.fullmatch(r"input_blocks\.\d+\.0\.op\.(weight|up)", name)]  # up: of a LoRA
    ends = {int(name.split(".")[1]) for name in downs}
    resnets = [0]
    for n in range(1, 1 + blocks + len(ends)):
        if n in ends:
            resnets.append(0)
        else:
            resnets[-1] += 1
    scales = _count_matches(r"input_hint_block\.(\d+)\.weight", tensors) // 2
    return rename_keys(tensors, {ldm: name for name, ldm in build_key_table(resnets, scales).items()})


def build_resnet_table(name: str, ldm: str) -> dict[str, str]:
    """A resnet's module names in diffusers' layout to ldm's."""
    return {f"{name}.{a}": f"{ldm}.{b}" for a, b in RESNET_KEYS.items()}


def _count_matches(pattern: str, names: Iterable[str]) -> int:
    """Count the names that match a pattern."""
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def rename_keys(tensors: Mapping[str, T], table: Mapping[str, str]) -> dict[str, T]:
    """Return the tensors under the names that `table` gives the modules above them; others keep theirs. ValueError when
    two would have the same name."""
    renamed_tensors = {_rename_key(name, table): tensor for name, tensor in tensors.items()}
    if len(renamed_tensors) != len(tensors):
        raise ValueError("holds one tensor twice, under ldm's name and under diffusers'")
    return renamed_tensors


def _rename_key(name: str, table: Mapping[str, str]) -> str:
    head, tail = name, ""
    while head:
        if head in table:
            return table[head] + tail
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return name
