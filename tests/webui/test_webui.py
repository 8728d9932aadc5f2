"""The webui extension against stand-ins for its host."""

import base64
import copy
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ldm import UNetModel
from tiny import control, random_image, unet
from webui_host import Request

from controlnet_ext.guidance.schedule import Span

SPAN = Span(0, 0.25)


@pytest.fixture
def network(host):
    return host.model.model.diffusion_model


def encoded():
    from controlnet_ext.sdwebui.images import encode_png_base64

    return encode_png_base64(np.asarray(random_image()))


def api(**changes):
    return {"module": "canny", "model": "diffusion_pytorch_model", "image": encoded(), "processor_res": 64, **changes}


def made(host, *units, **changes):
    """What a request's samples become, the request, and the script's results."""
    from controlnet_ext.webui.script import ControlNetScript

    request, script = Request(host, host.model.model.diffusion_model, **changes), ControlNetScript()
    script.before_process(request, *units)
    script.process(request, *units)
    latents = request.sample()
    shown = SimpleNamespace(images=[])
    script.postprocess(request, shown)
    return latents, request, shown.images


def hooks(network):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules())


def test_a_unit_guides_shows_its_map_is_written_down_and_leaves_no_trace(host, network):
    plain = made(host)[0]
    guided, request, maps = made(host, api())
    assert (guided - plain).abs().max() > 1e-3
    assert [each.size for each in maps] == [(64, 64)]
    assert request.extra_generation_params["ControlNet 0"].startswith("Module: canny, Model: diffusion_pytorch_model [")
    assert not hooks(network) and not host.callbacks and "sample" not in vars(request)
    assert torch.equal(made(host)[0], plain)
    assert torch.equal(made(host, api(weight=0))[0], plain)


@pytest.mark.parametrize("mode", ["Balanced", "ControlNet is more important"])
@pytest.mark.parametrize("prompts", [[1], [1, 1], [2, 2]], ids=["one", "batch", "AND"])
def test_steps_split_over_calls_give_what_joined_ones_do(host, prompts, mode):
    joined = made(host, api(control_mode=mode), prompts=prompts)[0]
    split = made(host, api(control_mode=mode), prompts=prompts, joined=False)[0]
    assert torch.allclose(joined, split, atol=2e-5)  # sums of other batches


def test_negative_prompts_may_be_skipped(host):
    guided = made(host, api(control_mode=2), skips=True)[0]
    assert (guided - made(host, skips=True)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ([api], "ControlNet: unit 1: unknown control model 'absent', the nearest are: diffusion_pytorch_model"),
        ([{"weight": 3}], "ControlNet: unit 1: weight is 3, expected a number 0..2"),
        ([{"guidance_start": 0.99}], "ControlNet: window 0.99..1 of unit 1 holds none of 4 steps"),
        ([{"image": None}], "ControlNet: unit 1: it is on and has no image"),
        (
            [{"model": None}],
            "ControlNet: unit 1: it is on and has no model; choose one of /controlnet/model_list, or switch it off",
        ),
        ([{}] * 4, "ControlNet: 4 units, expected up to 3"),
    ],
)
def test_an_error_ends_the_generation_with_its_sentence(host, network, units, words):
    from controlnet_ext.webui.sampling import GuidanceError

    plain = made(host)[0]
    given = [api(model="absent") if each is api else api(**each) for each in units]
    with pytest.raises(GuidanceError) as caught:
        made(host, *given)
    assert str(caught.value).startswith(words)
    assert vars(caught.value)["status_code"] == 422 and vars(caught.value)["detail"] == str(caught.value)
    assert not hooks(network) and not host.callbacks and torch.equal(made(host)[0], plain)


def test_a_unet_that_was_replaced_is_refused(host):
    host.replaced.current_unet, host.replaced.current_option = object(), SimpleNamespace(label="[TRT] a")
    with pytest.raises(ValueError, match=r"ControlNet: the UNet is replaced by '\[TRT\] a'"):
        made(host, api())


