"""Tiny random networks of segmentation in folders like the Hub's."""

import json
from tempfile import TemporaryDirectory

import torch
import transformers
from safetensors.torch import load_file, save_file

STAGES = ["stage1", "stage2", "stage3", "stage4"]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def labels(count):
    return {"id2label": {i: f"class {i}" for i in range(count)}, "label2id": {f"class {i}": i for i in range(count)}}


def swin():
    return transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, out_features=STAGES
    )


def oneformer(count=150):
    """As the published ones are: on a Swin, the image's short side given."""
    config = transformers.OneFormerConfig(
        backbone_config=swin(),
        num_queries=12,
        text_encoder_width=16,
        text_encoder_num_layers=1,
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=16,
        **labels(count),
    )
    # what the authors' files say of size: transformers/models/oneformer/convert_to_hf_oneformer.py
    return transformers.OneFormerForUniversalSegmentation(config), {"size": 64, "max_size": 96} | IMAGENET


def oneformer_coco():
    return oneformer(133)


def upernet():
    convnext = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=STAGES)
    config = transformers.UperNetConfig(
        backbone_config=convnext, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=16, **labels(150)
    )
    return transformers.UperNetForSemanticSegmentation(config), {"size": {"height": 64, "width": 64}} | IMAGENET


def segformer():
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, **labels(150)
    )
    return transformers.SegformerForSemanticSegmentation(config), {"size": {"height": 64, "width": 96}} | IMAGENET


def randomised(module):
    """The module with random numbers in all of its tensors, so that its classes differ from pixel to pixel."""
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, std=(2 / max(p[0].numel(), 4)) ** 0.5 if p.ndim > 1 else 0.1)
        if p.ndim == 1 and "weight" in name:  # of a normalisation
            p.data += 1
        # OneFormer's queries, or they all find one class
        p.data *= 20 if "queries_embedder" in name else 4 if "class_embed" in name else 1
        p.data *= 0.01 if "task_encoder" in name else 1
    for name, tensor in module.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(tensor, std=0.2)
        if name.endswith("running_var"):
            torch.nn.init.uniform_(tensor, 0.5, 2)
    return module.eval()


def put(root, files, module, preparation, more=None, settings=None):
    """The folder of a network below `root`, with `more` tensors beside its own, and other `settings`. The tensors have
    the names of published files, which are not those of the modules in transformers 5."""
    place = root / files[0].repo
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        tensors = load_file(f"{folder}/model.safetensors") | (more or {})
    (torch.save if files[-1].name.endswith(".bin") else save_file)(tensors, place / files[-1].name)
    module.config.architectures = [type(module).__name__]
    config = json.loads(module.config.to_json_string(use_diff=False)) | (settings or {})
    (place / "config.json").write_text(json.dumps(config))
    (place / "preprocessor_config.json").write_text(json.dumps(preparation))
    return place
