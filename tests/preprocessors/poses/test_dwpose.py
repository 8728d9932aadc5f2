"""People and animals by onnxruntime: boxes and points as formulas typed out, real graphs made here, refusals."""

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest
from controlnet_ext.preprocessors import find, preprocess
from controlnet_ext.preprocessors.backends import onnx as onnx_backend
from controlnet_ext.preprocessors.backends.onnx import OnnxNetwork, load_onnx_network
from controlnet_ext.preprocessors.library import Library
from controlnet_ext.preprocessors.poses import dwpose
from controlnet_ext.preprocessors.poses.coco import person_from_coco
from controlnet_ext.preprocessors.poses.dwpose import (
    DWPOSE_WEIGHTS,
    RTMPOSE_ANIMAL_WEIGHTS,
    RTMPOSE_WEIGHTS,
    YOLOX_WEIGHTS,
)
from controlnet_ext.preprocessors.poses.key_points import KeyPoint
from controlnet_ext.preprocessors.poses.rtmpose import ANIMAL_CLASSES, PERSON_CLASSES, detect_boxes, detect_key_points

from controlnet_ext.files.hub import WeightsFile

rng = np.random.default_rng(0)


class Session:
    """onnxruntime's session as far as it is used: gives `outputs`, and keeps what it was asked."""

    def __init__(self, shape, outputs, type="tensor(float)"):
        self.shape, self.type, self.name, self.outputs, self.asked = shape, type, "x", outputs, []

    def get_inputs(self):
        return [self]

    def run(self, names, feed):
        self.asked.append(feed["x"])
        return [output[: len(feed["x"])] for output in self.outputs]


def detector(output):
    return OnnxNetwork(Session([1, 3, 64, 96], [output]), 0)


def boxes_typed_out(output, scale, classes, rows=64, columns=96):
    """The demo of Megvii-BaseDetection/YOLOX: each cell's box, then the surest first, none over another."""
    found, i = [], 0
    for stride in (8, 16, 32):
        for y in range(rows // stride):
            for x in range(columns // stride):
                dx, dy, w, h, sure = output[i, :5]
                score = max(sure * output[i, 5 + c] for c in classes)
                cx, cy, w, h = (dx + x) * stride, (dy + y) * stride, np.exp(w) * stride, np.exp(h) * stride
                if score > 0.3:
                    found.append((score, np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) / scale))
                i += 1
    kept = []
    for _, a in sorted(found, key=lambda one: -one[0]):
        for b in kept:
            w, h = (max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + 1) for k in (0, 1))
            area, other = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
            if w * h / (area + other - w * h) > 0.45:
                break
        else:
            kept.append(a)
    return np.array(kept)


@pytest.mark.parametrize("classes", [PERSON_CLASSES, ANIMAL_CLASSES])
def test_boxes_follow_yoloxs_formula(classes):
    output = np.concatenate([rng.normal(size=(1, 126, 4)), rng.random((1, 126, 81))], axis=2).astype(np.float32)
    image = np.zeros((32, 120, 3), np.uint8)
    found = detect_boxes(detector(output), image, classes)
    expected = boxes_typed_out(output[0], 96 / 120, classes)
    assert 3 < len(expected) < 126
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)  # float32 there, float64 here


def test_a_detector_reads_bgr_in_the_upper_left_corner_of_grey():
    network = detector(np.zeros((1, 126, 85), np.float32))
    assert detect_boxes(network, np.full((32, 24, 3), (10, 20, 30), np.uint8), PERSON_CLASSES).shape == (0, 4)
    (x,) = network._session.asked
    assert x.shape == (1, 3, 64, 96) and x.dtype == np.float32
    assert (x[0, :, :64, :48] == np.array([30, 20, 10])[:, None, None]).all() and (x[0, :, :, 48:] == 114).all()