def test_the_refiner_is_guided_where_it_fits_and_refused_where_not(host):
    from controlnet_ext.webui.sampling import GuidanceError

    other = UNetModel(unet())
    with torch.no_grad():
        next(other.input_blocks[1].parameters()).mul_(1.1)

    def switched(target):
        request = Request(host, host.model.model.diffusion_model)

        def switch(params):
            if params.denoiser.step == 2:
                host.shared.sd_model = SimpleNamespace(model=SimpleNamespace(diffusion_model=target))
                request.unet = target

        host.callbacks.insert(0, switch)
        try:
            from controlnet_ext.webui.script import ControlNetScript

            ControlNetScript().process(request, api())
            return request.sample()
        finally:
            host.callbacks.remove(switch)
            host.shared.sd_model = host.model

    assert torch.isfinite(switched(other)).all() and not hooks(other)
    narrow = UNetModel(unet("SD2.1"))
    with pytest.raises(GuidanceError, match="unit 1"):
        switched(narrow)
    assert not hooks(narrow)


def test_what_the_host_raises_is_left_as_it_is_and_leaves_no_hooks(host, network):
    handle = network.output_blocks[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(MemoryError("made up")))
    with pytest.raises(MemoryError, match="made up"):
        made(host, api())
    handle.remove()
    assert not hooks(network) and not host.callbacks


def test_neighbours_that_hook_or_replace_a_block_act_with_units_and_stay(host, network):
    """As FreeU does, and as older extensions do."""
    alone, plain = made(host, api())[0], made(host)[0]
    block = network.output_blocks[2]
    theirs = block.register_forward_hook(lambda _, __, h: h * torch.linspace(0.7, 1.3, h.shape[1])[:, None, None])
    first = made(host)[0]
    assert (made(host, api())[0] - alone).abs().max() > 1e-3 and (first - plain).abs().max() > 1e-3
    assert torch.equal(made(host)[0], first) and hooks(network) == 1
    theirs.remove()
    kept = block.forward
    block.forward = lambda *given: kept(*given) * 0.7
    first = made(host)[0]
    assert (made(host, api())[0] - first).abs().max() > 1e-3 and (made(host, api())[0] - alone).abs().max() > 1e-3
    assert torch.equal(made(host)[0], first)
    del block.forward
    assert torch.equal(made(host, api())[0], alone) and not hooks(network)


def test_a_copy_of_a_request_gets_its_own_sample_back(host):
    from controlnet_ext.webui.sampling import guide_sampling, stop_guiding

    request = Request(host, host.model.model.diffusion_model)
    guide_sampling(request, list)
    twin = copy.copy(request)
    stop_guiding(twin)
    assert twin.sample.__self__ is twin
    guide_sampling(request, list)  # once more: not wrapped twice
    stop_guiding(request)
    assert "sample" not in vars(request)


def test_rows_are_those_of_the_denoiser(host):
    from controlnet_ext.webui.sampling import describe_batch_rows

    def denoiser(*prompts):
        batch = [[None] * n for n in prompts]
        return SimpleNamespace(sampler=SimpleNamespace(sampler_extra_args={"cond": SimpleNamespace(batch=batch)}))

    rows = describe_batch_rows(denoiser(2, 1), 5, SPAN)
    assert list(rows.image_indices) == [0, 0, 1, 0, 1] and list(rows.has_prompt) == [True] * 3 + [False] * 2
    rows = describe_batch_rows(denoiser(1), 3, SPAN)  # InstructPix2Pix
    assert list(rows.image_indices) == [0, 0, 0] and list(rows.has_prompt) == [True, False, False]
    with pytest.raises(ValueError, match="4 rows for 3 prompts of 2 images"):
        describe_batch_rows(denoiser(2, 1), 4, SPAN)


