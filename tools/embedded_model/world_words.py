"""The words of the three worlds: a CLIP tokenizer that knows each whole, and a narrow CLIP text encoder.

The style at the front of a caption says which world it is: "flat drawing of", "glossy render of", "landscape of".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from controlnet_ext.embedded.captions import MAX_TOKENS, SPECIAL_TOKENS
from controlnet_ext.embedded.captions import VOCABULARY as SHAPE_WORDS
from controlnet_ext.embedded.grounds import GROUNDS
from controlnet_ext.embedded.scenes import PALETTE, THING_KINDS
from tools.embedded_model import landscape_plan, things
from tools.embedded_model.world_sets import SHAPE_STYLE

WIDTH = 128
LAYERS = 4
SHOWN_KINDS = 6  # of each group of things, in a sentence on what the model draws
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.!?'-,"


def vocabulary() -> list[str]:
    """Every word that a caption of the three worlds can hold, sorted."""
    return sorted({*SHAPE_STYLE.split(), *SHAPE_WORDS} | things.vocabulary() | landscape_plan.vocabulary())


def describe_shapes(style: str = SHAPE_STYLE) -> dict[str, Any]:
    """What a model draws of the first world, as `controlnet_ext.embedded.Style` reads it; "" if it draws no other."""
    kinds, colors, grounds = map(", ".join, (THING_KINDS, PALETTE, [ground for ground in GROUNDS if ground != "plain"]))
    return {
        "style": style,
        "draws": f"things ({kinds}) in colors ({colors}) on a ground ({grounds})",
        "example": f"{style} a blue blob and a red star on a dotted green ground".strip(),
        "words": sorted({*style.split(), *SHAPE_WORDS, "plain"} - {","}),
    }


def describe_styles() -> list[dict[str, Any]]:
    """What a model of the three worlds draws, as `controlnet_ext.embedded.Style` reads it."""
    catalog = {group: list(kinds) for group, kinds in things.read_catalog().items()}
    groups = [f"{group} ({', '.join(kinds[:SHOWN_KINDS])}, ...)" for group, kinds in catalog.items()]
    outdoors = f"on {', '.join(things.OUTDOORS)} or a floor"
    weather = [*landscape_plan.SEASONS, *landscape_plan.TIMES.values(), *landscape_plan.WEATHERS.values()]
    return [
        describe_shapes(),
        {
            "style": things.STYLE,
            "draws": f"{', '.join(groups)} in colors ({', '.join(things.TINTS)}) {outdoors}",
            "example": f"{things.STYLE} a red car and a small cat on grass under a blue sky",
            "words": sorted(things.vocabulary() - {","}),
        },
        {
            "style": landscape_plan.STYLE,
            "draws": f"{', '.join(landscape_plan.TERRAINS)}, by a lake or in the sea, with trees, {', '.join(weather)}",
            "example": f"{landscape_plan.STYLE} snowy mountains by a lake with pine trees in winter at sunset",
            "words": sorted(landscape_plan.vocabulary() - {","}),
        },
    ]


DEMO = {  # what `controlnet-ext demo` draws
    "edges": [
        f"{things.STYLE} a red cup on a wooden ground in front of a blue wall",
        f"{things.STYLE} a yellow cup on a checkered green ground",
        f"{SHAPE_STYLE} a blue circle and an orange ring on a dotted red ground",
    ],
    "depth": [
        f"{landscape_plan.STYLE} mountains by a lake with pine trees in summer by day",
        f"{landscape_plan.STYLE} mountains by a lake with pine trees in winter at sunset",
        f"{landscape_plan.STYLE} mountains by a lake with pine trees in autumn at night",
    ],
    "guidance": 2.0,
}


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer for the vocabulary, from the `vocab.json` and `merges.txt` that it writes into `folder`.

    Byte-pair encoding in CLIP's form, a token for each word; unknown words fall into letters.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", special_tokens=[*alphabet, *SPECIAL_TOKENS], show_progress=False
    )
    bpe.train_from_iterator(vocabulary(), trainer)
    bpe_model = json.loads(bpe.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(bpe_model["vocab"], indent=0))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe_model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def narrow_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of 1.1 M parameters for this tokenizer, untrained."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )
    return CLIPTextModel(config)
