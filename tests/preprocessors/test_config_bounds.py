"""A folder's config.json is not trusted with how large its network is."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import depth_models
import numpy as np
import pytest
import segmentation_models
import torch
from controlnet_ext.preprocessors import preprocess
from controlnet_ext.preprocessors.backends.transformers import check_config_numbers, limit_parameters, make_model_files
from controlnet_ext.preprocessors.depth.depth_models import ZOE_INDOOR_FILES
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.segmentation.models import SEGFORMER_B0_FILES
from torch.nn.modules.module import register_module_parameter_registration_hook

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
ANYTHING = make_model_files("depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0")
ABSURD = 10**9


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    depth_models.put(root, ZOE_INDOOR_FILES, depth_models.zoe())
    depth_models.put(root, ANYTHING, depth_models.depth_anything())
    segmentation_models.put(root, SEGFORMER_B0_FILES, *segmentation_models.segformer())
    return root


@dataclass
class Counted:
    count: int = 0
    elements: int = 0  # without the last one's
    last: int = 0


@contextmanager
def count_parameters() -> Iterator[Counted]:
    """Count the parameters that are built in the block, and their elements."""
    counted = Counted()

    def count(module, name, parameter):
        counted.count += 1
        counted.elements += counted.last
        counted.last = 0 if parameter is None else parameter.numel()

    hook = register_module_parameter_registration_hook(count)
    try:
        yield counted
    finally:
        hook.remove()


def among(settings, changes):
    """The settings with changes, those in a dict made in the dict there."""
    nested = {key: among(settings[key], value) for key, value in changes.items() if isinstance(value, dict)}
    return settings | changes | nested


@pytest.mark.parametrize(
    ("name", "files", "changes", "words"),
    [
        ("depth_zoe", ZOE_INDOOR_FILES, {"fusion_hidden_size": ABSURD}, "'fusion_hidden_size', expected at most 65536"),
        ("depth_zoe", ZOE_INDOOR_FILES, {"fusion_hidden_size": 60000}, "more than the"),
        (
            "depth_zoe",
            ZOE_INDOOR_FILES,
            {"backbone_config": {"num_hidden_layers": ABSURD}},
            "'num_hidden_layers', expected at most",
        ),
        ("depth_zoe", ZOE_INDOOR_FILES, {"backbone_config": {"num_hidden_layers": 60000}}, "is refused"),
        ("depth_anything_v2_small", ANYTHING, {"backbone_config": {"num_hidden_layers": 60000}}, "more than the"),
        ("depth_anything_v2_small", ANYTHING, {"backbone_config": {"image_size": 65536}}, "more than the"),
        ("depth_anything_v2_small", ANYTHING, {"neck_hidden_sizes": [60000, 60000]}, "120000 for 'neck_hidden_sizes'"),
        ("segformer_ade20k_small", SEGFORMER_B0_FILES, {"depths": [1, 1, 1, 60000]}, "more than the"),
        ("segformer_ade20k_small", SEGFORMER_B0_FILES, {"depths": [65536] * 4}, "262144 for 'depths'"),
        ("segformer_ade20k_small", SEGFORMER_B0_FILES, {"hidden_sizes": [8, 8, 16, 60000]}, "more than the"),
        (
            "segformer_ade20k_small",
            SEGFORMER_B0_FILES,
            {"decoder_hidden_size": -ABSURD},
            "-1000000000 for 'decoder_hidden_size'",
        ),
    ],
)
def test_a_configuration_of_a_far_larger_network_is_refused_soon_and_in_a_line(
    models, tmp_path, name, files, changes, words
):
    place = tmp_path / files[0].repo
    shutil.copytree(models / files[0].repo, place)
    (place / "config.json").write_text(json.dumps(among(json.loads((place / "config.json").read_text()), changes)))
    with count_parameters() as counted, pytest.raises(ValueError, match=words) as refusal:
        preprocess(name, IMAGE, library=Library([tmp_path], download=False))
    assert "\n" not in str(refusal.value) and repr(str(place))[1:-1] in str(refusal.value)
    # up to 1000 tensors and 2**20 elements more than twice the file's, and the one that is refused
    assert counted.count < 3000 and counted.elements < 2**21


@pytest.mark.parametrize("changes", [{"backbone": "x/y"}, {"backbone_config": {"backbone": "resnet18"}}])
def test_a_backbone_from_elsewhere_is_refused_before_anybody_is_asked_for_it(models, tmp_path, changes):
    place = tmp_path / ZOE_INDOOR_FILES[0].repo
    shutil.copytree(models / ZOE_INDOOR_FILES[0].repo, place)
    settings = among(json.loads((place / "config.json").read_text()), changes | {"use_pretrained_backbone": True})
    (place / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config\.json' names another network, '(x/y|resnet18)', as its backbone"):
        preprocess("depth_zoe", IMAGE, library=Library([tmp_path], download=False))


def test_numbers_are_looked_at_wherever_they_are_and_as_sums_of_lists():
    deep = {"a": [[{"b": 70000}]]}
    for _ in range(5000):
        deep = {"c": deep}
    for settings in (deep, {"x": [40000, 1.5, 40000]}, {"x": 10**4000}):
        with pytest.raises(ValueError, match=r"the file has .* expected at most 65536$") as refusal:
            check_config_numbers("the file", settings)
        assert len(str(refusal.value)) < 200
    check_config_numbers("the file", {"x": [65536, 0.5], "epsilon": 1e-12, "far": 1e9, "text": "99999999", "is": True})
    check_config_numbers("the file", {"words": 90000}, {"embedding": torch.empty(90000, 2)})


def test_only_what_this_thread_builds_counts_and_loading_does_not():
    tensors = {"weight": torch.zeros(4, 4)}
    with limit_parameters(tensors):
        layer = torch.nn.Linear(4, 4)
        for _ in range(3000):
            layer.weight = torch.nn.Parameter(torch.ones(4, 4))
        other = threading.Thread(target=torch.nn.Linear, args=(3000, 3000))
        other.start()
        other.join()
    for build in (lambda: torch.nn.Linear(3000, 3000), lambda: [torch.nn.Linear(2, 2) for _ in range(600)]):
        with pytest.raises(ValueError, match="more than the 1 tensors"), limit_parameters(tensors):
            build()
        build()  # afterwards all is as before
