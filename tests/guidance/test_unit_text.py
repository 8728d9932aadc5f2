"""Units as text in PNG info: what is written is read back."""

import pytest

from controlnet_ext.sdwebui.infotext import format_unit_text, parse_unit_text
from controlnet_ext.sdwebui.units import parse_webui_unit

UNIT = {
    "module": "canny",
    "model": "any",
    "weight": 0.65,
    "resize_mode": 2,
    "control_mode": 1,
    "processor_res": 640,
    "threshold_a": 50,
    "threshold_b": 150.5,
    "guidance_start": 0.1,
    "guidance_end": 0.75,
    "pixel_perfect": True,
    "low_vram": True,
    "hr_option": "High res only",
    "save_detected_map": False,
    "union_control_type": "Hard Edge",
    "weight_schedule": "0.2@0, 1@0.3",
    "advanced_weighting": [1, 0.5, 0.25, 1e-3],
}
OLD = (  # as sd-webui-controlnet writes it
    "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1.0, Resize Mode: Crop and Resize, "
    "Processor Res: 512, Threshold A: 100, Threshold B: 200, Guidance Start: 0.0, Guidance End: 1.0, "
    "Pixel Perfect: False, Control Mode: Balanced"
)


def test_a_unit_comes_back_whole():
    unit = parse_webui_unit(UNIT, "unit 1")
    again = parse_webui_unit(parse_unit_text(format_unit_text(unit, "any")), "unit 1")
    assert vars(again) == vars(unit)


def test_the_old_text_is_the_beginning_of_ours_and_is_read():
    said = parse_unit_text(OLD)
    assert said["model"] == "control_v11p_sd15_canny [d14c016b]" and said["control_mode"] == "Balanced"
    unit = parse_webui_unit(said, "unit 1")
    assert unit.module.name == "canny" and unit.window.end == 1 and not unit.pixel_perfect
    ours = format_unit_text(unit, said["model"])
    assert [each.split(":")[0] for each in ours.split(", ")[:11]] == [each.split(":")[0] for each in OLD.split(", ")]


@pytest.mark.parametrize(
    "text", ["", ",,:,", "Module", "Image: /etc/passwd, Mask: a", "Weight: " + "9" * 5000, "Weight: nan"]
)
def test_text_that_says_nothing_known_sets_no_image_and_no_number(text):
    said = parse_unit_text(text)
    assert set(said) <= {"weight"} and not any(isinstance(value, float) for value in said.values())
