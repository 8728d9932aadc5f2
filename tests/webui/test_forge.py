"""What the extension does in Forge, against stand-ins for its few names; the real one: docs/evidence/webui.md."""

import argparse
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ControlNetUnionModel
from ldm import UNetModel
from networks import randomised
from tiny import SHAPES, control, random_image, unet
from webui_host import fresh, install

from controlnet_ext.guidance.contract import Step
from controlnet_ext.models import load

ROOT = Path(__file__).parents[2]


class Theirs:
    """modules_forge.supported_preprocessor's two classes."""

    def __init__(self, **values):
        self.values = values


class ControlBase:
    """backend.patcher.controlnet's."""

    def __init__(self, read=None, load_device=None, manual_cast_dtype=None):
        self.control_model, self.load_device, self.hinted = read, load_device, None

    def copy_to(self, copied):
        copied.hinted = self.hinted

    def get_models(self):
        return []

    def inference_memory_requirements(self, dtype):
        return 100

    def control_merge(self, control_input, control_output, control_prev, output_dtype):
        pass

    def pre_run(self, model, percent):
        pass

    cleanup = pre_run


class Named(ControlBase):
    """ldm_patched.modules.controlnet's in reForge."""

    def control_merge(self, control, control_prev, output_dtype):
        pass


class Patcher:
    """modules_forge.supported_controlnet.ControlNetPatcher."""

    def __init__(self, model_patcher):
        self.model_patcher = model_patcher

    def process_before_every_sampling(self, process, cond, mask, *args, **kwargs):
        process.guided = self.model_patcher.copy()


def parts_of(make):
    """The modules of a host of that make, in which control networks are."""
    management = SimpleNamespace(get_torch_device=lambda: torch.device("cpu"))
    if make == "Forge":
        management.get_computation_dtype = lambda device: torch.float32
        return {
            "backend": {"memory_management": management},
            "backend.patcher": {},
            "backend.patcher.controlnet": {"ControlBase": ControlBase, "ControlNet": ControlBase},
        }
    management.unet_dtype, management.unet_manual_cast = lambda: torch.float32, lambda stored, device: None
    base = Named if make == "reForge" else ControlBase
    return {
        "ldm_patched": {},
        "ldm_patched.modules": {"model_management": management},
        "ldm_patched.modules.controlnet": {"ControlBase": base, "ControlNet": base},
    }


@pytest.fixture(params=["Forge", "reForge", "Classic"])
def forge(monkeypatch, tmp_path, request):
    added, kinds = [], [Patcher]
    shared = SimpleNamespace(
        supported_preprocessors={"canny": None},
        add_supported_preprocessor=added.append,
        supported_control_models=kinds,
        add_supported_control_model=kinds.append,
    )
    theirs = SimpleNamespace(Preprocessor=Theirs, PreprocessorParameter=Theirs)
    parts = {
        "modules_forge": {"__spec__": object(), "shared": shared, "supported_preprocessor": theirs},
        "modules_forge.supported_controlnet": {"ControlNetPatcher": Patcher},
        **parts_of(request.param),
    }
    for name, values in parts.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    with fresh():
        install(monkeypatch, tmp_path, None)
        yield SimpleNamespace(added=added, kinds=kinds, make=request.param)


def test_forge_gets_our_preprocessors_and_no_panel(forge):
    from controlnet_ext.webui import start

    assert start() is None
    offered = {each.name: each for each in forge.added}
    assert "canny" not in offered and offered["threshold"].slider_1.values["label"] == "Threshold"
    pixels = np.asarray(random_image())
    assert (offered["threshold"](pixels, 64, 127) == np.where(pixels.min(2) > 127, 255, 0)[..., None]).all()


def test_flags_are_left_to_a_host_that_has_them(forge, monkeypatch):
    preload = runpy.run_path(str(ROOT / "preload.py"))["preload"]
    flags = argparse.ArgumentParser()
    flags.add_argument("--controlnet-dir")
    preload(flags)
    assert vars(flags.parse_args([])) == {"controlnet_dir": None}
    monkeypatch.delitem(sys.modules, "modules_forge")
    flags = argparse.ArgumentParser()
    preload(flags)
    assert "controlnet_annotator_models_path" in flags.parse_args([])


