"""Tiny random networks of Segment Anything, as the published ones are put together."""

import torch
import transformers

SIDE = 64
DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def sam():
    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_pos_feats": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 4,
        "mlp_dim": 16,
        "global_attn_indexes": [1],
        "window_size": 7,
    }
    prompts = {"hidden_size": 16, "image_size": SIDE, "patch_size": 4}
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    return transformers.SamModel(config)


def sam2_video():
    """The network for videos, whose files those for images are published as."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "global_attention_blocks": [4],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16,
    }
    config = transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config=DECODER,
        image_size=SIDE,
        memory_attention_hidden_size=16,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_num_layers=1,
        memory_encoder_hidden_size=16,
        memory_encoder_output_channels=8,
        mask_downsampler_embed_dim=16,
        memory_fuser_embed_dim=16,
    )
    return transformers.Sam2VideoModel(config)


def randomised(module):
    """Random numbers in all tensors, the heads so that masks differ from point to point and some are sure."""
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, std=(2 / max(p[0].numel(), 4)) ** 0.5 if p.ndim > 1 else 0.1)
        if p.ndim == 1 and "norm" in name and "weight" in name:
            p.data += 1
        if "positional_embedding" in name:
            p.data *= 3
        if "output_hypernetworks_mlps" in name and p.ndim > 1:
            p.data *= 3
        if "iou_prediction_head.proj_out" in name:
            p.data = p.data * 0.2 + (0.8 if p.ndim == 1 else 0)
    return module.eval()
