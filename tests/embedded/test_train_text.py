"""How the text encoder is taught to hold a thing's colour in its noun."""

import torch
from torch import nn

from controlnet_ext.embedded.captions import make_text_encoder, make_tokenizer
from tools.embedded_model.train_text import BindingTargets, compute_binding_loss

CAPTION = "a red circle, an orange person and a blue star on a striped green ground"
THINGS = {"red circle": [2, 3], "orange person": [6, 7], "blue star": [10, 11]}  # places of their tokens


def states(text, words, caption):
    with torch.no_grad():
        return text(tokens(words, caption)).last_hidden_state[0]


def tokens(words, caption):
    return words(caption, padding="max_length", return_tensors="pt").input_ids


def test_things_are_wanted_as_the_first_and_the_rest_as_it_is(tmp_path):
    words = make_tokenizer(tmp_path)
    torch.manual_seed(0)
    text = make_text_encoder(words).eval()
    wanted, things = BindingTargets(text, words)(tokens(words, CAPTION))
    assert things[0].nonzero()[:, 0].tolist() == [place for places in THINGS.values() for place in places]
    for name, places in THINGS.items():
        article = "an" if name.startswith("o") else "a"
        first = states(text, words, f"{article} {name}")[2:4]
        torch.testing.assert_close(wanted[0, places], first, rtol=0, atol=1e-5)  # batches of other sizes
    others = ~things[0]
    torch.testing.assert_close(wanted[0, others], states(text, words, CAPTION)[others], rtol=0, atol=1e-5)


def test_the_loss_is_that_of_things_and_of_all_others(tmp_path):
    words = make_tokenizer(tmp_path)
    text = make_text_encoder(words).eval()

    class Off(nn.Module):
        """What is wanted, but for things 2 more and for all others 1."""

        def forward(self, ids):
            wanted, things = BindingTargets(text, words)(ids)
            return type("Output", (), {"last_hidden_state": wanted + 1 + things[..., None]})

    found = compute_binding_loss(Off(), BindingTargets(text, words), tokens(words, CAPTION))
    assert abs(found.item() - (0.2 * 4 + 0.8 * 1)) < 1e-4
