"""What a file may be that holds none of our control models, told by the names of its tensors."""

from __future__ import annotations

from collections.abc import Collection

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
# Those that diffusers does not read
UNSUPPORTED_CONTROLNETS = {
    "a Flux ControlNet in XLabs' layout": ("controlnet_blocks.", "double_blocks.", "input_hint_block."),
    "a ControlNet-XS": ("control_model.input_hint_block.", "control_model.enc_zero_convs_out."),
    "a ControlNet-XS in diffusers' layout": ("controlnet_cond_embedding.", "down_blocks.0.ctrl_resnets."),
}
# A mark in any name is enough, in this order
OTHER_CHECKPOINTS = {
    "a Stable Diffusion checkpoint": ("model.diffusion_model.",),
    "a LoRA": (".lora_", "lora_unet_", "lora_te"),
    "an IP-Adapter": ("ip_adapter.", "image_proj."),
    "a VAE": ("decoder.",),
    "a UNet": ("up_blocks.", "output_blocks."),
    "a transformer of Flux": ("double_blocks.",),
    "a text encoder": ("text_model.",),
}


def describe_foreign(names: Collection[str]) -> str:
    """Describe a file that is no control model in words, and where there is one a way to use it."""
    for base, (marks, network, pipeline) in TRANSFORMER_CONTROLNETS.items():
        if _has_all_marks(marks, names):
            return (
                f"a ControlNet for {base}, a transformer, which guide does not reach: use diffusers.{pipeline} with "
                f"diffusers.{network}"
            )
    for words, marks in UNSUPPORTED_CONTROLNETS.items():
        if _has_all_marks(marks, names):
            return f"{words}, which nothing here runs"
    for words, marks in OTHER_CHECKPOINTS.items():
        if any(mark in name for name in names for mark in marks):
            return words
    some = sorted(names)[:3]
    return f"something unknown, with tensors {', '.join(some)} …" if some else "empty"


def _has_all_marks(marks: Collection[str], names: Collection[str]) -> bool:
    return all(any(name.startswith(mark) for name in names) for mark in marks)