def test_the_panel_has_a_component_for_each_field_and_switched_off_it_does_nothing(host):
    from controlnet_ext.webui.inputs import PANEL_UNIT_FIELDS
    from controlnet_ext.webui.script import ControlNetScript

    script = ControlNetScript()
    components = script.ui(False)
    assert len(components) == 3 * len(PANEL_UNIT_FIELDS) and len({c.values["elem_id"] for c in components}) == len(
        components
    )
    values = [each.value for each in components]
    assert torch.equal(made(host, *values)[0], made(host)[0])
    on = dict(zip(PANEL_UNIT_FIELDS, values, strict=False)) | {"enabled": True, "module": "canny", "processor_res": 64}
    on |= {"model": "diffusion_pytorch_model", "image": {"image": np.asarray(random_image()), "mask": None}}
    on |= {"threshold_a": 100, "threshold_b": 200}
    guided = made(host, *[on[name] for name in PANEL_UNIT_FIELDS], *values[len(PANEL_UNIT_FIELDS) :])[0]
    assert torch.equal(guided, made(host, api(threshold_a=100, threshold_b=200))[0])


def test_png_info_comes_back_to_the_panel(host):
    from controlnet_ext.webui.script import ControlNetScript

    script = ControlNetScript()
    script.ui(False)
    asked = api(weight=0.6, control_mode=1, hr_option="Low res only", weight_schedule="0.2@0, 1@0.3")
    asked |= {"guidance_start": 0.1, "guidance_end": 0.75, "threshold_a": 50.5}
    text = made(host, asked)[1].extra_generation_params["ControlNet 0"]
    said = {"Steps": "4", "ControlNet 0": text}
    pasted = {c.values["elem_id"]: read(said) for c, read in script.infotext_fields}
    unit = {name.removeprefix("script_controlnet_").removesuffix("_0"): v for name, v in pasted.items() if "_0" in name}
    assert unit["enabled"] is True and unit["module"]["value"] == "canny" and unit["weight"] == 0.6
    assert unit["type"] == "All" and "softedge_teed" in unit["module"]["choices"]  # whatever type was chosen
    assert unit["model"]["value"].startswith("diffusion_pytorch_model [") and unit["weight_schedule"] == "0.2@0, 1@0.3"
    assert unit["control_mode"] == "My prompt is more important" and unit["hr_option"] == "Low res only"
    low = unit["threshold_a"]
    assert (low["value"], low["minimum"], low["maximum"], low["label"], low["visible"]) == (50.5, 0, 255, "Low", True)
    for component, read in script.infotext_fields:  # the host's API makes a value of the type of the component's
        if isinstance(value := read(said), bool | int | float | str):
            assert type(component.value)(value) == value
    assert pasted["script_controlnet_enabled_1"] is False and pasted["script_controlnet_weight_1"] is None


def pasted(script, text):
    """What the first unit's text makes of the panel's images."""
    said = {"Steps": "4", "ControlNet 0": text}
    found = {c.values["elem_id"].removeprefix("script_controlnet_"): read(said) for c, read in script.infotext_fields}
    return {name: found[f"{name}_0"] for name in ("image", "mask", "effective_region_mask")}


def test_the_settings_say_whether_png_info_brings_units_back(host):
    from controlnet_ext.webui.script import ControlNetScript

    script = ControlNetScript()
    script.ui(False)
    said = {"Steps": "4", "ControlNet 0": "Module: canny, Model: None, Weight: 0.5"}
    assert any(function(said) is not None for _, function in script.infotext_fields)
    host.options["control_net_sync_field_args"] = False
    assert all(function(said) is None for _, function in script.infotext_fields)


def test_a_units_images_are_saved_beside_the_results_and_come_back(host, tmp_path):
    from controlnet_ext.sdwebui.images import encode_png_base64 as base64_of
    from controlnet_ext.webui.script import ControlNetScript

    results, script = tmp_path / "results", ControlNetScript()
    script.ui(False)
    seen, mask = np.asarray(random_image()), np.zeros((64, 64, 3), np.uint8)
    mask[:20] = 255
    asked = api(image={"image": base64_of(seen), "mask": base64_of(mask)}, effective_region_mask=base64_of(mask))
    text = made(host, asked)[1].extra_generation_params["ControlNet 0"]
    assert len(list((results / "controlnet").iterdir())) == 2  # the two masks are one image
    found = pasted(script, text)
    assert (found["image"]["value"] == seen).all()
    assert all((found[name]["value"] == mask).all() for name in ("mask", "effective_region_mask"))
    made(host, asked)
    assert len(list((results / "controlnet").iterdir())) == 2
    bare = pasted(script, made(host, api(), saves=False)[1].extra_generation_params["ControlNet 0"])
    assert bare == {"image": None, "mask": {"value": None}, "effective_region_mask": {"value": None}}
    host.options["controlnet_save_unit_images"] = False
    assert "File" not in made(host, asked)[1].extra_generation_params["ControlNet 0"]


