"""sd-webui-controlnet's preprocessors (@ 56cec5b, its 72 registered): each is here by its name and by its label, with
what its two sliders set, or is one of those whose place is elsewhere."""

import pytest
from controlnet_ext.preprocessors import find

from controlnet_ext.sdwebui.modules import find_module, get_threshold_parameters

NONE = ()
SAFE = ((0, 10, 2),)
CUTS = ((0, 100, 0), (0, 100, 0))
THERE = {  # name: (label, sliders a and b as least, most, default)
    "canny": ("canny", ((1, 255, 100), (1, 255, 200))),
    "invert": ("invert (from white bg & black line)", NONE),
    "blur_gaussian": ("blur_gaussian", ((0.01, 64, 9),)),
    "scribble_xdog": ("scribble_xdog", ((1, 64, 32),)),
    "threshold": ("threshold", ((0, 255, 127),)),
    "shuffle": ("shuffle", NONE),
    "hed": ("softedge_hed", NONE),
    "hed_safe": ("softedge_hedsafe", NONE),
    "scribble_hed": ("scribble_hed", NONE),
    "pidinet": ("softedge_pidinet", NONE),
    "pidinet_safe": ("softedge_pidisafe", NONE),
    "pidinet_sketch": ("t2ia_sketch_pidi", NONE),
    "pidinet_scribble": ("scribble_pidinet", NONE),
    "softedge_teed": ("softedge_teed", SAFE),
    "softedge_anyline": ("softedge_anyline", SAFE),
    "mlsd": ("mlsd", ((0.01, 2, 0.1), (0.01, 20, 0.1))),
    "lineart_standard": ("lineart_standard (from white bg & black line)", NONE),
    "lineart": ("lineart_realistic", NONE),
    "lineart_coarse": ("lineart_coarse", NONE),
    "lineart_anime": ("lineart_anime", NONE),
    "lineart_anime_denoise": ("lineart_anime_denoise", NONE),
    "depth": ("depth_midas", NONE),
    "depth_leres": ("depth_leres", CUTS),
    "depth_leres++": ("depth_leres++", CUTS),
    "depth_zoe": ("depth_zoe", NONE),
    "depth_anything": ("depth_anything", NONE),
    "depth_anything_v2": ("depth_anything_v2", NONE),
    "depth_hand_refiner": ("depth_hand_refiner", NONE),
    "normal_map": ("normal_midas", ((0, 1, 0.4),)),
    "normal_bae": ("normal_bae", NONE),
    "normal_dsine": ("normal_dsine", ((1, 170, 60), (1, 20, 5))),  # its slider of the angle is 0..360
    "openpose": ("openpose", NONE),
    "openpose_face": ("openpose_face", NONE),
    "openpose_faceonly": ("openpose_faceonly", NONE),
    "openpose_hand": ("openpose_hand", NONE),
    "openpose_full": ("openpose_full", NONE),
    "dw_openpose_full": ("dw_openpose_full", NONE),
    "animal_openpose": ("animal_openpose", NONE),
    "densepose": ("densepose (pruple bg & purple torso)", NONE),
    "densepose_parula": ("densepose_parula (black bg & blue torso)", NONE),
    "mediapipe_face": ("mediapipe_face", ((1, 10, 1), (0.01, 1, 0.5))),
    "segmentation": ("seg_ufade20k", NONE),
    "oneformer_ade20k": ("seg_ofade20k", NONE),
    "oneformer_coco": ("seg_ofcoco", NONE),
    "anime_face_segment": ("seg_anime_face", NONE),
    "mobile_sam": ("mobile_sam", NONE),
    "recolor_luminance": ("recolor_luminance", ((0.1, 2, 1),)),
    "recolor_intensity": ("recolor_intensity", ((0.1, 2, 1),)),
    "tile_resample": ("tile_resample", ((1, 8, 1),)),
    "tile_colorfix": ("tile_colorfix", ((3, 32, 8),)),
    "tile_colorfix+sharp": ("tile_colorfix+sharp", ((3, 32, 8), (0, 2, 1))),
    "color": ("t2ia_color_grid", NONE),
    "inpaint": ("inpaint_global_harmonious", NONE),
    "inpaint_only": ("inpaint_only", NONE),
    "inpaint_only+lama": ("inpaint_only+lama", NONE),
}
ELSEWHERE = {
    # an image as it is, which a unit without a preprocessor takes
    "none",
    # no map: embeddings of an image, which are for the control model that reads them
    *("clip_vision", "revision_clipvision", "revision_ignore_prompt"),
    *("ip-adapter-auto", "ip-adapter_clip_sd15", "ip-adapter_clip_sdxl", "ip-adapter_clip_sdxl_plus_vith"),
    *("ip-adapter_face_id", "ip-adapter_face_id_plus", "ip-adapter_pulid", "instant_id_face_embedding"),
    # no map: attention to a reference image
    *("reference_only", "reference_adain", "reference_adain+attn"),
    # not made here: they need the networks of insightface and facexlib; InstantID's ControlNet takes a drawn map
    *("facexlib", "instant_id_face_keypoints"),
}


def test_these_are_all():
    assert len(THERE) + len(ELSEWHERE) == 72 and not THERE.keys() & ELSEWHERE


@pytest.mark.parametrize("name", THERE)
def test_its_name_and_label_are_known_in_any_case(name):
    label, sliders = THERE[name]
    entry = find(name)
    for text in (name, label, name.upper(), label.upper(), label.title()):
        assert find(text) is entry and find_module(f" {text} ") is entry
    if sliders:  # ours go as far
        found = [(p.range.low, p.range.high, p.default) for p in get_threshold_parameters(entry)]
        assert len(found) == len(sliders)
        for (low, high, default), (least, most, usual) in zip(found, sliders, strict=True):
            assert low <= least and high >= most and default == usual


@pytest.mark.parametrize("name", sorted(ELSEWHERE - {"none"}))
def test_what_is_elsewhere_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match="unknown preprocessor"):
        find(name)