def test_points_are_where_columns_and_rows_are_highest():
    x, y = rng.random((3, 17, 96)).astype(np.float32), rng.random((3, 17, 128)).astype(np.float32)
    network = OnnxNetwork(Session(["batch", 3, 64, 48], [x, y]), 0)
    image = np.zeros((100, 200, 3), np.uint8)
    places = np.array([[10, 10, 40, 90], [0, 0, 200, 100], [-20, 50, 30, 55]], float)
    found = detect_key_points(network, image, places)
    for one, (left, top, right, bottom), columns, rows in zip(found, places, x, y, strict=True):
        width, height = (right - left) * 1.25, (bottom - top) * 1.25
        width, height = max(width, height * 48 / 64), max(height, width * 64 / 48)
        for k in range(17):
            px = columns[k].argmax() / 2 / 48 * width + (left + right) / 2 - width / 2
            py = rows[k].argmax() / 2 / 64 * height + (top + bottom) / 2 - height / 2
            np.testing.assert_allclose(one[k], (px, py, min(columns[k].max(), rows[k].max())), rtol=1e-6)
    assert [len(asked) for asked in network._session.asked] == [3]
    assert detect_key_points(network, image, np.zeros((0, 4))).shape[0] == 0


def test_a_crop_is_the_box_normalised():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:26, 20:32] = 200, 100, 50
    network = OnnxNetwork(Session(["batch", 3, 64, 48], [np.ones((1, 1, 9))] * 2), 0)
    detect_key_points(network, image, np.array([[20, 10, 32, 26]], float))
    (x,) = network._session.asked
    middle, edge = x[0, :, 32, 24], x[0, :, 1, 1]  # 1.25 times the box: black around it
    np.testing.assert_allclose(
        middle, (np.array([200, 100, 50]) - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375), rtol=1e-5
    )
    np.testing.assert_allclose(edge, -np.array([123.675, 116.28, 103.53]) / (58.395, 57.12, 57.375), rtol=1e-5)
    inside = np.flatnonzero(np.isclose(x[0, 0, 32], middle[0]))
    assert (inside[0], inside[-1]) == (5, 40)  # 3.2 times the columns 20 and 31, with 26 in the middle


def test_the_points_of_people_are_put_in_openposes_order_as_controlnet_aux_does():
    coco = np.concatenate([rng.uniform(0, 100, (133, 2)), rng.random((133, 1))], axis=1)
    neck = coco[[5, 6]].mean(axis=0)  # controlnet_aux 0.0.10, dwpose/wholebody.py and __init__.py, typed out
    neck[2] = (coco[5, 2] > 0.3) and (coco[6, 2] > 0.3)
    moved = np.insert(coco, 17, neck, axis=0)
    moved[[1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17]] = moved[
        [17, 6, 8, 10, 7, 9, 12, 14, 16, 13, 15, 2, 1, 4, 3]
    ]
    parts = {"body": slice(18), "face": slice(24, 92), "left_hand": slice(92, 113), "right_hand": slice(113, 134)}
    found = person_from_coco(coco, 50, 100)
    for name, part in parts.items():
        for one, (x, y, score) in zip(getattr(found, name), moved[part], strict=name != "face"):
            assert (one is None) == (score < 0.3)
            assert one is None or (one.x, one.y) == (x / 100, y / 50)
    assert found.face[68:] == (found.body[14], found.body[15])


def test_parts_that_nobody_sees_are_absent():
    coco = np.zeros((133, 3))
    coco[0] = 5, 5, 0.9
    one = person_from_coco(coco, 10, 10)
    assert one.body[0] == KeyPoint(0.5, 0.5, 0.9) and not any(one.body[1:])
    assert one.left_hand == one.right_hand == one.face == ()
    assert person_from_coco(coco[:17], 10, 10) == one
    coco[0] = 500, 5, 0.9  # farther outside than a point may be
    assert not any(person_from_coco(coco, 10, 10).body)
    with pytest.raises(ValueError, match="26 points"):
        person_from_coco(np.zeros((26, 3)), 10, 10)


def test_a_file_of_fixed_batch_is_run_for_each():
    network = OnnxNetwork(Session([1, 3, 8, 8], [np.ones((9, 4), np.float16)], "tensor(float16)"), 0)
    (output,) = network(np.zeros((3, 3, 8, 8), np.float32))
    assert output.shape == (3, 4) and output.dtype == np.float32
    assert [asked.shape[0] for asked in network._session.asked] == [1, 1, 1]
    assert network._session.asked[0].dtype == np.float16