def test_a_text_from_elsewhere_makes_no_other_file_be_read(host, tmp_path):
    from controlnet_ext.webui.script import ControlNetScript

    results = tmp_path / "results"
    folder = results / "controlnet"
    folder.mkdir(parents=True)
    script, name = ControlNetScript(), "0123456789abcdef" * 2 + ".png"
    script.ui(True)
    random_image().save(tmp_path / "secret.png")
    random_image().save(tmp_path / name)
    (folder / name).symlink_to(tmp_path / "secret.png")
    (folder / f"f{name[1:]}").write_text("no image")
    wrong = [
        name,
        f"f{name[1:]}",
        f"../../{name}",
        str(tmp_path / name),
        "secret.png",
        f"{name}\0",
        f" {name}",
        "x" * 9999,
    ]
    for word in wrong:
        assert pasted(script, f"Module: canny, Image File: {word}, Mask File: {word}")["image"] is None
    (folder / name).unlink()
    random_image().save(folder / name)
    assert pasted(script, f"Module: canny, Image File: {name}")["image"]["value"].shape == (64, 64, 3)


def test_an_image_that_cannot_be_saved_ends_the_generation(host, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        made(host, api(), outpath_samples=str(tmp_path / "file"))


def test_no_request_names_a_folder_and_the_panel_does(host, tmp_path):
    from controlnet_ext.webui.inputs import read_request_units
    from controlnet_ext.webui.script import BatchInputs

    assert "batch_folder" not in read_request_units([api(batch_folder="/etc")], SimpleNamespace(), False)[0]
    for name in ("b.png", "a.png", "note.txt"):
        random_image().save(tmp_path / name, "PNG")
    batch = BatchInputs.from_units({1: {"enabled": True, "batch_folder": str(tmp_path), "loopback": False}})
    assert batch.image_count == 2 and [path.name for path in batch.files_by_unit[1]] == ["a.png", "b.png"]
    with pytest.raises(ValueError, match=r"unit 2: the batch folder .* does not exist"):
        BatchInputs.from_units({2: {"enabled": True, "batch_folder": str(tmp_path / "none")}})


def test_units_keep_their_places_among_nulls_and_other_things_are_refused(host):
    from controlnet_ext.webui.inputs import read_request_units

    p, rest = SimpleNamespace(), [None, "none", 1.0]  # what the host leaves of the panel
    assert read_request_units([None, api(weight=0.5), *rest], p, False)[1]["weight"] == 0.5
    assert [bool(each) for each in read_request_units([api(), None, api(), *rest], p, False)] == [True, False, True]
    assert read_request_units([None] * 9, p, False) == []
    with pytest.raises(ValueError, match="unit 1 is 'x', expected an object"):
        read_request_units(["x", *rest], p, False)


def test_a_mask_of_img2img_is_no_scribble(host):
    from PIL import Image

    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 10:30] = 255
    changes = {"init_images": [random_image()], "image_mask": Image.fromarray(mask), "inpainting_mask_invert": 0}
    unit = {key: value for key, value in api().items() if key != "image"}
    (shown,) = made(host, unit, **changes)[2]
    (expected,) = made(host, unit, init_images=[random_image()])[2]
    assert (np.asarray(shown) == np.asarray(expected)).all()


