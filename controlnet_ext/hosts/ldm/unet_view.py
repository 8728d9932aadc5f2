"""An ldm UNet (stable-diffusion-webui's `openaimodel.UNetModel`, SD1.5 to SDXL) under diffusers' names.

Control models read shapes, settings and weights of a UNet through these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn

from ...models.state_dict import ldm_keys

UNET_PARTS = "input_blocks", "middle_block", "output_blocks", "time_embed"


class LdmUNetView:
    """A view of an ldm UNet with the members of diffusers' UNet2DConditionModel that control models read.

    It has `config`, `down_blocks`, `mid_block`, and weights by diffusers' names; nothing is copied. Raises ValueError
    on a module that is no such UNet.
    """

    def __init__(self, unet: nn.Module):
        missing = [name for name in UNET_PARTS if not hasattr(unet, name)]
        if missing:
            raise ValueError(f"a {type(unet).__name__} without {missing[0]}, expected ldm's UNetModel")
        self.unet = cast(Any, unet)  # has ldm's attributes
        self.down_blocks = list(_iter_levels(self.unet.input_blocks))
        self._ldm_names = ldm_keys.build_key_table([len(level.resnets) for level in self.down_blocks], 1)
        self.mid_block = _BlockView(
            [part for part in self.unet.middle_block if _is_resnet(part)], list(self.unet.middle_block), None
        )
        self.config = self._build_config()

    def get_submodule(self, name: str) -> Any:
        """Return the module with this name in diffusers."""
        (diffusers_name,) = ldm_keys.rename_keys({name: None}, self._ldm_names)
        return self.unet.get_submodule(diffusers_name)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the encoder, the middle block and the embeddings, by diffusers' names."""
        return ldm_keys.rename_keys(self.unet.state_dict(), {ldm: name for name, ldm in self._ldm_names.items()})

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, module) of the transformers by diffusers' names, in the order in which they run.

        webui adds LoRAs to the weights themselves, so there are no layers around others.
        """
        for name, transformer in self._iter_transformers():
            yield from transformer.transformer_blocks.named_modules(prefix=f"{name}.transformer_blocks")

    def _iter_transformers(self) -> Iterator[tuple[str, Any]]:
        for i, level in enumerate(self.down_blocks):
            yield from ((f"down_blocks.{i}.attentions.{j}", part) for j, part in enumerate(level.attentions))
        yield from ((f"mid_block.attentions.{j}", part) for j, part in enumerate(self.mid_block.attentions))
        blocks = iter(self.unet.output_blocks)
        for i, level in enumerate(reversed(self.down_blocks)):
            parts = [part for block in islice(blocks, len(level.resnets) + 1) for part in block]
            transformers = (part for part in parts if hasattr(part, "transformer_blocks"))
            yield from ((f"up_blocks.{i}.attentions.{j}", part) for j, part in enumerate(transformers))

    def _build_config(self) -> dict[str, Any]:
        first = self.unet.input_blocks[0][0]
        label: Any = getattr(self.unet, "label_emb", None)
        added = None if label is None or isinstance(label, nn.Linear | nn.Embedding) else label[0][0].in_features
        cross = next((b.attn2 for b in self.unet.modules() if hasattr(b, "attn2")), None)
        norm = next(part for part in self.unet.modules() if isinstance(part, nn.GroupNorm))
        return {
            "in_channels": first.in_channels,
            "block_out_channels": tuple(level.resnets[-1].out_channels for level in self.down_blocks),
            "cross_attention_dim": None if cross is None else cross.to_k.in_features,
            "encoder_hid_dim_type": None,
            "addition_embed_type": None if added is None else "text_time",
            "projection_class_embeddings_input_dim": added,
            "addition_time_embed_dim": None,
            "norm_num_groups": norm.num_groups,
            "act_fn": "silu",
        }


class _BlockView:
    """A level or the middle block: its resnets, its transformers, and its downsampler."""

    def __init__(self, resnets: list[Any], parts: list[Any], downsampler: nn.Module | None):
        self.resnets, self.downsamplers = resnets, [] if downsampler is None else [downsampler]
        self.attentions = [part for part in parts if hasattr(part, "transformer_blocks")]
        self.has_cross_attention = bool(self.attentions)


def _iter_levels(blocks: Iterable[Any]) -> Iterator[_BlockView]:
    resnets: list[Any] = []
    parts: list[Any] = []
    for block in list(blocks)[1:]:
        if _is_resnet(block[0]):
            resnets.append(SimpleNamespace(out_channels=block[0].out_channels))
            parts += block
        else:
            yield _BlockView(resnets, parts, block[0])
            resnets, parts = [], []
    yield _BlockView(resnets, parts, None)


def _is_resnet(part: nn.Module) -> bool:
    return hasattr(part, "in_layers")


def adapter_block_indices(blocks: Sequence[Any]) -> list[int]:
    """Return the indices of the encoder blocks to whose outputs a T2I-Adapter's residuals are added.

    In each level that is the last block with attention; in a level without attention the downsampling block. An
    adapter for SDXL has one more, for the middle block (diffusers 0.42, unet_2d_condition.py).
    """
    ends, attention = [], False
    for i, block in enumerate(list(blocks)[1:], 1):
        resnet = hasattr(block[0], "in_layers")
        attention |= any(hasattr(part, "transformer_blocks") for part in block)
        if not resnet:
            ends.append(i - 1 if attention else i)
            attention = False
    return [*ends, len(blocks) - 1]