@pytest.mark.parametrize("shape", [[1, 3, "h", 8], [1, 3, 8], [1, 3, 0, 8]])
def test_a_network_whose_input_has_no_size_is_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        OnnxNetwork(Session(shape, []), 0)


def test_networks_of_another_kind_are_refused():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="not a YOLOX"):
        detect_boxes(detector(np.zeros((1, 100, 85), np.float32)), image, PERSON_CLASSES)
    for outputs in ([np.ones((1, 5, 9))], [np.ones((1, 5, 9)), np.ones((1, 6, 9))], [np.ones((1, 5))] * 2):
        with pytest.raises(ValueError, match="not a SimCC"):
            detect_key_points(OnnxNetwork(Session([1, 3, 8, 8], outputs), 0), image, np.array([[0, 0, 8, 8.0]]))


# Graphs that onnxruntime runs: a detector that always says the same, and points at the brightest pixel of the crop

PERSON, DOG = 0, 16
LEFT, TOP, RIGHT, BOTTOM = 100, 80, 260, 320  # of the box, in an image of 640x640


def detection(kind):
    output = np.zeros((1, 8400, 85), np.float32)
    cell = (TOP + BOTTOM) // 2 // 8 * 80 + (LEFT + RIGHT) // 2 // 8
    output[0, cell, :4] = 0.5, 0, *np.log([(RIGHT - LEFT) / 8, (BOTTOM - TOP) / 8])
    output[0, cell, 4] = output[0, cell, 5 + kind] = 1
    return output


def constant_graph(path, output):
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    nodes = [
        make.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        make.make_node("Mul", ["m", "zero"], ["z"]),
        make.make_node("Add", ["z", "said"], ["y"]),
    ]
    told = [onnx.numpy_helper.from_array(np.float32(v), n) for n, v in (("zero", 0), ("said", output))]
    save(path, nodes, [1, 3, 640, 640], [("y", list(output.shape))], told)


def brightest_graph(path, count, height, width):
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    nodes, outputs = [], []
    for name, axes, length in (("columns", [1, 2], width), ("rows", [1, 3], height)):
        nodes += [
            make.make_node("ReduceMax", ["x"], [f"{name}_max"], keepdims=0, axes=axes),
            make.make_node("Unsqueeze", [f"{name}_max", "one"], [f"{name}_1"]),
            make.make_node("Tile", [f"{name}_1", "repeats"], [name]),
        ]
        outputs.append((name, ["batch", count, length]))
    told = [onnx.numpy_helper.from_array(np.int64(v), n) for n, v in (("one", [1]), ("repeats", [1, count, 1]))]
    save(path, nodes, ["batch", 3, height, width], outputs, told)