def test_inpaint_only_acts_without_a_model(host):
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[16:48, 16:48] = 255
    host.model.parameterization, host.model.alphas_cumprod = "eps", torch.linspace(0.999, 0.005, 1000)
    host.model.first_stage_model = torch.nn.Linear(1, 1)  # whose dtype is asked
    host.model.encode_first_stage = lambda x: torch.nn.functional.avg_pool2d(x, 8)[:, [0, 1, 2, 0]]
    host.model.get_first_stage_encoding = lambda latents: latents
    result, request, _ = made(host, api(model="None", module="inpaint_only", mask=mask))
    assert not torch.equal(result, made(host)[0])
    assert request.extra_generation_params["ControlNet 0"].startswith("Module: inpaint_only, Model: None")


def test_strokes_on_a_transparent_canvas_are_a_mask_of_img2img(host):
    from PIL import Image

    from controlnet_ext.webui.gradio_images import get_image_and_mask
    from controlnet_ext.webui.inputs import get_host_inputs

    strokes = np.zeros((64, 64, 4), np.uint8)
    strokes[10:30, 10:30, 3] = 255  # black, so that over white they would be the only part that is not repainted
    p = SimpleNamespace(
        init_images=[random_image()], image_mask=Image.fromarray(strokes), inpainting_mask_invert=0, height=64, width=64
    )
    for inverted in (0, 1):
        p.inpainting_mask_invert = inverted
        mask = get_host_inputs(p).init_image[1]
        assert ((mask[..., 0] > 127) == ((strokes[..., 3] > 127) != inverted)).all()
    assert get_image_and_mask({"image": np.zeros((64, 64, 3), np.uint8), "mask": strokes})[1] is strokes
    opaque = np.dstack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)])
    assert get_image_and_mask({"image": np.zeros((64, 64, 3), np.uint8), "mask": opaque})[1] is None


def test_other_scripts_read_and_set_units(host):
    from controlnet_ext.webui import external_code as theirs
    from controlnet_ext.webui.script import ControlNetScript

    script = ControlNetScript()
    script.args_from, script.args_to = 1, 1 + len(script.ui(False))
    p = SimpleNamespace(
        scripts=SimpleNamespace(alwayson_scripts=[script]), script_args=(0, *[None] * (script.args_to - 1), "other")
    )
    name = theirs.get_models()[1]
    unit = theirs.ControlNetUnit(model=name, module="canny", control_mode=theirs.ControlMode.PROMPT, weight=0.5)
    theirs.update_cn_script_in_processing(p, [unit])
    (found,) = theirs.get_all_units_in_processing(p)
    assert (found.model, found.weight, found.control_mode) == (name, 0.5, "My prompt is more important")
    assert p.script_args[0] == 0 and p.script_args[-1] == "other" and isinstance(p.script_args, tuple)
    with pytest.raises(ValueError, match="4 units, expected up to 3"):
        theirs.update_cn_script_in_processing(p, [unit] * 4)


def test_axes_change_units(host):
    from controlnet_ext.webui.axes import create_axis_options, parse_axis_values
    from controlnet_ext.webui.inputs import read_request_units

    axes = {
        axis.label: axis
        for axis in create_axis_options(lambda label, type, apply, **more: SimpleNamespace(**locals(), **more))
    }
    p = SimpleNamespace()
    axes["[ControlNet] Weight"].apply(p, [0.5, None], None)
    axes["[ControlNet] Guidance End"].apply(p, 0.7, None)
    said = read_request_units([api(), api(weight=0.25)], p, False)
    assert [(each["weight"], each["guidance_end"]) for each in said] == [(0.5, 0.7), (0.25, 0.7)]
    assert parse_axis_values("0.5, [0.1, ], 1-2 (+0.5), 0-1 [3]", float) == [0.5, [0.1, None], 1, 1.5, 2, 0, 0.5, 1]
    assert parse_axis_values("canny, none", str) == ["canny", "none"]


def test_requests_attributes_count_only_where_the_settings_say_so(host):
    from controlnet_ext.webui.inputs import read_request_units

    p = SimpleNamespace(control_net_weight=0.3, control_net_pthr_a=[7, None])
    assert "threshold_a" not in read_request_units([api()], p, False)[0]
    said = read_request_units([api(), api()], p, True)
    assert said[0]["weight"] == said[1]["weight"] == 0.3 and said[0]["threshold_a"] == 7


