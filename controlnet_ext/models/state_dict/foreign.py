"""The names of files that hold none of our control models, by the names of their tensors: one table for each group.

A mark is a part of a name; after `^` it begins a name, before `$` it ends one. All marks of a row must occur. Rows are
looked through from the top, so the special stands above the general.

Sources of marks where a row names none: huggingface/diffusers, loaders/single_file_utils.py (August 2026);
Comfy-Org/ComfyUI, comfy/model_detection.py @ 0b61ce5baa9e, comfy/controlnet.py @ 03b1ca67fee2 and
comfy_extras/nodes_model_patch.py @ 08f68f0919d2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Control networks for other transformers, which diffusers has: all of the marks are names of its tensors or begin them.
# After each what diffusers (0.42) calls the network and a pipeline that runs it.
TRANSFORMER_CONTROLNETS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "Hunyuan-DiT": (
        ("controlnet_blocks.", "input_block.", "blocks.", "text_embedder."),
        "HunyuanDiT2DControlNetModel",
        "HunyuanDiTControlNetPipeline",
    ),
    "Sana": (
        ("controlnet_blocks.", "input_block.", "transformer_blocks.", "caption_projection."),
        "SanaControlNetModel",
        "SanaControlNetPipeline",
    ),
}


class ForeignKind(NamedTuple):
    """A kind of file that is no control model of ours.

    `marks` all occur in the names of its tensors, `absent` does not. `size` is the length of an axis of one tensor:
    (name, axis, length).
    """

    words: str
    marks: tuple[str, ...]
    absent: str | None = None
    size: tuple[str, int, int] | None = None


# What controls, or adapts to an image, and what nothing here runs
UNSUPPORTED_CONTROLS = (
    ForeignKind("a Flux ControlNet in XLabs' layout", ("^controlnet_blocks.", "^double_blocks.", "^input_hint_block.")),
    ForeignKind("a Flux ControlNet in MistoLine's layout", ("^controlnet_blocks.0.linear.",)),
    ForeignKind("a ControlNet-XS", ("^control_model.input_hint_block.", "^control_model.enc_zero_convs_out.")),
    ForeignKind(
        "a ControlNet-XS in diffusers' layout", ("^controlnet_cond_embedding.", "^down_blocks.0.ctrl_resnets.")
    ),
    # kohya-ss/sd-scripts, docs/anima_train_lllite.md: lllite_dit_blocks_0_self_attn_q_proj.*
    ForeignKind("an Anima LLLite, a ControlNet-LLLite for a transformer", ("^lllite_dit_",)),
    ForeignKind("an Anima LLLite, a ControlNet-LLLite for a transformer", ("^lllite_conditioning1.",)),
    # aigc-apps/VideoX-Fun, videox_fun/models/*_control.py and wan_transformer3d_vace.py
    ForeignKind("a Flux.2 Fun ControlNet", ("^control_img_in.", "^control_transformer_blocks.")),
    ForeignKind("a Qwen-Image-2.1 Fun ControlNet", ("^control_img_in.", "^control_blocks.0.img_mlp.out.")),
    ForeignKind("a Qwen-Image-2512 Fun ControlNet", ("^control_img_in.", "^control_blocks.")),
    ForeignKind("a MiniMax-H3 Fun ControlNet", ("^control_proj_in.", "^control_blocks.")),
    ForeignKind("a Wan VACE, control blocks of a video transformer", ("^vace_blocks.",)),
    ForeignKind("a Wan Fun control transformer", ("^control_adapter.", "^blocks.", "^patch_embedding.")),
    ForeignKind("a Wan Fun control transformer", ("^ref_conv.", "^blocks.", "^patch_embedding.")),
    ForeignKind("a Uni3C ControlNet for Wan", ("^controlnet_patch_embedding.",)),
    # modelscope/DiffSynth-Studio, diffsynth/models/qwen_image_controlnet.py
    ForeignKind("a Qwen-Image blockwise ControlNet", ("^controlnet_blocks.0.y_rms.",)),
    ForeignKind("a CogVideoX ControlNet", ("^out_projectors.", "^transformer_blocks.", "^patch_embed.")),
    ForeignKind("a Cosmos ControlNet", ("^control_blocks.", "^patch_embed_base.")),
    ForeignKind("a Hunyuan-DiT ControlNet in Tencent's layout", ("^after_proj_list.",)),
    # diffusers, scripts/convert_sana_controlnet_to_diffusers.py; PixArt-alpha/PixArt-alpha, diffusion/model/nets
    ForeignKind("a PixArt or Sana ControlNet in its authors' layout", ("^controlnet.0.", ".copied_block.")),
    ForeignKind("a Stable Cascade ControlNet", ("^backbone.", "^projections.")),
    # dvlab-research/ControlNeXt, ControlNeXt-SDXL/models/controlnet.py
    ForeignKind("a ControlNeXt", ("^down_res.", "^mid_convs.")),
    ForeignKind("a ControlNeXt", ("^down_res.", "^embedding.0.", "^time_embedding.")),
    ForeignKind("a BrushNet", ("^brushnet_down_blocks.",)),
    # xyfJASON/ctrlora, api.py: lora_layer, zero_convs, middle_block_out and norms; its hints are latents
    ForeignKind("a CtrLoRA, LoRAs of its base ControlNet", (".lora_layer.", "zero_convs.")),
    ForeignKind("a CtrLoRA's base ControlNet", ("zero_convs.", "input_blocks.0.0."), absent="input_hint_block."),
    ForeignKind("a SUPIR", ("^model.control_model.", "project_modules.")),
    # diffusers, loaders/lora_conversion_utils.py: only control LoRAs have norms; train_control_lora_flux.py
    ForeignKind("a Flux control LoRA, of Flux.1 Tools", (".lora_A.", ".query_norm.scale")),
    ForeignKind("a Flux control LoRA, of Flux.1 Tools", (), size=("img_in.lora_A.weight", 1, 128)),
    ForeignKind("a Flux control LoRA, of Flux.1 Tools", (), size=("x_embedder.lora_A.weight", 1, 128)),
    ForeignKind("a Flux control LoRA, of Flux.1 Tools", (), size=("lora_unet_img_in.lora_down.weight", 1, 128)),
    ForeignKind("an XLabs Flux IP-Adapter", (".ip_adapter_double_stream_",)),
    ForeignKind("an SD3 IP-Adapter", ("^ip_adapter.", ".norm_ip.")),
    ForeignKind("an IP-Adapter for faces (FaceID)", ("^ip_adapter.", "_lora.")),
    # ToTheBeginning/PuLID, pulid/pipeline_flux.py and pipeline_v1_1.py
    ForeignKind("a PuLID for Flux", ("^pulid_encoder.",)),
    ForeignKind("a PuLID for Flux", ("^pulid_ca.",)),
    ForeignKind("a PuLID", ("^id_adapter.",)),
    ForeignKind("a PuLID", ("^id_adapter_attn_layers.",)),
    ForeignKind("a PhotoMaker", ("^id_encoder.",)),  # TencentARC/PhotoMaker, photomaker/pipeline.py
    ForeignKind("a Flux Redux, of Flux.1 Tools", ("^redux_up.", "^redux_down.")),
    ForeignKind("an image projector of USO", ("mid_layer_norm.", "mid_embedding_linear.")),
    ForeignKind("a MultiTalk for Wan", ("^audio_proj.proj1.",)),
    ForeignKind("a GLIGEN", ("position_net.",)),
    ForeignKind("an IP-Adapter", ("ip_adapter.",)),
    ForeignKind("an IP-Adapter", ("image_proj.",)),
)
# LoRAs and other small files, then networks, then parts of pipelines and what else lies in such folders
OTHER_FILES = (
    ForeignKind("a motion LoRA of AnimateDiff", ("motion_modules.", "lora")),
    ForeignKind("a UNet with motion modules (AnimateDiff)", ("motion_modules.", ".resnets.")),
    ForeignKind("a motion module of AnimateDiff", ("motion_modules.",)),
    ForeignKind("a motion module of Hotshot-XL", (".temporal_attentions.",)),
    ForeignKind("a LyCORIS (LoHa)", (".hada_w1_",)),
    ForeignKind("a LyCORIS (LoKr)", (".lokr_w",)),
    ForeignKind("a LyCORIS (OFT or BOFT)", (".oft_",)),
    ForeignKind("a LyCORIS", ("^lycoris_",)),
    ForeignKind("a LoRA (DoRA)", (".dora_scale",)),
    *(ForeignKind("a LoRA", (mark,)) for mark in (".lora_", "lora_unet_", "lora_te", "_lora.", "^lora_")),
    # AUTOMATIC1111/stable-diffusion-webui, modules/hypernetworks/hypernetwork.py: pairs of networks by width
    *(ForeignKind("a hypernetwork", (f"^{width}.0.linear.",)) for width in (320, 640, 768, 1024, 1280)),
    ForeignKind("an embedding (textual inversion)", ("^emb_params$",)),
    ForeignKind("an embedding (textual inversion)", ("^string_to_param.",)),
    ForeignKind("an embedding (textual inversion) for two text encoders", ("^clip_l$", "^clip_g$")),
    ForeignKind("an embedding (textual inversion)", ("^<", ">$")),
    ForeignKind("a transformer of Flux.2", ("^double_stream_modulation_img.",)),
    ForeignKind("a transformer of Flux.2", ("^single_stream_modulation.lin",)),
    ForeignKind("a transformer of Chroma", ("^distilled_guidance_layer.",)),
    ForeignKind("a transformer of HunyuanVideo", ("^txt_in.individual_token_refiner.",)),
    ForeignKind("a transformer of HunyuanVideo", ("^context_embedder.token_refiner.",)),
    ForeignKind("a transformer of HiDream", ("^double_stream_blocks.",)),
    *(
        ForeignKind(f"a transformer of Flux.1 {tool}", (f"^{blocks}.",), size=(f"{embedder}.weight", 1, width))
        for tool, width in (("Fill", 384), ("Canny or Depth", 128))
        for blocks, embedder in (("double_blocks", "img_in"), ("single_transformer_blocks", "x_embedder"))
    ),
    ForeignKind("a transformer of Flux", ("^double_blocks.",)),
    ForeignKind("a transformer of Flux", ("^single_transformer_blocks.", "^x_embedder.", "^context_embedder.")),
    ForeignKind("a transformer of Qwen-Image", ("^img_in.", "^txt_norm.", "^transformer_blocks.")),
    ForeignKind("a transformer of Stable Diffusion 3", ("^joint_blocks.",)),
    ForeignKind("a transformer of Stable Diffusion 3", ("^transformer_blocks.", "^pos_embed.", "^context_embedder.")),
    ForeignKind("a transformer of Z-Image", ("^noise_refiner.",), size=("cap_embedder.1.weight", 0, 3840)),
    ForeignKind("a transformer of Lumina-Image 2.0", ("^noise_refiner.", "^cap_embedder.")),
    ForeignKind("a transformer of Lumina-Image 2.0", ("^noise_refiner.", "^time_caption_embed.")),
    ForeignKind("a transformer of Lumina-Next", ("^layers.", "^cap_embedder.")),
    ForeignKind("a transformer of Wan Animate", ("^motion_encoder.", "^blocks.")),
    ForeignKind("a transformer of Wan", ("^head.modulation", "^blocks.")),
    ForeignKind("a transformer of Wan", ("^condition_embedder.", "^blocks.", "^patch_embedding.")),
    ForeignKind("a transformer of CogVideoX", ("^patch_embed.text_proj.", "^transformer_blocks.")),
    ForeignKind("a transformer of LTX-Video", ("^patchify_proj.",)),
    ForeignKind("a transformer of LTX-Video", ("^proj_in.", "^caption_projection.", "^scale_shift_table")),
    ForeignKind("a transformer of Mochi", (".attn.qkv_x.",)),
    ForeignKind("a transformer of AuraFlow", ("^double_layers.", "^cond_seq_linear.")),
    ForeignKind("a transformer of Hunyuan-DiT", ("^mlp_t5.", "^extra_embedder.")),
    ForeignKind("a transformer of Hunyuan-DiT", ("^text_embedder.", "^time_extra_emb.", "^blocks.")),
    ForeignKind("a transformer of Sana", (".mlp.inverted_conv.",)),
    ForeignKind("a transformer of Sana", ("^caption_norm.", "^transformer_blocks.", "^patch_embed.")),
    ForeignKind("a transformer of PixArt", ("^t_block.1.", "^blocks.")),
    ForeignKind("a transformer of PixArt", ("^adaln_single.", "^pos_embed.", "^caption_projection.")),
    ForeignKind("a transformer of Anima", ("llm_adapter.", ".self_attn.q_proj.")),
    ForeignKind("a transformer of Cosmos", ("^x_embedder.proj.1.", "^blocks.")),
    ForeignKind("a Stable Cascade", ("^clip_txt_mapper.",)),
    ForeignKind("a Stable Cascade", ("^clip_mapper.",)),
    ForeignKind("a Stable Video Diffusion", (".time_stack.",)),
    ForeignKind("a Stable Video Diffusion", (".temporal_transformer_blocks.",)),
    ForeignKind("a Stable Diffusion checkpoint", ("^model.diffusion_model.",)),
    # xinntao/ESRGAN, Real-ESRGAN; JingyunLiang/SwinIR and those with its names (HAT, DAT)
    ForeignKind("an upscaler (ESRGAN)", (".RDB1.",)),
    ForeignKind("an upscaler (ESRGAN)", (".rdb1.",)),
    ForeignKind("an upscaler (SwinIR or its like)", ("residual_group.",)),
    ForeignKind("an upscaler (DAT)", ("^before_RG.",)),
    ForeignKind("an upscaler (SPAN)", ("^block_1.c1_r.",)),
    ForeignKind("an upscaler (PLKSR)", ("^feats.0.", "channe_mixer")),
    ForeignKind("an upscaler (Real-ESRGAN compact)", ("^body.0.weight$", "^body.1.weight$")),
    ForeignKind("a face restorer (GFPGAN)", ("stylegan_decoder.",)),
    ForeignKind("a face restorer (CodeFormer)", ("fuse_convs_dict.",)),
    ForeignKind("a Segment Anything, a preprocessor's network", ("image_encoder.", "mask_decoder.")),
    ForeignKind("a depth network (MiDaS), a preprocessor's", ("^scratch.", "^pretrained.")),
    ForeignKind("a depth network (Depth Anything), a preprocessor's", ("^depth_head.", "^pretrained.")),
    ForeignKind("a text encoder (T5)", (".SelfAttention.",)),
    ForeignKind("a text encoder (UMT5 of Wan)", ("^token_embedding.", "^blocks.0.attn.q.", "^blocks.0.pos_embedding.")),
    ForeignKind("a text encoder (OpenCLIP)", ("transformer.resblocks.", "token_embedding.")),
    ForeignKind("a text encoder (CLIP)", ("text_model.",)),
    ForeignKind("an image encoder (CLIP or SigLIP)", ("vision_model.",)),
    ForeignKind("a language model, such as a text encoder", ("embed_tokens.", ".self_attn.q_proj.")),
    ForeignKind("a VAE of Wan", ("decoder.middle.0.residual.",)),
    ForeignKind("a VAE (deep compression autoencoder)", ("decoder.stages.",)),
    ForeignKind("a VAE, a small one (TAESD)", ("decoder.layers.",)),
    ForeignKind("a VAE, a small one (TAESD)", ("^3.conv.0.weight$", "^3.conv.2.weight$")),  # madebyollin/taesd
    ForeignKind("a VAE", ("decoder.",)),
    ForeignKind("a UNet", ("up_blocks.",)),
    ForeignKind("a UNet", ("output_blocks.",)),
)


CHECKPOINT_PREFIX = "model.diffusion_model."  # of the network in whole checkpoints


def describe_foreign(tensors: Mapping[str, Tensor] | Collection[str], prefixes: Iterable[str] = ("",)) -> str:
    """Describe a file that is no control model in words, and where there is one a way to use it.

    `tensors` are the tensors by name, or the names alone. `prefixes` are what names may begin with before a mark.
    """
    starts = (*prefixes, CHECKPOINT_PREFIX)
    lines = (name[len(start) :] for start in starts for name in tensors if name.startswith(start))
    text = "\n" + "\n".join(lines) + "\n"
    for base, (marks, network, pipeline) in TRANSFORMER_CONTROLNETS.items():
        if all(_has_mark(f"^{mark}", text) for mark in marks):
            return (
                f"a ControlNet for {base}, a transformer, which guide does not reach: use diffusers.{pipeline} with "
                f"diffusers.{network}"
            )
    sizes = {name: tensor.shape for name, tensor in tensors.items()} if isinstance(tensors, Mapping) else {}
    for kind in UNSUPPORTED_CONTROLS:
        if _is_of_kind(kind, text, sizes, starts):
            return f"{kind.words}, which nothing here runs"
    for kind in OTHER_FILES:
        if _is_of_kind(kind, text, sizes, starts):
            return kind.words
    some = sorted(tensors)[:3]
    return f"something unknown, with tensors {', '.join(some)} …" if some else "empty"


def _has_mark(mark: str, text: str) -> bool:
    """Return True if a name has the mark; `text` has a name on each line, the first and the last are empty."""
    begin, end = "\n" * mark.startswith("^"), "\n" * mark.endswith("$")
    return begin + mark.removeprefix("^").removesuffix("$") + end in text


def _is_of_kind(kind: ForeignKind, text: str, sizes: Mapping[str, Sequence[int]], starts: Iterable[str]) -> bool:
    if not all(_has_mark(mark, text) for mark in kind.marks) or (kind.absent and _has_mark(kind.absent, text)):
        return False
    if kind.size is None:
        return True
    name, axis, length = kind.size
    matches = [sizes[start + name] for start in starts if start + name in sizes]
    return any(axis < len(size) and size[axis] == length for size in matches)
