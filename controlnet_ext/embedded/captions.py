"""The embedded model's words: a CLIP tokenizer that knows the captions' words whole, and a narrow CLIP text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .grounds import GROUNDS
from .scenes import PALETTE, THING_KINDS

TEXT_WIDTH = 128
MAX_TOKENS = 77  # as in Stable Diffusion, so that hosts that know its prompts know these
VOCABULARY = (*PALETTE, *THING_KINDS, *(g for g in GROUNDS if g != "plain"), "ground", "and", "an", "on", "a", ",")
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")


def write_vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt of byte-pair encoding in CLIP's form, every word of a caption one token. Unknown words
    fall into letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.!?'-,"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", special_tokens=[*alphabet, *SPECIAL_TOKENS], show_progress=False
    )
    bpe.train_from_iterator(VOCABULARY, trainer)
    bpe_model = json.loads(bpe.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(bpe_model["vocab"], indent=0))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe_model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer of the vocabulary in a folder."""
    write_vocabulary(folder)
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder for the tokenizer\'s words."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )
    return CLIPTextModel(config)


def encode_text_files(tokenizer: Any, encoder: CLIPTextModel) -> dict[str, str]:
    """The files from which transformers before 5, which webui has, make a CLIPTokenizer and a CLIPTextModel; later ones
    read them too but write others. `words` is a fast tokenizer, one with a `backend_tokenizer`."""
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    marks = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    return {
        "vocab.json": json.dumps(bpe["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **marks}),
        "config.json": encoder.config.to_json_string(),
    }