def test_a_preset_sets_the_sliders_as_its_module_has_them(host):
    from controlnet_ext.webui import actions, presets

    presets.save("mine", {"module": "canny", "processor_res": 256, "threshold_a": 50, "threshold_b": 150})
    set_ = dict(zip(presets.PRESET_FIELDS, actions.load_preset("mine"), strict=False))
    assert [set_[name]["value"] for name in actions.SLIDER_FIELDS] == [256, 50, 150]
    assert all(set_[name]["visible"] for name in actions.SLIDER_FIELDS) and set_["threshold_b"]["maximum"] == 255
    assert [set(update) for update in actions.update_for_control_type("All")] == [
        {"choices"},
        {"choices"},
        set(),
        set(),
        set(),
    ]
    module, _, _, low, high = actions.update_for_control_type("Canny")
    assert (module["value"], low["value"], high["value"]) == ("canny", 100, 200)
    presets.save("theirs", {"module": "a net of nobody's", "weight": 0.5})
    *updates, said = actions.load_preset("theirs")
    assert not any(updates) and "a net of nobody" in said


def test_presets_are_kept_and_broken_ones_do_not_stop_the_panel(host, tmp_path):
    from controlnet_ext.webui import presets

    presets.save("mine ", {"weight": 0.5, "image": "no"})
    assert presets.list_preset_names() == ["mine"] and presets.load("mine") == {"weight": 0.5}
    with pytest.raises(ValueError, match="there is no preset 'other'"):
        presets.delete("other")
    (tmp_path / "controlnet_presets.json").write_text("[")
    assert presets.list_preset_names() == []


def test_routes_are_the_servers_and_stand_behind_the_hosts_password(host):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from controlnet_ext.webui import routes

    host.flags.api_auth = "me:secret"
    app = Starlette()
    routes.mount_routes(None, app)
    client = TestClient(app)
    assert client.get("/controlnet/version").status_code == 401
    assert client.get("/controlnet/version", auth=("me", "wrong")).status_code == 401
    assert client.get("/controlnet/version", auth=("me", "secret")).json() == {"version": 3}
    asked = {"controlnet_module": "canny", "controlnet_input_images": [encoded()]}
    answer = client.post("/controlnet/detect", json=asked, auth=("me", "secret"))
    assert base64.b64decode(answer.json()["images"][0]).startswith(b"\x89PNG")


def test_routes_stand_in_the_hosts_openapi_document(host):
    from starlette.applications import Starlette

    from controlnet_ext.webui import routes

    validator = pytest.importorskip("openapi_spec_validator", reason="needs openapi-spec-validator from PyPI")
    theirs = {"/sdapi/v1/progress": {"get": {"responses": {"200": {"description": "theirs"}}}}}
    for auth in (None, "me:secret"):
        host.flags.api_auth = auth
        app = Starlette()
        app.openapi = lambda: {
            "openapi": "3.0.2",
            "info": {"title": "host", "version": "1"},
            "paths": theirs,
            "components": {"securitySchemes": {"HTTPBasic": {"type": "http", "scheme": "basic"}}},
        }
        routes.mount_routes(None, app)
        found = app.openapi()
        validator.validate(found)
        assert len(found["paths"]) == 8 and "TextToImage" not in str(found)
        assert found["paths"]["/controlnet/detect"]["post"]["security"] == ([{"HTTPBasic": []}] if auth else [])


def test_the_script_loads_ours_beside_another_package_of_our_name(tmp_path, monkeypatch, host):
    """ADetailer has a package controlnet_ext."""
    import runpy
    from pathlib import Path

    root = Path(__file__).parents[2]
    monkeypatch.setitem(sys.modules, "controlnet_ext", SimpleNamespace(theirs=True))
    before = set(sys.modules)
    try:
        found = runpy.run_path(str(root / "scripts" / "controlnet.py"))["ControlNet"]
        assert found.__module__ == "sd_webui_controlnet_ext.webui.script" and found().title() == "ControlNet"
        assert sys.modules["controlnet_ext"].theirs
        assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {"diffusers", "transformers"}
        outer = runpy.run_path(str(root / "scripts" / "external_code.py"))
        assert outer["get_api_version"]() == 3
    finally:
        for name in [name for name in sys.modules if name.startswith("sd_webui_controlnet_ext")]:
            del sys.modules[name]


