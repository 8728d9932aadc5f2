"""Tiny random networks of depth in folders like the Hub's."""

import json
from importlib.util import find_spec

import torch
import transformers
from controlnet_ext.preprocessors.backends.transformers import import_transformers_class
from safetensors.torch import save_file

NECK = {"neck_hidden_sizes": [8, 12, 16, 16], "fusion_hidden_size": 16}
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def dpt():
    config = transformers.DPTConfig(
        **TRANSFORMER | NECK, image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False
    )
    return transformers.DPTForDepthEstimation(config), {"size": {"height": 64, "width": 64}}


def hybrid():
    """As Intel/dpt-hybrid-midas is: a BiT before the transformer."""
    bit = {
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 24],
        "depths": [1, 1, 1],
        "num_groups": 2,
        "out_features": STAGES[:3],
        "global_padding": "same",
        "layer_type": "bottleneck",
        "embedding_dynamic_padding": True,
        "model_type": "bit",
    }
    config = transformers.DPTConfig(
        **TRANSFORMER | NECK | {"neck_hidden_sizes": [8, 16, 16, 16]},
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=True,
        backbone_config=bit,
        backbone_featmap_shape=[1, 24, 4, 4],
    )
    return transformers.DPTForDepthEstimation(config), {"size": {"height": 64, "width": 64}}


def depth_anything(**settings):
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=STAGES,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, head_hidden_size=8, **NECK, **settings
    )
    preparation = {"size": {"height": 56, "width": 56}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
    return transformers.DepthAnythingForDepthEstimation(config), preparation


def metric():
    return depth_anything(depth_estimation_type="metric", max_depth=20)


def zoe():
    backbone = transformers.BeitConfig(
        **TRANSFORMER, image_size=32, patch_size=16, out_features=STAGES, reshape_hidden_states=False
    )
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone, bottleneck_features=16, num_relative_features=8, bin_embedding_dim=8, **NECK
    )
    preparation = {"size": {"height": 64, "width": 96}, "ensure_multiple_of": 32, "keep_aspect_ratio": True}
    return transformers.ZoeDepthForDepthEstimation(config), preparation


def depth_pro():
    dinov2 = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    vits = dict.fromkeys(
        ("image_model_config", "patch_model_config", "fov_model_config"), dinov2 | {"model_type": "dinov2"}
    )
    config = transformers.DepthProConfig(
        patch_size=16,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1],
        scaled_images_overlap_ratios=[0.0, 0.25],
        scaled_images_feature_dims=[12, 8],
        merge_padding_value=1,
        use_fov_model=True,
        num_fov_head_layers=1,
        **vits,
    )
    preparation = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return transformers.DepthProForDepthEstimation(config), preparation


PROCESSORS = {
    "ZoeDepthForDepthEstimation": "ZoeDepthImageProcessor",
    "DepthProForDepthEstimation": "DepthProImageProcessor",
}


def put(root, files, made):
    """Random weights in all of a network's tensors, its folder below `root`; the network and what prepares its input,
    None where that needs torchvision, which is not here."""
    module, preparation = made
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, std=(2 / max(p[0].numel(), 4)) ** 0.5 if p.ndim > 1 else 0.1)
        if p.ndim == 1 and "weight" in name:  # of a normalisation
            p.data += 1
    if isinstance(module, transformers.DepthProForDepthEstimation):
        module.head.layers[-2].bias.data += 20  # inverse depth above 0, or all is far
    place = root / files[0].repo
    place.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous().clone() for key, tensor in module.state_dict().items()}
    (torch.save if files[-1].name.endswith(".bin") else save_file)(tensors, place / files[-1].name)
    module.config.architectures = [type(module).__name__]
    (place / "config.json").write_text(module.config.to_json_string(use_diff=False))
    kind = PROCESSORS.get(type(module).__name__, "DPTImageProcessor")
    prepare = None
    if kind != "DepthProImageProcessor" or find_spec("torchvision"):
        prepare = import_transformers_class(kind)(**preparation)
        prepare.save_pretrained(place)
    else:
        (place / "preprocessor_config.json").write_text(json.dumps(preparation))
    return module.eval(), prepare
