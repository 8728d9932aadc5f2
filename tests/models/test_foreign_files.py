"""The names that files get which hold no control model of ours, by names of tensors as they are published."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnet_ext import models
from controlnet_ext.models.inspection import inspect
from controlnet_ext.models.state_dict.foreign import OTHER_FILES, UNSUPPORTED_CONTROLS, ForeignKind, describe_foreign

# A few names of each published file: enough of them for its kind
FILES = {
    "an XLabs Flux IP-Adapter": [
        "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight",
        "ip_adapter_proj_model.norm.weight",
        "ip_adapter_proj_model.proj.weight",
    ],
    "a motion module of AnimateDiff": [
        "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
        "up_blocks.1.motion_modules.2.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe",
    ],
    "a CtrLoRA": [
        "control_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_layer.down.weight",
        "control_model.zero_convs.0.0.weight",
        "control_model.middle_block_out.0.weight",
        "control_model.input_blocks.1.0.in_layers.0.weight",
    ],
    "a Flux control LoRA": [
        "img_in.lora_A.weight",
        "img_in.lora_B.bias",
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "single_blocks.0.linear1.lora_A.weight",
    ],
    "an Anima LLLite": [
        "lllite_conditioning1.conv1.weight",
        "lllite_dit_blocks_0_self_attn_q_proj.down.weight",
        "lllite_dit_blocks_0_self_attn_q_proj.cond_to_film.weight",
    ],
    "a Flux.2 Fun ControlNet": [
        "control_img_in.weight",
        "control_transformer_blocks.0.before_proj.weight",
        "control_transformer_blocks.0.attn.to_q.weight",
    ],
    "a Qwen-Image-2512 Fun ControlNet": [
        "control_img_in.weight",
        "control_blocks.0.before_proj.weight",
        "control_blocks.0.attn.to_q.weight",
        "control_blocks.0.img_mlp.net.0.proj.weight",
    ],
    "a Qwen-Image blockwise ControlNet": [
        "controlnet_blocks.0.x_rms.weight",
        "controlnet_blocks.0.y_rms.weight",
        "controlnet_blocks.0.input_proj.weight",
        "img_in.weight",
    ],
    "a Wan VACE": ["vace_blocks.0.after_proj.bias", "vace_patch_embedding.weight", "blocks.0.self_attn.q.weight"],
    "a Uni3C ControlNet for Wan": [
        "controlnet_patch_embedding.weight",
        "controlnet_blocks.0.ffn.0.bias",
        "proj_out.0.weight",
    ],
    "a PuLID for Flux": ["pulid_encoder.id_embedding_mapping.0.weight", "pulid_ca.0.norm1.weight"],
    "a PuLID": ["id_adapter.latents", "id_adapter_attn_layers.1.id_to_k.weight"],
    "a PhotoMaker": [
        "id_encoder.visual_projection_2.weight",
        "lora_weights.unet.down_blocks.1.attentions.0.to_q_lora.down.weight",
    ],
    "a Flux Redux": ["redux_up.weight", "redux_up.bias", "redux_down.weight", "redux_down.bias"],
    "a ControlNeXt": [
        "down_res.0.conv1.weight",
        "down_sample.0.weight",
        "embedding.0.weight",
        "mid_convs.0.0.weight",
        "time_embedding.linear_1.weight",
    ],
    "a BrushNet": ["brushnet_down_blocks.0.weight", "conv_in_condition.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "an SD3 IP-Adapter": ["image_proj.latents", "ip_adapter.0.norm_ip.linear.weight", "ip_adapter.0.to_k_ip.weight"],
    "an IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "a Hunyuan-DiT ControlNet": ["after_proj_list.18.bias", "blocks.0.attn1.Wqkv.weight", "before_proj.weight"],
    "a LyCORIS (LoHa)": [
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",
        "lora_unet_mid_block_attentions_0_proj_in.alpha",
    ],
    "a LyCORIS (LoKr)": ["lycoris_blocks_0_attn.lokr_w1", "lycoris_blocks_0_attn.alpha"],
    "a LoRA (DoRA)": ["lora_unet_x.dora_scale", "lora_unet_x.lora_down.weight"],
    "a LoRA": ["diffusion_model.blocks.0.self_attn.q.lora_A.weight"],
    "a hypernetwork": ["768.0.linear.0.weight", "320.1.linear.0.bias"],
    "an embedding (textual inversion)": ["emb_params"],
    "an embedding (textual inversion) for two": ["clip_l", "clip_g"],
    "a transformer of Flux.2": ["double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"],
    "a transformer of Flux": [
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "single_blocks.0.linear1.weight",
        "img_in.weight",
    ],
    "a transformer of Chroma": ["distilled_guidance_layer.in_proj.bias", "double_blocks.0.img_attn.qkv.weight"],
    "a transformer of HunyuanVideo": [
        "txt_in.individual_token_refiner.blocks.0.norm1.weight",
        "double_blocks.0.img_attn_qkv.weight",
    ],
    "a transformer of Stable Diffusion 3": ["joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight"],
    "a transformer of HiDream": ["double_stream_blocks.0.block.adaLN_modulation.1.bias", "final_layer.linear.weight"],
    "a transformer of Lumina-Image 2.0": [
        "cap_embedder.0.weight",
        "noise_refiner.0.attention.k_norm.weight",
        "layers.0.attention.qkv.weight",
    ],
    "a transformer of Wan": ["head.modulation", "blocks.0.self_attn.q.weight", "patch_embedding.weight"],
    "a Wan Fun control transformer": [
        "head.modulation",
        "blocks.0.self_attn.q.weight",
        "patch_embedding.weight",
        "ref_conv.weight",
    ],
    "a transformer of CogVideoX": ["patch_embed.text_proj.weight", "transformer_blocks.0.norm1.linear.weight"],
    "a transformer of LTX-Video": ["patchify_proj.weight", "transformer_blocks.0.scale_shift_table"],
    "a transformer of Mochi": ["blocks.0.attn.qkv_x.weight", "t5_yproj.weight"],
    "a transformer of AuraFlow": ["double_layers.0.attn.w1q.weight", "cond_seq_linear.weight"],
    "a transformer of PixArt": [
        "t_block.1.weight",
        "blocks.0.cross_attn.q_linear.weight",
        "y_embedder.y_proj.fc1.weight",
    ],
    "a transformer of Sana": [
        "t_block.1.weight",
        "blocks.0.cross_attn.q_linear.weight",
        "blocks.0.mlp.inverted_conv.conv.weight",
    ],
    "a Stable Video Diffusion": ["model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight"],
    "a VAE of Wan": ["decoder.middle.0.residual.0.gamma", "encoder.conv1.weight"],
    "a VAE": ["decoder.conv_in.weight", "encoder.conv_in.weight", "quant_conv.weight"],
    "a text encoder (T5)": ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"],
    "a text encoder (CLIP)": ["text_model.embeddings.position_embedding.weight"],
    "an image encoder": ["vision_model.embeddings.class_embedding", "visual_projection.weight"],
    "a language model": ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"],
    "an upscaler (ESRGAN)": ["conv_first.weight", "body.0.rdb1.conv1.weight", "conv_up1.weight"],
    "an upscaler (SwinIR or its like)": ["layers.0.residual_group.blocks.0.norm1.weight", "conv_first.weight"],
}


CASES = [
    (words, prefix)
    for words in FILES
    for prefix in ("", "module.", "model.diffusion_model.")
    if "transformer of" in words or prefix != "model.diffusion_model."  # of whole checkpoints
]


@pytest.mark.parametrize(("words", "prefix"), CASES)
def test_a_published_file_gets_its_name(words: str, prefix: str, tmp_path: Path) -> None:
    names = FILES[words] if len(FILES[words]) > 1 or not prefix else [*FILES[words], "other"]
    save_file({f"{prefix}{name}": torch.zeros(1) for name in names}, path := tmp_path / "a.safetensors")
    found = inspect(path)
    assert found.what is not None and found.what.startswith(words), found.what
    with pytest.raises(ValueError, match="is not a control model but"):
        models.load(path)


@pytest.mark.parametrize("kind", [*UNSUPPORTED_CONTROLS, *OTHER_FILES], ids=lambda kind: f"{kind.words}: {kind.marks}")
def test_no_row_of_the_table_is_hidden_by_one_above(kind: ForeignKind) -> None:
    tensors = {_make_name(mark): torch.zeros(1) for mark in kind.marks}
    if len(kind.marks) == 2 and kind.marks == ("^<", ">$"):
        tensors = {"<cat-toy>": torch.zeros(1)}
    if kind.size is not None:
        name, axis, length = kind.size
        tensors[name] = torch.zeros(*[1] * axis, length, 1)
    assert describe_foreign(tensors).removesuffix(", which nothing here runs") == kind.words


def _make_name(mark: str) -> str:
    begin, end = "" if mark.startswith("^") else "x", "" if mark.endswith("$") else "y"
    return begin + mark.removeprefix("^").removesuffix("$") + end


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (64, "a transformer of Flux"),
        (128, "a transformer of Flux.1 Canny or Depth"),
        (384, "a transformer of Flux.1 Fill"),
    ],
)
def test_flux_tools_are_told_by_what_they_read(width: int, words: str) -> None:
    for prefix in ("", "model.diffusion_model."):
        tensors = {
            f"{prefix}img_in.weight": torch.zeros(8, width),
            f"{prefix}double_blocks.0.img_attn.qkv.weight": torch.zeros(1),
        }
        assert describe_foreign(tensors) == words


@pytest.mark.parametrize(
    "layer", ["img_in.lora_A.weight", "transformer.x_embedder.lora_A.weight", "lora_unet_img_in.lora_down.weight"]
)
def test_control_loras_of_flux_are_told_by_what_they_read(layer: str, tmp_path: Path) -> None:
    for width, words in ((64, "a LoRA"), (128, "a Flux control LoRA, of Flux.1 Tools, which nothing here runs")):
        other = layer.replace("img_in", "txt_in").replace("x_embedder", "context_embedder")
        save_file({layer: torch.zeros(4, width), other: torch.zeros(4, 4096)}, path := tmp_path / "a.safetensors")
        assert inspect(path).what == words


def test_pickles_of_several_dicts_get_their_name(tmp_path: Path) -> None:
    one = torch.zeros(1)
    for content, words in (
        ({"image_proj": {"proj.weight": one}, "ip_adapter": {"1.to_k_ip.weight": one}}, "an IP-Adapter"),
        ({"id_encoder": {"a.weight": one}, "lora_weights": {"unet.x.lora.down.weight": one}}, "a PhotoMaker"),
        ({768: ({"linear.0.weight": one}, {"linear.0.weight": one}), "step": 9}, "a hypernetwork"),
        ({"string_to_token": {"*": 265}, "string_to_param": {"*": one}, "name": "x"}, "an embedding"),
        ({"<cat-toy>": one}, "an embedding"),
    ):
        torch.save(content, path := tmp_path / "a.bin")
        found = inspect(path)
        assert found.what is not None and found.what.startswith(words), found.what


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF\3\0\0\0", "it is a GGUF file"),
        (b"<!DOCTYPE html><html>", "it is a web page, in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "it is a pointer of Git LFS"),
    ],
)
def test_files_of_other_formats_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content + bytes(64))
    with pytest.raises(ValueError, match=f"neither safetensors nor of torch.save: {words}"):
        inspect(tmp_path / "a.safetensors")