def test_settings_have_the_old_keys(host):
    from controlnet_ext.webui import host as ours

    host.options["control_net_unit_count"] = 50
    assert ours.get_unit_count() == 10
    host.options["control_net_models_path"] = "no/such/folder"
    assert [path.rpartition("models")[2] for path in ours.list_model_folders()] == ["/ControlNet"]
    assert json.dumps(ours.list_weight_folders()) == "[]"


def test_models_are_listed_that_fit_the_loaded_checkpoint(host, tmp_path):
    from safetensors.torch import save_file

    from controlnet_ext.webui import actions
    from controlnet_ext.webui import host as ours

    folder = tmp_path / "models" / "ControlNet"
    torch.save(control().state_dict(), folder / "canny_pickled.pth")
    control(block_out_channels=(64, 64, 64, 64)).save_pretrained(folder / "canny_narrow")
    (folder / "canny_cut.safetensors").write_bytes(b"nothing")
    save_file({"lllite_unet_x.conditioning1.0.weight": torch.zeros(1)}, folder / "canny_other.safetensors")
    listed = [name.rpartition(" [")[0] for name in ours.list_fitting_models()]
    assert sorted(listed) == ["canny_cut", "canny_other", "canny_pickled", "diffusion_pytorch_model"]
    assert len(ours.get_model_catalog().names) == 5  # over the API all
    save_file({**control().state_dict(), "difference": torch.zeros(1)}, folder / "difference.safetensors")
    ours.get_model_catalog().rescan()
    for network in (UNetModel(unet()), UNetModel(unet())):  # and of each checkpoint of its shape
        host.model.model.diffusion_model = network
        assert any(name.startswith("difference [") for name in ours.list_fitting_models())
    choices = actions.update_for_control_type("Canny")[1]["choices"]
    assert [name.rpartition(" [")[0] for name in choices] == ["", "canny_cut", "canny_other", "canny_pickled"]
    pasted = actions.update_with_all_choices("model", "another [00000000]")
    assert pasted["choices"][-1] == pasted["value"]
    sys.modules["modules.sd_models"].model_data.sd_model = None  # nothing is loaded yet
    assert ours.list_fitting_models() == ours.get_model_catalog().names


def test_maps_are_made_once_as_long_as_the_cache_holds_them(host):
    from controlnet_ext.sdwebui.modules import cache_maps

    calls, image, other = [], np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)

    def ready(name):
        return lambda *given, **parameters: calls.append((name, parameters)) or len(calls)

    run = cache_maps(ready, 2)
    assert run("a")(image, low=1) == run("a")(image.copy(), low=1) == 1
    assert [run("a")(image, low=2), run("b")(image, low=2), run("b")(other, low=2), run("b")(other, image, low=2)] == [
        2,
        3,
        4,
        5,
    ]
    assert run("a")(image, low=1) == 6
    none = cache_maps(ready, 0)
    assert none("a")(image) != none("a")(image)


def test_control_types_can_be_a_dropdown(host):
    import gradio

    from controlnet_ext.webui.panel import UnitComponents
    from controlnet_ext.webui.script import ControlNetScript

    assert isinstance(UnitComponents(ControlNetScript(), 0, False).components["type"], gradio.Radio)
    host.options["controlnet_control_type_dropdown"] = True
    assert isinstance(UnitComponents(ControlNetScript(), 0, False).components["type"], gradio.Dropdown)


def test_the_panel_and_the_attributes_of_a_request_name_fields_of_a_unit(host):
    from controlnet_ext.sdwebui.units import UnitFields
    from controlnet_ext.webui.inputs import PANEL_ONLY_FIELDS, PANEL_UNIT_FIELDS, PROCESSING_ATTRIBUTES

    known = UnitFields.list_fields()
    assert {*PANEL_UNIT_FIELDS, *PROCESSING_ATTRIBUTES.values()} <= {*known, *PANEL_ONLY_FIELDS}