def sampled(forge, path, tensors, network, module):
    """What Forge's ControlNet gets of a file, asked as it asks: the kinds in their order, then the model."""
    kind = next(kind for kind in forge.kinds if kind is Patcher or kind.try_build_from_state_dict(tensors, path))
    patcher = kind.try_build_from_state_dict(tensors, path)
    process = SimpleNamespace(
        sd_model=SimpleNamespace(
            forge_objects=SimpleNamespace(unet=SimpleNamespace(model=SimpleNamespace(diffusion_model=network)))
        )
    )
    params = SimpleNamespace(preprocessor=SimpleNamespace(name=module, tags=[]))
    patcher.process_before_every_sampling(process, None, None, params=params)
    return process.guided


def test_a_union_is_read_by_ours_and_gives_its_residuals(forge, tmp_path):
    from controlnet_ext.webui import start
    from controlnet_ext.webui.sampling import GuidanceError

    start()
    wide = {"conditioning_embedding_out_channels": (8, 8, 8, 8), "num_trans_channel": 32, "num_proj_channel": 32}
    net = randomised(
        ControlNetUnionModel(**SHAPES["SD1.5"], **wide, num_control_type=6, addition_time_embed_dim=8), seed=4
    )
    network = UNetModel(unet())
    net.save_pretrained(tmp_path)
    path = str(tmp_path / "diffusion_pytorch_model.safetensors")
    guided = sampled(forge, path, net.state_dict(), network, "canny")
    assert guided.get_models() == [] and guided.inference_memory_requirements(torch.float32) > 100
    numbers = torch.Generator().manual_seed(3)
    x, context = torch.randn(2, 4, 8, 8, generator=numbers), torch.randn(2, 16, 32, generator=numbers)
    hint, t = torch.rand(2, 3, 64, 64, generator=numbers), torch.tensor([900.0, 900.0])
    with torch.no_grad():
        made = guided.control_model(x=x, hint=hint, timesteps=t, context=context, y=None)
        if forge.make == "reForge":
            made = [*made["output"], *made["middle"]]
        read = load(path).with_types("edges")
        expected = read(Step(x, t, context, None), [read.hint(hint)])
    assert all(torch.equal(a, b) for a, b in zip(made, [*expected.skips, expected.middle], strict=True))
    guided = sampled(forge, path, net.state_dict(), network, "None")
    with pytest.raises(GuidanceError, match="nothing says of which") as caught:
        guided.control_model(x=x, hint=hint, timesteps=t, context=context)
    assert vars(caught.value)["status_code"] == 422


def test_plain_files_stay_forges_and_broken_ones_end_the_generation(forge, tmp_path):
    from controlnet_ext.webui import start
    from controlnet_ext.webui.sampling import GuidanceError

    start()
    (offered,) = [kind for kind in forge.kinds if kind is not Patcher]
    assert forge.kinds[0] is offered
    assert offered.try_build_from_state_dict(control().state_dict(), "net.safetensors") is None
    guided = sampled(forge, str(tmp_path / "gone.safetensors"), {"difference": 0}, None, "canny")
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(GuidanceError, match=r"ControlNet: .*gone\.safetensors"):
        guided.control_model(x=x, hint=torch.zeros(1, 3, 64, 64), timesteps=x, context=x)


def test_unions_are_left_to_a_host_that_reads_them(forge, monkeypatch):
    from controlnet_ext.webui import start

    class Reads(Patcher):
        def process_before_every_sampling(self, process, cond, mask, *args, control_type=None, **kwargs):
            pass

    monkeypatch.setattr(sys.modules["modules_forge.supported_controlnet"], "ControlNetPatcher", Reads)
    start()
    names = {"task_embedding": 0, "control_add_embedding.linear_1.weight": 0}
    assert forge.kinds[0].try_build_from_state_dict(names, "a.safetensors") is None
    assert forge.kinds[0].try_build_from_state_dict({"difference": 0}, "a.safetensors") is not None


def test_a_host_with_another_controlnet_gets_our_preprocessors(forge, monkeypatch, capsys):
    from controlnet_ext.webui import start

    monkeypatch.delattr(sys.modules["modules_forge.supported_controlnet"], "ControlNetPatcher")
    start()
    assert forge.added and forge.kinds == [Patcher]
    assert capsys.readouterr().out.count("\n") == 1