def save(path, nodes, shape, outputs, told):
    import onnx

    def value(name, sides):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides)

    graph = onnx.helper.make_graph(nodes, "test", [value("x", shape)], [value(*one) for one in outputs], told)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def pin(monkeypatch, path):
    """Make the sha256 of a file the one that its preprocessors expect; return its description."""
    name = {file.name: name for name, file in vars(dwpose).items() if isinstance(file, WeightsFile)}[path.name]
    file = replace(getattr(dwpose, name), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(dwpose, name, file)
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    constant_graph(tmp_path / YOLOX_WEIGHTS.name, detection(PERSON))
    brightest_graph(tmp_path / DWPOSE_WEIGHTS.name, 133, 384, 288)
    brightest_graph(tmp_path / RTMPOSE_WEIGHTS.name, 17, 256, 192)
    brightest_graph(tmp_path / RTMPOSE_ANIMAL_WEIGHTS.name, 17, 256, 256)
    for path in tmp_path.iterdir():
        pin(monkeypatch, path)
    return tmp_path


def dot_image(x, y):
    image = np.zeros((640, 640, 3), np.uint8)
    image[y - 2 : y + 3, x - 2 : x + 3] = 255
    return image


@pytest.mark.parametrize("name", ["dw_openpose_full", "rtmpose"])
def test_points_are_found_where_the_image_is_brightest(folder, name):
    library = Library([folder], download=False)
    made = preprocess(name, dot_image(200, 150), library=library)
    ((one),) = made.values.people
    for part in (one.body, *([one.left_hand, one.right_hand, one.face] if name == "dw_openpose_full" else [])):
        assert all(abs(p.x * 640 - 200) < 3.5 and abs(p.y * 640 - 150) < 3.5 for p in part)
    assert one.body and made.kind == "pose" and made.pixels[150, 200].any()
    assert preprocess(name, dot_image(200, 150)[:600, :], library=library, resolution=320).pixels.shape == (320, 341, 3)


def test_an_animal_is_found_and_a_person_is_none(folder, monkeypatch):
    library = Library([folder], download=False)
    assert preprocess("animal_openpose", dot_image(200, 150), library=library).values.animals == ()
    constant_graph(folder / YOLOX_WEIGHTS.name, detection(DOG))
    pin(monkeypatch, folder / YOLOX_WEIGHTS.name)
    made = preprocess("animal_openpose", dot_image(200, 150), library=library)
    ((one),) = made.values.animals
    assert all(abs(p.x * 640 - 200) < 3.5 and abs(p.y * 640 - 150) < 3.5 for p in one.points)
    assert made.pixels.any()
    assert preprocess("dw_openpose_full", dot_image(200, 150), library=library).values.people == ()


def test_parts_are_left_out_of_the_map_and_stay_in_the_values(folder):
    library = Library([folder], download=False)
    made = preprocess("dw_openpose_full", dot_image(200, 150), library=library, body=False, hands=False, face=False)
    assert not made.pixels.any() and made.values.people[0].face


def test_a_session_is_shared_and_kept(folder):
    library = Library([folder], download=False, cache_bytes=10**9)
    first = load_onnx_network(library, dwpose.DWPOSE_WEIGHTS, "cpu")
    assert load_onnx_network(library, dwpose.DWPOSE_WEIGHTS, "cpu") is first
    assert first.bytes == (folder / DWPOSE_WEIGHTS.name).stat().st_size
    assert find("dw_openpose_full").load(library=library).run.network is first


def test_what_cannot_be_loaded_is_refused_in_one_line(folder, monkeypatch):
    library = Library([folder], download=False)
    with pytest.raises(ValueError, match=r"no provider for the device 'xpu', only .*CPUExecutionProvider"):
        load_onnx_network(library, RTMPOSE_WEIGHTS, "xpu")
    for content in (b"", b"garbage", (folder / DWPOSE_WEIGHTS.name).read_bytes()[:200]):
        (folder / RTMPOSE_WEIGHTS.name).write_bytes(content)
        with pytest.raises(ValueError, match=r"rtmpose-m\.onnx' is refused") as refusal:
            load_onnx_network(library, RTMPOSE_WEIGHTS, "cpu")
        assert "\n" not in str(refusal.value)
    (folder / RTMPOSE_WEIGHTS.name).unlink()
    with pytest.raises(FileNotFoundError, match=r"rtmpose-m\.onnx is not there"):
        load_onnx_network(library, RTMPOSE_WEIGHTS, "cpu")


def test_a_file_of_another_sha256_is_refused_before_onnxruntime_sees_it(folder, monkeypatch):
    path = folder / DWPOSE_WEIGHTS.name
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    with pytest.raises(ValueError, match=r"ucoco_384\.onnx' is refused: its sha256 is \w+, expected \w+, of dw-ll"):
        load_onnx_network(Library([folder], download=False), dwpose.DWPOSE_WEIGHTS, "cpu")


def test_a_file_without_a_sha256_that_ends_its_process_is_refused(folder, monkeypatch):
    library = Library([folder], download=False)
    monkeypatch.setattr(onnx_backend, "_TRIAL_PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(onnx_backend, "_tried_hashes", set())
    with pytest.raises(ValueError, match=r"rtmpose-m\.onnx' is refused: it ends the process of onnx.* code -11"):
        load_onnx_network(library, RTMPOSE_WEIGHTS, "cpu")
    monkeypatch.undo()
    assert load_onnx_network(library, RTMPOSE_WEIGHTS, "cpu").height == 256


def test_without_onnxruntime_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"yolox_l\.onnx needs onnxruntime: pip install controlnet-ext\[onnx\]"):
        preprocess("dw_openpose_full", dot_image(9, 9), library=Library([tmp_path], download=False))
