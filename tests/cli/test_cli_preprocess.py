"""`controlnet-ext preprocess`: what is written, what is refused before anything is written, and the exit codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from controlnet_ext.preprocessors import preprocess
from limits import wait_until

from controlnet_ext import cli
from controlnet_ext.batch import single
from controlnet_ext.batch.results import RECORD_NAME
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image

rng = np.random.default_rng(0)
PIXELS = cv2.resize(rng.integers(0, 256, (12, 17, 3), np.uint8), (170, 120), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with images a.png, b.jpg, in/c.png, in/deeper/d.png."""
    monkeypatch.chdir(tmp_path)
    Path("in/deeper").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "in/c.png", "in/deeper/d.png"):
        write_image(name, PIXELS)
    Path("in/notes.txt").write_text("no image")
    Path("in/.hidden.png").write_text("no image")
    Path("in/.thumbnails").mkdir()
    write_image("in/.thumbnails/e.png", PIXELS)
    return tmp_path


def run(words):
    return cli.main(["preprocess", *words.split()])


def files(folder="."):
    """The files in a folder, without the record of results."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != RECORD_NAME)
    return sorted(str(path.relative_to(folder)) for path in paths)


def refused(words, capsys):
    """The one line with which a command is refused, having written nothing."""
    before = files(), os.listdir()
    assert run(words) == 2
    out, error = capsys.readouterr()
    assert (files(), os.listdir()) == before
    assert out == "" and error.startswith("controlnet-ext: ") and error.count("\n") == 1
    return error.strip()


def test_an_image_becomes_a_file(capsys):
    assert run("canny a.png -o edges.png --low 30 --high 60") == 0
    np.testing.assert_array_equal(read_image("edges.png"), preprocess("canny", PIXELS, low=30, high=60).pixels)
    assert capsys.readouterr() == ("", "edges.png\n")


def test_a_file_may_be_called_jpg_or_webp():
    assert run("invert a.png -o inverted.webp") == 0
    np.testing.assert_array_equal(read_image("inverted.webp"), 255 - PIXELS)
    assert run("invert a.png -o inverted.jpg") == 0


@pytest.mark.parametrize("out", ["maps/", "deep/maps/", "in", "in/"])
def test_one_result_goes_into_what_is_a_folder(out):
    assert run(f"canny a.png -o {out}") == 0
    assert Path(out, "a_canny.png").is_file()


def test_several_results_go_into_a_folder_by_stem_and_name():
    assert run("canny,invert a.png b.jpg -o maps") == 0
    assert files("maps") == ["a_canny.png", "a_invert.png", "b_canny.png", "b_invert.png"]
    np.testing.assert_array_equal(read_image("maps/a_invert.png"), 255 - PIXELS)


def test_a_label_in_any_case_is_a_name():
    assert cli.main(["preprocess", "Invert (from white BG & black line)", "a.png", "-o", "maps/"]) == 0
    assert files("maps") == ["a_invert.png"]


def test_a_folder_means_its_images():
    assert run("canny in -o maps/") == 0
    assert files("maps") == ["c_canny.png"]
    assert run("canny in -o all/ --recursive") == 0
    assert files("all") == ["c_canny.png", "deeper/d_canny.png"]


def test_a_plain_parameter_is_for_all_that_have_it_and_a_particular_one_goes_before():
    assert run("threshold,scribble_xdog,invert a.png -o maps --threshold 20 --scribble_xdog.threshold 60") == 0
    for name, value in (("threshold", 20), ("scribble_xdog", 60)):
        expected = preprocess(name, PIXELS, threshold=value).pixels
        np.testing.assert_array_equal(read_image(f"maps/a_{name}.png"), expected)


@pytest.mark.parametrize(
    "words",
    [
        "canny a.png -o edges.png --low 9 --resolution 128",
        "--low 9 canny --resolution=128 a.png --output edges.png",
        "-o edges.png canny --canny.low=9 --canny.resolution 128 a.png",
        "-oedges.png canny --resolution 128 --low 9 -- a.png",
    ],
)
def test_flags_stand_anywhere(words):
    assert run(words) == 0
    expected = preprocess("canny", PIXELS, low=9, resolution=128).pixels
    np.testing.assert_array_equal(read_image("edges.png"), expected)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("cany a.png -o x.png", "unknown preprocessor 'cany', the nearest are: canny, "),
        ("canny,inver a.png -o maps/", "unknown preprocessor 'inver', the nearest are: invert, "),
        ("canny, a.png -o maps/", "unknown preprocessor ''"),
        ("canny a.png -o x.png --lo 3", "unknown argument '--lo', the nearest are: --low, "),
        ("canny a.png -o x.png --hihg=3", "unknown argument '--hihg=3', the nearest are: --high, "),
        ("canny a.png -o x.png --jobs 0", "--jobs 0 is outside 1.."),
        ("canny a.png -o x.png --jobs 99999", "this machine has"),
        ("canny a.png -o x/ --engine ray --jobs 5000", "--jobs 5000 is outside 1..4096"),
        ("canny a.png -o x/ --shard 3/2", "--shard '3/2': expected i/n"),
        ("canny a.png -o x/ --shard 0/4", "--shard '0/4': expected i/n with i from 1 to n, such as 1/8 to 8/8"),
        ("canny a.png -o x/ --shard ²/4", "--shard '²/4': expected i/n"),
        (
            "in canny -o maps/",
            "'in' is a folder, and the name of a preprocessor comes first: controlnet-ext preprocess",
        ),
        ("a.png canny -o maps/", "'a.png' is a file, and the name of a preprocessor comes first"),
        ("canny invert a.png -o maps/", "'invert' does not exist: invert is a preprocessor, join several by commas"),
        ("canny a.png -o x.png --threshold_a 3", "unknown argument '--threshold_a'; it is called low here"),
        ("canny a.png -o x.png --threshold-b=3", "unknown argument '--threshold-b=3'; it is called high here"),
        ("invert a.png -o x.png --threshold_a 3", "unknown argument '--threshold_a', the nearest are: "),
        ("canny a.png -o x.png --low_threshold 3", "unknown argument '--low_threshold'; it is called --low here"),
        ("canny a.png -o x.png --detect-resolution 3", "it is called --resolution here"),
        ("canny a.png --output_dir maps", "unknown argument '--output_dir'; it is called --output here"),
        ("canny a.png -o x.png --sixteen_bit", "unknown argument '--sixteen_bit'; it is called --sixteen-bit here"),
        ("invert a.png -o x.png --low 3", "unknown argument '--low'"),
        ("--low 3 invert a.png -o x.png", "--low is for none of the preprocessors named: invert"),
        ("invert a.png -o x.png --canny.low 3", "unknown argument '--canny.low'"),
        ("canny a.png -o x.png --low 256", "canny: low 256 is outside 0..255"),
        ("canny a.png -o x.png --low -1", "canny: low -1 is outside 0..255"),
        ("canny a.png -o x.png --low 3.5", "canny: low '3.5': expected a whole number 0..255"),
        ("threshold a.png -o x.png --threshold nan", "threshold: threshold nan is outside 0..255"),
        ("canny a.png -o x.png --resolution 32", "canny: resolution 32 is outside 64..2048"),
        ("canny a.png -o x.png --low", "--low: expected one argument"),
        ("canny a.png", "required: -o/--output"),
        ("canny -o x.png", "required: INPUT"),
        ("canny no.png -o x.png", "'no.png' does not exist"),
        ("canny a.png no.png -o maps", "'no.png' does not exist"),
        ("canny in/notes.txt -o x.png", "'in/notes.txt' is none of JPEG, PNG"),
        ("canny in/deeper in/notes.txt -o a.png", "'a.png' is a file, expected a folder for 2 results"),
        ("canny a.png -o a.png/x.png", "'a.png' is a file, expected a folder"),
        ("canny a.png -o a.png/deep/er/x.png", "'a.png' is a file, expected a folder"),
        ("canny a.png b.jpg -o a.png/maps", "'a.png' is a file, expected a folder"),
        ("canny a.png -o x.gif", "'x.gif' ends in '.gif', expected one of .png"),
        ("canny a.png -o b.jpg", "'b.jpg' exists; --overwrite replaces it"),
        ("canny a.png -o a.png/", "'a.png/' is a file, expected a folder"),
        ("canny,invert a.png -o -", "2 results do not go to stdout"),
        ("canny a.png in/../a.png -o maps", "'maps/a_canny.png' would be made twice, of 'a.png' and 'in/../a.png'"),
        ("canny,CANNY a.png -o maps", "'maps/a_canny.png' would be made twice"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_before_any_work(words, reason, capsys):
    assert reason in refused(words, capsys)


def test_an_empty_out_and_a_folder_without_images_are_refused(capsys):
    assert cli.main(["preprocess", "canny", "a.png", "-o", ""]) == 2
    assert "OUT is empty" in capsys.readouterr().err
    Path("empty/deeper").mkdir(parents=True)
    assert "'empty' holds no images (--recursive" in refused("canny empty -o maps/", capsys)


def test_nothing_is_replaced_without_overwrite(capsys):
    Path("maps").mkdir()
    Path("maps/b_canny.png").write_text("mine")
    assert "'maps/b_canny.png' exists" in refused("canny a.png b.jpg -o maps", capsys)
    assert Path("maps/b_canny.png").read_text() == "mine"
    assert run("canny a.png b.jpg -o maps --overwrite") == 0
    assert read_image("maps/b_canny.png").shape == (120, 170, 3)


def test_an_image_that_is_still_to_be_read_is_not_replaced(capsys):
    write_image("a_canny.png", PIXELS)
    assert "still to be read" in refused("canny a.png a_canny.png -o ./ --overwrite", capsys)
    np.testing.assert_array_equal(read_image("a_canny.png"), PIXELS)


def test_an_image_may_be_replaced_by_its_own_map():
    assert run("invert a.png -o a.png --overwrite") == 0
    np.testing.assert_array_equal(read_image("a.png"), 255 - PIXELS)


def test_one_bad_image_among_others_does_not_stop_them(capsys):
    Path("in/bad.png").write_bytes(Path("a.png").read_bytes()[:500])
    assert run("canny,invert in a.png -o maps") == 1
    assert files("maps") == ["a_canny.png", "a_invert.png", "c_canny.png", "c_invert.png"]
    failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("controlnet-ext: ")]
    assert len(failures) == 1 and "'in/bad.png'" in failures[0]


def test_the_only_image_bad_is_a_refusal(capsys):
    Path("bad.png").write_bytes(Path("a.png").read_bytes()[:500])
    assert "'bad.png'" in refused("canny,invert bad.png -o maps/", capsys)


def test_the_only_image_bad_for_one_preprocessor_is_a_failure_on_the_way(capsys):
    write_image("strip.png", np.zeros((3, 1000, 3), np.uint8))
    assert run("canny,invert strip.png -o maps --invert.resolution 2048") == 1
    assert files("maps") == ["strip_canny.png"]
    assert "over the limit of 64 megapixels" in capsys.readouterr().err


def test_a_failure_to_write_is_a_failure_on_the_way(capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device", "x.png")

    monkeypatch.setattr(single, "write_atomically", fail)
    assert run("canny a.png -o x.png") == 1
    assert capsys.readouterr().err == "controlnet-ext: [Errno 28] No space left on device: 'x.png'\n"


def test_folders_on_the_way_to_a_file_are_made():
    assert run("canny a.png -o new/sub/out.png") == 0
    assert files("new") == ["sub/out.png"]


def command(*words, **options):
    root = Path(cli.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, "-m", "controlnet_ext.cli", *words], env=environment, **options)


def test_a_map_goes_to_stdout_and_nothing_else_does():
    process = command("preprocess", "invert", "a.png", "-o", "-", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = process.communicate()
    assert (process.returncode, error) == (0, b"")
    np.testing.assert_array_equal(read_image(out), 255 - PIXELS)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_closed_stdout_is_refused_in_one_line():
    words = [sys.executable, "-m", "controlnet_ext.cli", "preprocess", "invert", "a.png", "-o", "-"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "controlnet-ext: stdout is closed: name a file to write to\n")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "words", ["preprocess invert a.png -o -", "preprocessors", "preprocess canny --help", "--help"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_is_gone_ends_the_command_without_a_word(words, unbuffered):
    root = str(Path(cli.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "controlnet_ext.cli", *words.split()]
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    told = unbuffered and words.endswith("canny --help")  # argparse swallows the error
    assert (done.returncode, done.stderr) == (0 if told else 141, "")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_messages_without_a_reader_harm_no_result():
    words = [sys.executable, "-m", "controlnet_ext.cli", "preprocess", "invert", "in/c.png", "b.jpg", "-o", "maps"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *words], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"") and files("maps") == ["b_invert.png", "c_invert.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line_and_code_1():
    with open("/dev/full", "wb") as full:
        process = command("preprocess", "invert", "a.png", "-o", "-", stdout=full, stderr=subprocess.PIPE)
        error = process.communicate()[1].decode()
    assert process.returncode == 1
    assert error.startswith("controlnet-ext: ") and error.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interruption_is_130_and_leaves_nothing_half_written(sigint):
    for i in range(3000):  # seconds of work: it is not at its end before the signal comes
        os.link("in/c.png", f"in/{i}.png")
    process = command("preprocess", "lineart_standard", "in", "-o", "maps/", stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(files("maps")) > 2, process)  # two of which may be the same, getting its name
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].splitlines()[-1] == "controlnet-ext: interrupted"
    assert process.returncode == 130
    assert 0 < len(files("maps")) < 3001
    for name in files("maps"):
        assert name.endswith("_lineart_standard.png") and read_image(f"maps/{name}").shape == (120, 170, 3)


def test_the_command_loads_no_torch_and_no_reader_of_weights():
    code = """
import sys
from controlnet_ext.cli import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "diffusers", "transformers", "PIL", "controlnet_ext.files.weights"} & sys.modules.keys()))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    words = [sys.executable, "-c", code, "preprocess", "canny", "b.jpg", "-o", "x.png"]
    assert subprocess.run(words, env=environment, capture_output=True, text=True).stdout == "0 []\n"


def test_no_command_or_an_unknown_one_is_refused(capsys):
    assert cli.main([]) == 2
    assert cli.main(["proces"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "\ncontrolnet-ext: unknown command 'proces', the nearest are: preprocess, preprocessors" in error
