"""Control files whose tensors were lost, renamed, bent or filled with other things load or are refused in one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from networks import reference, unet
from safetensors.torch import save_file
from test_control_lora import MARK, parts
from test_union import theirs as union

from controlnet_ext import models
from controlnet_ext.models.inspection import inspect
from controlnet_ext.models.state_dict.ldm_keys import to_ldm_keys

CONFIGS = [
    "{}",
    '{"attention_head_dim": []}',
    '{"norm_num_groups": "x"}',
    '{"global_pool_conditions": 3}',
    '{"addition_time_embed_dim": -1}',
    '{"num_attention_heads": {}}',
    "[]",
    "{",
]
PREFIXES = ("control_model.", "difference", "", "adapter.")
DTYPES = (torch.int64, torch.bool, torch.float64, torch.float8_e5m2, torch.bfloat16)


def damage(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    name = draw.choice(sorted(tensors))
    x = tensors.pop(name)
    match draw.randrange(8):
        case 0:
            return
        case 1:
            name = draw.choice(PREFIXES) + name + draw.choice(["", ".x", "9"])
        case 2 if x.numel():
            x = x.reshape(-1, 1)
        case 3:
            x = x.to(draw.choice(DTYPES))
        case 4:
            x = x * torch.nan
        case 5:
            tensors[name.replace("0", "1")] = x.clone()
        case 6:
            x = x.flatten()
        case 7 if x.ndim:
            x = x[: len(x) // 2]
    tensors[name] = x


@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.long)])
def test_damaged_control_files_load_or_are_refused_in_one_line(count: int, tmp_path: Path) -> None:
    draw, path, refused = random.Random(count), tmp_path / "net.safetensors", 0
    whole = [
        (to_ldm_keys(reference("SDXL small").state_dict()), unet("SDXL")),
        (parts(reference("SD1.5"), unet("SD1.5"))[0] | MARK, unet("SD1.5")),
        (union().state_dict(), unet("SDXL")),
    ]
    for _ in range(count):
        tensors, base = draw.choice(whole)
        tensors = dict(tensors)
        for _ in range(draw.randint(1, 3)):
            damage(tensors, draw)
        content = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(content, path, {models.CONFIG_METADATA_KEY: draw.choice(CONFIGS)})
        try:
            inspect(path)
            models.load(path).bind(base)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > count / 2
