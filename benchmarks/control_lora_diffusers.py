"""Why diffusers' own loader of Control-LoRAs gives other residuals than W + up·down: which of the network's tensors
differ after `ControlNetModel.from_unet(unet).load_lora_adapter(file)`, and by how much the residuals, with and without
the biases that it leaves out.

    python benchmarks/control_lora_diffusers.py

Random weights in SD1.5's and SDXL's shapes, narrow; nothing is timed.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))

from diffusers import ControlNetModel
from networks import all_of, ours, random_image, reference, step_for, theirs_on, unet
from test_control_lora import parts, written

from controlnet_ext.models.kinds.controlnet import ControlNet


def load_control_lora(theirs: ControlNetModel, base: torch.nn.Module, file: dict[str, torch.Tensor]) -> ControlNetModel:
    """diffusers' way from a file to a network."""
    hint = theirs.config.conditioning_embedding_out_channels
    net = ControlNetModel.from_unet(base, conditioning_embedding_out_channels=hint)
    net.load_lora_adapter(written(file, theirs), prefix=None)
    return net


def effective(net: Any) -> dict[str, torch.Tensor]:
    """What each layer computes with, factors multiplied out."""
    tensors = {}
    for name, module in net.named_modules():
        if hasattr(module, "get_delta_weight"):
            (adapter,) = module.lora_A
            tensors[f"{name}.weight"] = module.base_layer.weight + module.get_delta_weight(adapter)
            if module.base_layer.bias is not None:
                tensors[f"{name}.bias"] = module.base_layer.bias
        elif ".lora_" not in name and not name.endswith("base_layer"):
            tensors |= {f"{name}.{own}": tensor for own, tensor in module.named_parameters(recurse=False)}
    return tensors


@torch.no_grad()
def main() -> None:
    print(f"diffusers {version('diffusers')}, peft {version('peft')}, torch {torch.__version__}")
    for shape in ("SD1.5", "SDXL"):
        theirs, base = reference(shape), unet(shape)
        file, whole = parts(theirs, base)
        net, formula = load_control_lora(theirs, base, file), ControlNet.load(whole, theirs.config)
        own = effective(net)
        wrong = [name for name, tensor in whole.items() if (own[name] - tensor).abs().max() > 1e-5]
        biases = [name for name in wrong if name.endswith(".bias") and name.replace(".bias", ".up") in file]
        print(f"{shape}: {len(wrong)} of {len(whole)} tensors differ, {len(biases)} of them biases beside factors")
        step = step_for(ours(theirs))
        expected = all_of(formula(step, formula.hint(random_image())))

        def difference(step: Any = step, net: Any = net, expected: Any = expected) -> float:
            residuals = theirs_on(net, step, random_image())
            return max(((a - b).abs().max() / b.std()).item() for a, b in zip(residuals, expected, strict=True))

        before = difference()
        for name in biases:
            own[name].copy_(file[name])
        print(f"    residuals differ by {before:.2g} of their standard deviation, with these biases {difference():.1g}")


if __name__ == "__main__":
    main()
