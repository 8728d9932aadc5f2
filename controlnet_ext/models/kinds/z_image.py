"""ControlNets for Z-Image: diffusers' own network, which borrows the base's embedders, as a control model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...guidance.contract import Residuals, UNet
from .. import KeyMarkers, ModelKind
from ..state_dict.strict import load_strict
from .transformer import TransformerControlNet, TransformerStep, build_network, check_transformer

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

CONTROLNET_CLASS, TRANSFORMER_CLASS = "ZImageControlNetModel", "ZImageTransformer2DModel"
KEY_PREFIXES = ("control_layers.", "control_all_x_embedder.")
EMBEDDER_KEY = "control_all_x_embedder.2-1.weight"  # of patches of 2 x 2 latents
NORM_KEY = "control_layers.0.attention.norm_q.weight"  # over a head
REFINER_PREFIX = "control_noise_refiner."
BEFORE_PROJ_KEY = f"{REFINER_PREFIX}0.before_proj.weight"  # zeros in 2.0, whose refiner was not trained
BASE_LAYER_COUNT = 30  # of the published base
SHARED_MODULES = (  # by `ZImageControlNetModel.from_transformer`
    "t_scale",
    "t_embedder",
    "all_x_embedder",
    "cap_embedder",
    "rope_embedder",
    "noise_refiner",
    "context_refiner",
    "x_pad_token",
    "cap_pad_token",
)


class ZImageControlNet(TransformerControlNet):
    """A `net` of diffusers for Z-Image.

    Its residuals are those of the transformer's layers as `skips`, zeros `()` where it has none. They have weight 1,
    but a network with control layers beside the noise refiner, as published from 2.0 on, also weighs these inside by
    the unit's weight, like the authors' `control_context_scale`.
    """

    def __init__(self, net: ModelMixin):
        super().__init__(net, "z-image")
        self._layer_count = 0  # of the transformer

    def bind(self, base: UNet) -> None:
        """Bind to a transformer, whose embedders it then uses. Raises ValueError if it is for another one."""
        transformer = check_transformer(self.family, TRANSFORMER_CLASS, base)
        theirs, own = transformer.config["dim"], self.net.config["dim"]
        self._layer_count = len(transformer.layers)
        last = max(self.net.config["control_layers_places"])
        if theirs != own or last >= self._layer_count:
            sizes = f"{own} numbers wide for {last + 1} layers or more, but the model {theirs} with {self._layer_count}"
            raise ValueError(f"the ControlNet is {sizes}")
        if self.net.config["control_in_dim"] < transformer.in_channels:
            read = self.net.config["control_in_dim"]
            raise ValueError(
                f"the ControlNet reads {read} channels, but the model's latents have {transformer.in_channels}"
            )
        # not as modules: they are the base's, and do not move with this network
        self.net.__dict__.update({name: getattr(transformer, name) for name in SHARED_MODULES})

    def hint(self, image: np.ndarray | Tensor) -> Tensor:
        """Return the network's input `(B, C', 1, h, w)` for a map's latents `(B, C, h, w)`.

        The channels of a mask and a masked image, which networks from 2.0 on read too, are zeros.
        """
        latents = torch.as_tensor(image).to(self.device, self.dtype)
        more = self.net.config["control_in_dim"] - latents.shape[1]
        return nn.functional.pad(latents, (0, 0, 0, 0, 0, more)).unsqueeze(2)

    def forward(self, step: TransformerStep, hint: Tensor) -> Residuals:
        """Return residuals of weight 1; the hint has a row for each of x's, or one for all."""
        arguments = dict(step.arguments)
        arguments.pop("joint_attention_kwargs", None)
        arguments["x"] = [row.to(self.device, self.dtype) for row in arguments["x"]]
        rows = list(hint.expand(len(step.x), *hint.shape[1:]).unbind())
        weight = step.weight if self.net.config["add_control_noise_refiner"] else 1.0
        outputs = self.net(control_context=rows, conditioning_scale=weight, **arguments)
        if self._is_net_compiled:  # the next replay of CUDA graphs writes over its results
            outputs = {layer: h.clone() for layer, h in outputs.items()}
        zero = step.x.new_zeros(())
        return Residuals(
            tuple(outputs[layer] / weight if layer in outputs else zero for layer in range(self._layer_count))
        )

    def details(self) -> dict[str, Any]:
        """Return the facts for `controlnet-ext inspect`."""
        places = self.net.config["control_layers_places"]
        return {**super().details(), "layers": " ".join(map(str, places))}


detect = KeyMarkers.from_prefixes([KEY_PREFIXES])


def load(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ZImageControlNet:
    """Return the network with these tensors, which it shares; without a config, with that of the published files.

    Raises ValueError if it is none of these, and on tensors that are missing, unknown, misshapen or not finite.
    """
    settings = dict(config) if config.get("_class_name") == CONTROLNET_CLASS else _infer_config(tensors)
    places = settings.get("control_layers_places")
    if not isinstance(places, list) or not all(type(place) is int and place >= 0 for place in places):
        raise ValueError(f"control_layers_places {str(places)[:80]}, expected a list of layers")
    net = build_network(CONTROLNET_CLASS, settings, len(tensors))
    if settings.get("add_control_noise_refiner") == "control_layers":  # as 2.0
        tensors = {name: t for name, t in tensors.items() if not name.startswith(REFINER_PREFIX)}
    load_strict(net, tensors)
    return ZImageControlNet(net.eval())


KIND = ModelKind("z_image", detect, load)


def _infer_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return diffusers' config of the published files, which come without one.

    Sources: alibaba-pai; aigc-apps/VideoX-Fun, config/z_image; diffusers 0.42, single_file_utils.py, which tells them
    apart in the same way.
    """
    count = len({name.split(".")[1] for name in tensors if name.startswith("control_layers.")})
    embedder, norm = tensors.get(EMBEDDER_KEY), tensors.get(NORM_KEY)
    if count not in (3, 6, 15) or embedder is None or embedder.ndim != 2 or norm is None or not norm.numel():
        raise ValueError(
            f"has {count} control layers, and only of 3, 6 and 15 is known where they act; it needs config.json"
        )
    (width, inputs), head = embedder.shape, norm.numel()
    refiner: str | None = None
    before = tensors.get(BEFORE_PROJ_KEY)
    if count != 6:  # from 2.0 on; 3 are 2.1-lite's, at 0, 10 and 20
        without = not any(name.startswith(REFINER_PREFIX) for name in tensors)
        is_zero = before is not None and before.shape == (width, width) and not before.is_meta and not before.any()
        refiner = "control_layers" if without or is_zero else "control_noise_refiner"
    return {
        "_class_name": CONTROLNET_CLASS,
        "control_layers_places": [BASE_LAYER_COUNT * i // count for i in range(count)],
        "control_refiner_layers_places": None if refiner is None else [0, 1],
        "control_in_dim": inputs // 4,
        "add_control_noise_refiner": refiner,
        "dim": width,
        "n_heads": width // head,
        "n_kv_heads": width // head,
    }
