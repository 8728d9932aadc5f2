"""Segmentation by tiny random networks of transformers: the same as its own classes and pipeline, the field's colours,
what published files hold beside the tensors, and refusals."""

import json
import shutil

import numpy as np
import pytest
import segmentation_models as made
import torch
import transformers
from controlnet_ext.preprocessors import find, list_preprocessors, preprocess
from controlnet_ext.preprocessors.backends.torch import Device
from controlnet_ext.preprocessors.backends.transformers import (
    compute_input_size,
    import_transformers_class,
    preprocess_images,
)
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.segmentation.models import (
    ONEFORMER_ADE20K_FILES,
    ONEFORMER_COCO_FILES,
    SEGFORMER_B0_FILES,
    UPERNET_FILES,
)
from controlnet_ext.preprocessors.segmentation.palettes import ADE20K_PALETTE, COCO_PALETTE
from controlnet_ext.preprocessors.segmentation.transformers_segmentation import (
    TransformersSegmentation,
    upsample_argmax,
)
from lines import assets, aux
from PIL import Image
from torch.nn import functional as F

from controlnet_ext.cli import main
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.safetensors import write_weights
from controlnet_ext.files.weights import read_weights

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8).repeat(10, 0).repeat(10, 1)
KINDS = {
    "oneformer_ade20k": (ONEFORMER_ADE20K_FILES, made.oneformer, "OneFormerImageProcessor"),
    "oneformer_coco": (ONEFORMER_COCO_FILES, made.oneformer_coco, "OneFormerImageProcessor"),
    "upernet_ade20k": (UPERNET_FILES, made.upernet, "SegformerImageProcessor"),
    "segformer_ade20k_small": (SEGFORMER_B0_FILES, made.segformer, "SegformerImageProcessor"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    networks = {}
    for name, (files, kind, _) in KINDS.items():
        module, preparation = kind()
        made.put(root, files, made.randomised(module), preparation)
        networks[name] = module, preparation
    return root, networks


def theirs(name, module, preparation, image):
    """transformers' own way: its classes for the input and for what the network says."""
    prepare = import_transformers_class(KINDS[name][2]).from_dict(preparation)
    if "OneFormer" not in KINDS[name][2]:
        inputs = prepare([image], return_tensors="pt", input_data_format="channels_last")
    else:
        prepare.size["longest_edge"] = preparation["max_size"]  # version 5 does not read it off the published files
        inputs = prepare([image], ["semantic"], return_tensors="pt", input_data_format="channels_last")
        words = [49406, 518, 10549, 533, 29119, 1550, 49407]
        inputs["task_inputs"] = torch.tensor([words + [0] * 70])
    with torch.inference_mode():
        return prepare.post_process_semantic_segmentation(module(**inputs), target_sizes=[image.shape[:2]])[0].numpy()


def clear_pixels(run, image):
    """Mask (H, W) of the pixels where the best class leads by more than rounding.

    Where tensors lie in memory decides in which order float32 sums are taken, so that scores differ from
    run to run (in another batch by up to 1.4e-5 of the largest), and of two classes that are closer either may win."""
    scores = run.infer_scores(run.network, preprocess_images(run.preprocessor_config, image[None]))
    first, second = F.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=False)[0].topk(2, dim=0)[0]
    return (first - second > 1e-4 * scores.abs().max()).numpy()


@pytest.mark.parametrize("name", KINDS)
def test_classes_are_those_of_transformers_own_classes(models, name):
    root, networks = models
    palette = COCO_PALETTE if name == "oneformer_coco" else ADE20K_PALETTE
    run = TransformersSegmentation("cpu", Library([root], download=False), KINDS[name][0], palette)
    for image in (IMAGE, IMAGE[::-1, :50].copy(), np.tile(IMAGE[:50], (1, 2, 1))):
        expected = theirs(name, *networks[name], image)
        assert len(np.unique(expected)) > 1
        found, clear = run(image[None])[0], clear_pixels(run, image)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(found[clear], expected[clear])


def test_segformer_is_transformers_pipeline(models):
    root, networks = models
    module, preparation = networks["segformer_ade20k_small"]
    prepare = import_transformers_class("SegformerImageProcessor").from_dict(preparation)
    pipe = transformers.pipeline("image-segmentation", model=module, image_processor=prepare, device="cpu")
    made_ = preprocess("segformer_ade20k_small", IMAGE, library=Library([root], download=False))
    found = pipe(Image.fromarray(IMAGE), subtask="semantic")
    assert len(found) > 3
    for segment in found:
        number = int(segment["label"].removeprefix("class "))
        np.testing.assert_array_equal(made_.values.labels == number, np.asarray(segment["mask"]) == 255)


def test_a_map_has_the_colour_and_the_values_the_number_of_each_class(models):
    library = Library([models[0]], download=False)
    for name, palette in (("oneformer_ade20k", ADE20K_PALETTE), ("oneformer_coco", COCO_PALETTE)):
        made_ = preprocess(name, IMAGE, library=library)
        assert made_.kind == "segmentation" and made_.values.names == palette.names
        assert made_.values.labels.shape == IMAGE.shape[:2] and made_.values.labels.dtype == np.uint8
        for number in np.unique(made_.values.labels):
            assert (made_.pixels[made_.values.labels == number] == palette.colors[number]).all()
    cut = preprocess("seg_ofade20k", IMAGE, library=library, resolution=80)
    assert cut.pixels.shape == (80, 107, 3) and cut.values.labels.shape == (80, 107)


@pytest.mark.parametrize("name", KINDS)
def test_batches_are_singles_and_every_size_has_a_map(models, name):
    library, palette = (
        Library([models[0]], download=False),
        COCO_PALETTE if name == "oneformer_coco" else ADE20K_PALETTE,
    )
    run = find(name).load(library=library)
    both = run.run_batch([IMAGE, IMAGE[::-1].copy()])
    for one, image in zip(both, (IMAGE, IMAGE[::-1].copy()), strict=True):
        # sums in another order: of two classes almost as likely the other one may win
        clear = clear_pixels(TransformersSegmentation("cpu", library, KINDS[name][0], palette), image)
        np.testing.assert_array_equal(one.values.labels[clear], run(image).values.labels[clear])
    for height, width in ((1, 1), (1, 300), (300, 2), (57, 31)):
        assert run(np.resize(IMAGE, (height, width, 3))).values.labels.shape == (height, width)


def test_the_highest_of_many_classes_is_found_in_parts(monkeypatch):
    scores = torch.randn(2, 11, 5, 7, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(scores, (13, 9), mode="bilinear", align_corners=False)
    expected = whole.argmax(dim=1).numpy()
    for part in (2**24, 2 * 13 * 9 * 3, 1):
        monkeypatch.setattr(
            "controlnet_ext.preprocessors.segmentation.transformers_segmentation._SCORES_PER_BATCH", part
        )
        np.testing.assert_array_equal(upsample_argmax(scores, 13, 9), expected)
        assert not upsample_argmax(torch.zeros(1, 11, 4, 4), 4, 4).any()  # of equal ones the first


def test_palettes_are_the_fields():
    assert len(ADE20K_PALETTE.names) == len(set(ADE20K_PALETTE.names)) == len(ADE20K_PALETTE.colors) == 150
    assert len(COCO_PALETTE.names) == len(set(COCO_PALETTE.names)) == len(set(COCO_PALETTE.colors)) == 133
    named = dict(zip(ADE20K_PALETTE.names, ADE20K_PALETTE.colors, strict=True))
    assert named["wall"] == (120, 120, 120) and named["sky"] == (6, 230, 230) and named["flag"] == (92, 0, 255)
    named = dict(zip(COCO_PALETTE.names, COCO_PALETTE.colors, strict=True))
    assert named["person"] == (220, 20, 60) and named["toothbrush"] == (191, 162, 208)
    assert named["banner"] == (255, 255, 128) and named["rug-merged"] == (250, 141, 255)


def test_the_palette_of_ade20k_is_controlnet_auxs():
    aux()
    from controlnet_aux.util import ade_palette

    assert [list(colour) for colour in ADE20K_PALETTE.colors] == ade_palette()


def test_the_colours_of_controlnets_published_map_are_ade20ks():
    published = read_image(assets() / "maps" / "oneformer_ade20k_res640.png").reshape(-1, 3)
    colours, counts = np.unique(published, axis=0, return_counts=True)
    names = set()
    for colour in colours[np.argsort(-counts)[:8]].astype(int):
        apart = np.abs(np.array(ADE20K_PALETTE.colors) - colour).max(axis=1)
        assert apart.min() <= 7  # a browser has changed them
        names.add(ADE20K_PALETTE.names[apart.argmin()])
    assert names == {"sky", "building", "grass", "wall", "plant", "tree", "road"}  # of a house in a meadow


def test_what_published_files_hold_beside_the_tensors_does_no_harm(models, tmp_path):
    root, networks = models
    module, preparation = networks["oneformer_ade20k"]
    old = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    more = {old: torch.zeros(16, 16, dtype=torch.int64), "model.text_mapper.prompt_ctx.weight": torch.zeros(2, 2)}
    # shi-labs' files have these, but for is_training, which would have the network want texts
    told = {"output_attentions": True, "output_hidden_states": True, "is_training": True, "num_classes": 150}
    told |= {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_kwargs": None}
    told |= {"max_seq_len": 77, "torch_dtype": "float32"}
    made.put(tmp_path, ONEFORMER_ADE20K_FILES, module, preparation, more, told)
    one, other = (
        preprocess("oneformer_ade20k", IMAGE, library=Library([folder], download=False)) for folder in (root, tmp_path)
    )
    np.testing.assert_array_equal(one.pixels, other.pixels)
    made.put(tmp_path, ONEFORMER_ADE20K_FILES, module, preparation, {"model.more": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"is refused: 1 tensors are not .* such as model\.more"):
        preprocess("oneformer_ade20k", IMAGE, library=Library([tmp_path], download=False))


def test_files_have_the_names_of_published_tensors(models):
    # huggingface/transformers @ 08196ab, convert_to_hf_oneformer.py; SegFormer's as transformers itself saves them
    oneformer = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight"
    segformer = "segformer.encoder.block.0.0.attention.self.query.weight"
    for files, name in ((ONEFORMER_ADE20K_FILES, oneformer), (SEGFORMER_B0_FILES, segformer)):
        assert name in read_weights(models[0] / files[0].repo / "pytorch_model.bin").tensors


def test_folders_of_other_networks_and_classes_are_refused(models, tmp_path):
    _, networks = models
    library = Library([tmp_path], download=False)
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there.*nvidia/segformer-b0"):
        preprocess("segformer_ade20k_small", IMAGE, library=library)
    made.put(tmp_path, ONEFORMER_ADE20K_FILES, *networks["oneformer_coco"])
    with pytest.raises(ValueError, match="tells 133 classes apart, expected 150"):
        preprocess("oneformer_ade20k", IMAGE, library=library)
    for architectures in (["BertModel"], [], None, {"a": 1}, [["a"]]):
        made.put(tmp_path, SEGFORMER_B0_FILES, *networks["upernet_ade20k"], settings={"architectures": architectures})
        with pytest.raises(ValueError, match="expected one of: OneFormerForUniversalSegmentation"):
            preprocess("segformer_ade20k_small", IMAGE, library=library)


@pytest.mark.parametrize(
    "settings",
    [{"hidden_sizes": [1]}, {"num_attention_heads": 0}, {"id2label": 5}, {"hidden_act": "loud"}, {"depths": "deep"}],
)
def test_a_config_that_is_not_the_networks_is_refused_in_a_line(models, tmp_path, settings):
    made.put(tmp_path, SEGFORMER_B0_FILES, *models[1]["segformer_ade20k_small"], settings=settings)
    with pytest.raises(ValueError, match="is refused: ") as refusal:
        preprocess("segformer_ade20k_small", IMAGE, library=Library([tmp_path], download=False))
    assert "\n" not in str(refusal.value)


def test_scores_that_are_no_numbers_are_refused(models):
    library = Library([models[0]], download=False)
    run = TransformersSegmentation(Device("cpu", "bfloat16"), library, SEGFORMER_B0_FILES, ADE20K_PALETTE)
    assert run(IMAGE[None]).shape == (1, 90, 120)
    run.infer_scores = lambda network, x: torch.full((1, 150, 4, 4), float("nan"))
    with pytest.raises(ValueError, match="no numbers: compute in float32"):
        run(IMAGE[None])


def test_inputs_have_transformers_sizes():
    for size, longest, (height, width) in (
        (640, 2560, (480, 640)), (640, 2560, (640, 333)), (640, 2560, (100, 900)), (64, 80, (90, 130)),
        (800, 1333, (1000, 3001)), (800, 1333, (3001, 1000)), (33, 50, (1, 999)),
    ):  # fmt: skip
        expected = transformers.image_transforms.get_size_with_aspect_ratio((height, width), size, longest)
        for given in ({"size": size, "max_size": longest}, {"size": {"shortest_edge": size, "longest_edge": longest}}):
            assert compute_input_size(given, height, width) == tuple(max(side, 1) for side in expected)
    assert compute_input_size({"size": 512}, 30, 900) == (512, 512)
    assert compute_input_size({"size": {"longest_edge": 1024}}, 768, 1000) == (786, 1024)
    for absurd in (
        {},
        {"size": "large"},
        {"size": -1},
        {"size": {"height": 3}},
        {"size": {"height": 2, "width": 1e9}},
        {"size": 60000},
    ):
        with pytest.raises(ValueError, match=r"preprocessor_config\.json has the size"):
            compute_input_size(absurd, 30, 40)
    with pytest.raises(ValueError, match="over the limit of 64"):
        compute_input_size({"size": {"shortest_edge": 640}}, 1, 60000)
    with pytest.raises(ValueError, match="image_std"):
        preprocess_images({"size": 8, "image_mean": [0, 0, 0], "image_std": 1}, IMAGE[None])


def test_the_command_makes_a_map_of_a_folder_of_a_model(models, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    place = models[0] / UPERNET_FILES[0].repo
    command = ["preprocess", "upernet_ade20k", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    assert main([*command, "--weights", str(place), "--no-download"]) == 0
    expected = preprocess("upernet_ade20k", IMAGE, library=Library([models[0]], download=False))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected.pixels)
    shutil.copytree(place, tmp_path / "later")  # as versions of transformers save it now
    weights = read_weights(place / "pytorch_model.bin").tensors
    (tmp_path / "later/pytorch_model.bin").unlink()
    write_weights(tmp_path / "later/model.safetensors", weights)
    assert main([*command, "--weights", str(tmp_path / "later"), "--overwrite"]) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected.pixels)
    (place / "preprocessor_config.json").write_text(json.dumps({"size": 64}))
    assert main([*command, "--weights", str(place), "--overwrite"]) == 2
    assert "image_mean" in capsys.readouterr().err


def test_names_are_those_of_sd_webui_controlnet():
    known = {entry.name: entry for entry in list_preprocessors()}
    for name, label in (("oneformer_ade20k", "seg_ofade20k"), ("oneformer_coco", "seg_ofcoco")):
        assert known[name].label == label and known[name].makes == "segmentation" and known[name].weights
