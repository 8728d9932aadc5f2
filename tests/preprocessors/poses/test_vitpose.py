"""ViTPose with its detector, on tiny random networks: the same as transformers' own classes, and what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from controlnet_ext.preprocessors import preprocess
from controlnet_ext.preprocessors.backends.transformers import import_transformers_class, load_transformers_network
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.poses.vitpose import RTDETR_FILES, VITPOSE_FILES, VitPose
from safetensors.torch import save_file

if not hasattr(transformers, "VitPoseForPoseEstimation"):
    pytest.skip(f"transformers {transformers.__version__} has no ViTPose", allow_module_level=True)
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def vitpose():
    backbone = transformers.VitPoseBackboneConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=[64, 48],
        patch_size=[16, 16],
        out_features=["stage2"],
    )
    labels = {"id2label": {i: str(i) for i in range(17)}, "label2id": {str(i): i for i in range(17)}}
    return transformers.VitPoseForPoseEstimation(
        transformers.VitPoseConfig(backbone_config=backbone, use_simple_decoder=True, scale_factor=4, **labels)
    )


def rtdetr():
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
        layer_type="basic",
    )
    sizes = dict.fromkeys(("encoder_hidden_dim", "encoder_ffn_dim", "d_model", "decoder_ffn_dim"), 32)
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[16, 24, 32],
        decoder_in_channels=[32, 32, 32],
        feat_strides=[8, 16, 32],
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_layers=2,
        num_queries=10,
        num_labels=80,
        num_denoising=0,
        **sizes,
    )
    return transformers.RTDetrForObjectDetection(config)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of both models with random weights in all tensors, the heat maps scaled so that points are sure."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    modules = {}
    for files, module, size in ((RTDETR_FILES, rtdetr(), (64, 64)), (VITPOSE_FILES, vitpose(), (64, 48))):
        for name, p in module.named_parameters():
            torch.nn.init.normal_(p, std=0.5 if "head" in name or "class_embed" in name else 0.1)
            if "class_embed" in name and p.ndim == 1 and len(p) == 80:  # most of what is seen is a person
                torch.nn.init.constant_(p[1:], -9)
        modules[files] = module.eval()
        place = root / files[0].repo
        place.mkdir(parents=True)
        save_file(
            {key: tensor.contiguous().clone() for key, tensor in module.state_dict().items()},
            place / "model.safetensors",
        )
        (place / "config.json").write_text(module.config.to_json_string(use_diff=False))
        kind = {RTDETR_FILES: "RTDetrImageProcessor", VITPOSE_FILES: "VitPoseImageProcessor"}[files]
        import_transformers_class(kind)(size={"height": size[0], "width": size[1]}).save_pretrained(place)
    return root, modules


def test_networks_and_points_are_those_of_transformers_own_classes(models):
    root, modules = models
    ready = VitPose("cpu", Library([root], download=False))
    boxes = np.array([[10.0, 5, 60, 80], [30, 20, 50, 40]])
    found = ready.estimate_points(IMAGE, boxes)
    processor = ready.pose_processor
    with torch.inference_mode():
        outputs = modules[VITPOSE_FILES](processor(images=[IMAGE], boxes=[boxes], return_tensors="pt")["pixel_values"])
    (expected,) = processor.post_process_pose_estimation(outputs, boxes=[boxes])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[:, :2], other["keypoints"], atol=1e-3)
        np.testing.assert_allclose(one[:, 2], other["scores"], atol=1e-5)
    assert np.ptp(found[0][:, :2]) > 5

    detected = ready.detect_people(IMAGE)
    with torch.inference_mode():
        outputs = modules[RTDETR_FILES](**ready.detector_processor(images=[IMAGE], return_tensors="pt"))
    (theirs,) = ready.detector_processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=[(90, 120)])
    people = theirs["boxes"][theirs["labels"] == 0].numpy()
    corners = np.concatenate([detected[:, :2], detected[:, :2] + detected[:, 2:]], axis=1)
    assert len(people) > 0
    np.testing.assert_allclose(sorted(corners.tolist()), sorted(people.tolist()), atol=1e-3)


def test_a_map_has_the_people_of_its_boxes(models):
    root, _ = models
    library = Library([root], download=False, cache_bytes=10**8)
    made = preprocess("vitpose", IMAGE, library=library)
    count = len(VitPose("cpu", library).detect_people(IMAGE))
    assert made.kind == "pose" and len(made.values.people) == count > 0
    assert made.pixels.shape == IMAGE.shape
    assert preprocess("vitpose", IMAGE, library=library, resolution=128).pixels.shape == (128, 171, 3)


def test_a_network_is_shared_and_strict(models, tmp_path):
    root, modules = models
    library = Library([root], download=False)
    first = load_transformers_network(library, VITPOSE_FILES, "VitPoseForPoseEstimation", "cpu")
    assert load_transformers_network(library, VITPOSE_FILES, "VitPoseForPoseEstimation", "cpu") is first
    place = tmp_path / VITPOSE_FILES[0].repo
    place.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        (place / name).write_bytes((root / VITPOSE_FILES[0].repo / name).read_bytes())
    state = modules[VITPOSE_FILES].state_dict()
    whole = {key: tensor.contiguous().clone() for key, tensor in state.items()}
    missing, more = dict(list(whole.items())[1:]), whole | {"more": torch.zeros(1)}
    other = whole | {"head.conv.bias": torch.zeros(5)}
    for wrong in (missing, more, other):
        save_file(wrong, place / "model.safetensors")
        with pytest.raises(ValueError, match="is refused") as refusal:
            load_transformers_network(
                Library([tmp_path], download=False), VITPOSE_FILES, "VitPoseForPoseEstimation", "cpu"
            )
        assert "\n" not in str(refusal.value)


def test_what_is_missing_is_named(models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there.*PekingU/rtdetr_r50vd_coco_o365"):
        preprocess("vitpose", IMAGE, library=Library([tmp_path], download=False))
    with pytest.raises(ValueError, match="has no NoSuchModel: install a later one"):
        import_transformers_class("NoSuchModel")
    root, _ = models
    (tmp_path / "config.json").write_text(json.dumps({}))
    library = Library([tmp_path, root], download=False)
    with pytest.raises(FileNotFoundError, match="lie apart"):
        load_transformers_network(library, VITPOSE_FILES, "VitPoseForPoseEstimation", "cpu")
