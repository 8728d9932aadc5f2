"""The words of the embedded model's worlds and what reads them."""

import pytest

from controlnet_ext.embedded.scenes import draw_scene
from tools.embedded_model.encode_worlds import read_latents
from tools.embedded_model.train_world_base import narrow_unet
from tools.embedded_model.world_sets import SHAPE_STYLE
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
