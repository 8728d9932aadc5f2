"""The CLIP score of a small CLIP with random weights, from a folder and from the cache, offline."""

import json
import re

import numpy as np
import pytest
import torch
from tiny import tokenizer
from transformers import CLIPConfig, CLIPModel

from controlnet_ext.cli import main
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.scoring.clip import ClipScorer

PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 32},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    words = tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": words.eos_token_id,
    }
    torch.manual_seed(4)  # whose images and words lie within 90 degrees
    config = CLIPConfig(
        text_config=text | small, vision_config={"image_size": 32, "patch_size": 8, **small}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(place)
    words.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return place


@pytest.fixture(scope="module")
def scorer(folder):
    return ClipScorer(folder)


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8))


def test_the_score_is_100_times_the_cosine_of_the_embeddings(folder, scorer, images):
    """By the image's middle square, made 32 pixels by Pillow's cubic, as CLIP reads it."""
    from PIL import Image

    words = tokenizer()(["a red circle"], return_tensors="pt")
    expected = []
    network = CLIPModel.from_pretrained(folder).eval()
    for image in images:
        small = Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
        x = (np.asarray(small, np.float32) / 255 - PROCESSOR["image_mean"]) / PROCESSOR["image_std"]
        x = torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]
        with torch.no_grad():
            found = network(words["input_ids"], x, words["attention_mask"])
        expected.append(max(0, 100 * float((found.text_embeds * found.image_embeds).sum())))
    assert scorer(["a red circle"] * 3, images) == pytest.approx(expected, abs=1e-3)
    assert len(set(expected)) == 3 and min(expected) > 0


def test_a_long_prompt_is_cut(scorer, images):
    assert scorer(["a red circle " * 40], images[:1]) == pytest.approx(scorer(["a red circle " * 80], images[:1]))


def test_prompts_and_images_come_in_pairs(scorer, images):
    with pytest.raises(ValueError, match="1 prompts for 3 images"):
        scorer(["a"], images)


def test_a_clip_that_is_not_at_hand_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="'nobody/clip' is neither a folder nor a repository"):
        ClipScorer("nobody/clip")


def test_a_folder_without_its_files_is_refused_by_their_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors or pytorch_model.bin"):
        ClipScorer(tmp_path)


def test_the_command_compares_images_with_the_prompts_of_a_list(folder, tmp_path, scorer, images, capsys):
    for i, image in enumerate(images):
        write_image(tmp_path / f"{i}.png", image)
        write_image(tmp_path / f"{i}_map.png", image)
    rows = [{"image": f"{i}.png", "map": f"{i}_map.png", "text": "a cat"} for i in range(2)]
    rows.append({"image": "2.png", "map": "2_map.png"})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["score", str(tmp_path / "list.jsonl"), "--control", "canny", "--clip", str(folder), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    expected = [*scorer(["a cat"] * 2, images[:2]), None]
    assert [each["clip_score"] for each in found["images"]] == [x and pytest.approx(x, abs=1e-5) for x in expected]
    assert found["clip_score"]["mean"] == pytest.approx(np.mean(expected[:2]), abs=1e-5)
    assert main(words[:-1]) == 0
    assert re.search(r"^CLIP score: .* of 2 images$", capsys.readouterr().out, re.M)
