"""The words of the embedded model's worlds and what reads them."""

import numpy as np
import pytest
import torch

from controlnet_ext.embedded.scenes import draw_scene
from tools.embedded_model.encode_worlds import read_latents
from tools.embedded_model.train_world_base import Examples, narrow_unet
from tools.embedded_model.world_sets import DOMAINS, SHAPE_STYLE
from tools.embedded_model.world_words import narrow_text_encoder, vocabulary, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("words"))


def test_every_word_of_the_vocabulary_is_one_token(tokenizer):
    assert [word for word in vocabulary() if len(tokenizer.tokenize(word)) != 1] == []


def test_captions_of_shapes_hold_only_words_of_the_vocabulary():
    captions = [f"{SHAPE_STYLE} {draw_scene(seed, 64).caption}".replace(",", " ,") for seed in range(5)]
    assert set(" ".join(captions).split()) <= set(vocabulary())


def test_the_networks_are_as_small_as_planned(tokenizer):
    assert sum(p.numel() for p in narrow_text_encoder(tokenizer).parameters()) <= 1_500_000
    assert sum(p.numel() for p in narrow_unet(192).parameters()) <= 12_000_000


def test_a_world_that_has_not_been_encoded_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no latents of things, training, .*run encode_worlds first"):
        read_latents(tmp_path, "things", "training", 192)


def test_a_batch_is_drawn_from_latents_in_float16_also_under_autocast(tokenizer, tmp_path):
    latents = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float16)
    for domain in DOMAINS:
        folder = tmp_path / "latents24" / domain
        folder.mkdir(parents=True)
        np.savez(folder / "training-000000.npz", latents=latents, captions=np.array(["a red star"] * 2))
    examples = Examples(tmp_path, "training", 24, tokenizer)
    with torch.autocast("cpu", torch.bfloat16):
        drawn, tokens = examples.draw(5, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    assert all(any(np.array_equal(x, y) for y in latents) for x in drawn.numpy())
    assert tokens.shape == (5, 77)
