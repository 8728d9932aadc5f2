"""One call of a diffusers transformer, with the interface of `host.UNetCall`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...guidance.contract import Residuals
from ...guidance.schedule import Span
from ...models.kinds.transformer import TransformerStep, expand_to_blocks
from ..side_stream import SideStream
from .host import DenoiserCall, Scheduler

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

PATCH_SIZE = 2  # latents of a side of one token


class TransformerCall(DenoiserCall):
    """The arguments of a transformer's call, however they are passed; this class is for SD3."""

    shares_residuals = True  # several calls of a step have the residuals of the first, as in diffusers: true guidance

    family = "sd3"
    NETWORK_INPUTS: ClassVar[tuple[str, ...]] = (
        "timestep",
        "pooled_projections",
        "encoder_hidden_states",
    )  # by networks
    LATENTS_ARGUMENT, TIMESTEP_ARGUMENT, LORA_ARGUMENT = "hidden_states", "timestep", "joint_attention_kwargs"
    BLOCKS_ARGUMENT, SINGLE_BLOCKS_ARGUMENT = "block_controlnet_hidden_states", ""
    REPEATED_ARGUMENT = ""

    def __init__(self, unet: ModelMixin, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__(unet, args, kwargs)
        self.x = self._get_latents()

    def find_timestep(self, scheduler: Scheduler) -> Tensor:
        """Return the scheduler's timestep `(1,)` of this call."""
        return self._timestep.float().to(scheduler.timesteps.device)

    @property
    def _timestep(self) -> Tensor:
        return torch.as_tensor(self.arguments[self.TIMESTEP_ARGUMENT]).reshape(-1)[:1]

    def _get_latents(self) -> Tensor:
        out: Tensor = self.arguments[self.LATENTS_ARGUMENT]
        return out

    def build_step(self, span: Span, positive: Tensor | None, samples: Tensor | None) -> TransformerStep:
        """Return the step of this call; `positive` and `samples` are `(B,)` or None."""
        t = (
            torch.as_tensor(self.arguments[self.TIMESTEP_ARGUMENT], device=self.x.device)
            .reshape(-1)
            .expand(len(self.x))
        )
        inputs = {name: self.arguments[name] for name in self.NETWORK_INPUTS if name in self.arguments}
        inputs[self.LATENTS_ARGUMENT] = self._get_network_latents()
        inputs |= {"joint_attention_kwargs": self.arguments.get(self.LORA_ARGUMENT)}
        return TransformerStep(self.x, t, self._get_context(), span, positive, None, samples, arguments=inputs)

    def _get_network_latents(self) -> Any:
        """Return what a control network reads as the latents."""
        return self.x

    def _get_context(self) -> Tensor:
        out: Tensor = self.arguments["encoder_hidden_states"]
        return out

    @property
    def pipeline_residuals(self) -> Residuals | None:
        """The residuals that the pipeline passes itself, None without any.

        Raises ValueError for those of XLabs' Flux networks, which are spread over the blocks in another way.
        """
        blocks, singles = self.arguments.get(self.BLOCKS_ARGUMENT), self.arguments.get(self.SINGLE_BLOCKS_ARGUMENT)
        if blocks is None and singles is None:
            return None
        if self.arguments.get(self.REPEATED_ARGUMENT):
            raise ValueError("the pipeline's own ControlNet is XLabs', whose residuals cannot be added to others")
        singly = expand_to_blocks(singles or (), len(getattr(self.unet, "single_transformer_blocks", ())), self.family)
        return Residuals(self._expand_residuals(blocks or ()), None, singly)

    def _expand_residuals(self, blocks: Any) -> tuple[Tensor, ...]:
        return expand_to_blocks(blocks, len(self.unet.transformer_blocks), self.family)

    def add_residuals(
        self, residuals: Residuals, side_stream: SideStream | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call with these residuals, which a transformer reads from its first block on.

        Raises ValueError for residuals of other rows or tokens.
        """
        if side_stream is not None:
            side_stream.wait()
        for h in residuals.tensors:
            if h.ndim == 3 and not self._fits(h):
                raise ValueError(
                    f"the transformer is called with {len(self.x)} rows of {self._token_count} tokens, where "
                    f"residuals of {h.shape[0]} rows of {h.shape[1]} are to be added"
                )
        return self._replace_arguments(self._build_residual_arguments(residuals))

    @property
    def _token_count(self) -> int | None:
        """The number of tokens in a row of x, None if the call does not show it."""
        return None

    def _fits(self, residual: Tensor) -> bool:
        return len(residual) == len(self.x) and self._token_count in (None, residual.shape[1])

    def _build_residual_arguments(self, residuals: Residuals) -> dict[str, Any]:
        return {self.BLOCKS_ARGUMENT: list(residuals.skips) or None}


class FluxCall(TransformerCall):
    """A call of Flux: x is `(B, tokens, C)`, and `img_ids` give the places of the tokens.

    Flux Fill and Flux Control append more channels to the latents, which ControlNets do not read.
    """

    family = "flux"
    NETWORK_INPUTS: ClassVar[tuple[str, ...]] = (
        "timestep",
        "guidance",
        "pooled_projections",
        "encoder_hidden_states",
        "txt_ids",
        "img_ids",
    )
    BLOCKS_ARGUMENT, SINGLE_BLOCKS_ARGUMENT = "controlnet_block_samples", "controlnet_single_block_samples"
    REPEATED_ARGUMENT = "controlnet_blocks_repeat"

    def find_timestep(self, scheduler: Scheduler) -> Tensor:
        """Return the scheduler's timestep `(1,)`; the call has a thousandth of it, in the dtype of the latents."""
        return _find_closest_timestep(scheduler, 1000 * self._timestep)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents. Raises ValueError for tokens of another image, as Kontext appends."""
        ids = self.arguments["img_ids"].reshape(-1, 3)[: self.x.shape[1]]
        height, width = int(ids[:, 1].max()) + 1, int(ids[:, 2].max()) + 1
        if bool(ids[:, 0].any()) or height * width != self.x.shape[1]:
            raise ValueError(
                f"the pipeline gives Flux {self.x.shape[1]} tokens for an image of {height}x{width}: another image is "
                "beside the one that it draws (Flux Kontext), which is not guided"
            )
        return PATCH_SIZE * height, PATCH_SIZE * width

    def _get_latents(self) -> Tensor:
        config = self.unet.config
        channels = config["patch_size"] ** 2 * (config["out_channels"] or config["in_channels"])
        return super()._get_latents()[..., :channels]

    @property
    def _token_count(self) -> int | None:
        return self.x.shape[1]

    def _build_residual_arguments(self, residuals: Residuals) -> dict[str, Any]:
        return {
            self.BLOCKS_ARGUMENT: list(residuals.skips) or None,
            self.SINGLE_BLOCKS_ARGUMENT: list(residuals.encoder) or None,
        }


class QwenImageCall(FluxCall):
    """A call of Qwen-Image: x is `(B, tokens, C)`, and `img_shapes` give its sides."""

    family = "qwen-image"
    NETWORK_INPUTS: ClassVar[tuple[str, ...]] = (
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "img_shapes",
    )
    LORA_ARGUMENT = "attention_kwargs"
    SINGLE_BLOCKS_ARGUMENT = REPEATED_ARGUMENT = ""

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents. Raises ValueError for x of several images, as in editing pipelines."""
        shape = self.arguments["img_shapes"][0]
        shapes = [shape] if isinstance(shape[0], int) else shape
        if len(shapes) != 1 or shapes[0][0] != 1:
            raise ValueError("the pipeline gives Qwen-Image several images at once, which is not guided")
        return PATCH_SIZE * shapes[0][1], PATCH_SIZE * shapes[0][2]

    def _build_residual_arguments(self, residuals: Residuals) -> dict[str, Any]:
        return {self.BLOCKS_ARGUMENT: list(residuals.skips) or None}


class ZImageCall(TransformerCall):
    """A call of Z-Image: x is a list of `(C, 1, h, w)`, and residuals are keyed by layer."""

    family = "z-image"
    is_prompt_first = True
    NETWORK_INPUTS: ClassVar[tuple[str, ...]] = ("t", "cap_feats", "patch_size", "f_patch_size")
    LATENTS_ARGUMENT, TIMESTEP_ARGUMENT = "x", "t"
    BLOCKS_ARGUMENT = "controlnet_block_samples"

    def find_timestep(self, scheduler: Scheduler) -> Tensor:
        """Return the scheduler's timestep `(1,)`; the call has 1 - t / 1000."""
        return _find_closest_timestep(scheduler, 1000 * (1 - self._timestep))

    def _get_latents(self) -> Tensor:
        """Return x as `(B, C, h, w)`. Raises ValueError for rows of several images, as in editing pipelines."""
        rows = self.arguments["x"]
        if not all(isinstance(row, Tensor) and row.shape[1] == 1 for row in rows):
            raise ValueError("the pipeline gives Z-Image several images at once, which is not guided")
        return torch.stack(list(rows)).squeeze(2)

    def _get_network_latents(self) -> Any:
        return self.arguments[self.LATENTS_ARGUMENT]

    def _get_context(self) -> Tensor:
        return pad_sequence(list(self.arguments["cap_feats"]), batch_first=True)

    def _expand_residuals(self, blocks: Any) -> tuple[Tensor, ...]:
        zero = self.x.new_zeros(())
        return tuple(blocks.get(layer, zero) for layer in range(len(self.unet.layers))) if blocks else ()

    def _build_residual_arguments(self, residuals: Residuals) -> dict[str, Any]:
        return {self.BLOCKS_ARGUMENT: {layer: h for layer, h in enumerate(residuals.skips) if h.ndim} or None}


def _find_closest_timestep(scheduler: Scheduler, t: Tensor) -> Tensor:
    """Return the scheduler's timestep that is closest to t."""
    near = (scheduler.timesteps - t.float().to(scheduler.timesteps.device)).abs().argmin()
    return scheduler.timesteps[near].reshape(1)


CALL_TYPES = {
    "FluxTransformer2DModel": FluxCall,
    "SD3Transformer2DModel": TransformerCall,
    "QwenImageTransformer2DModel": QwenImageCall,
    "ZImageTransformer2DModel": ZImageCall,
}
TRANSFORMER_NAMES = tuple(CALL_TYPES)
