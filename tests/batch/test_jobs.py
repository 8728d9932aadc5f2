"""`controlnet-ext preprocess` over many images: the same bytes in every way to work, and after every interruption."""

import errno
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from deadly import doubled
from killing import ROOT, Killed, command, contents, killed_at, killed_often
from limits import HANG, wait_until

from controlnet_ext import cli
from controlnet_ext.batch import job, record
from controlnet_ext.batch.engines import ProcessEngine, map_ordered
from controlnet_ext.batch.formats import folder
from controlnet_ext.cli.commands import preprocess
from controlnet_ext.files.disk import lock_folder
from controlnet_ext.files.image_reader import read_image
from controlnet_ext.files.image_writer import write_image
from controlnet_ext.files.safetensors import write_weights

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    """A working folder with in/0.png to in/5.png and in/deeper/6.png to in/deeper/9.png."""
    monkeypatch.chdir(tmp_path)
    Path("in/deeper").mkdir(parents=True)
    for i in range(10):
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        write_image(f"in/{'deeper/' if i > 5 else ''}{i}.png", cv2.resize(noise, (64 + i, 64)))
    return tmp_path


def run(words):
    return cli.main(["preprocess", *words.split()])


def test_two_processes_give_the_same_bytes_as_one_and_keep_the_tree():
    assert run("canny,invert in -o one --recursive") == 0
    assert run("canny,invert in -o two --recursive --jobs 2") == 0
    assert contents("one") == contents("two")
    assert sorted(contents("one"))[:2] == ["0_canny.png", "0_invert.png"]
    assert "deeper/9_invert.png" in contents("one") and len(contents("one")) == 20
    assert sorted(os.listdir()) == ["in", "one", "two"]


def test_a_glob_is_the_files_it_matches_with_the_folders_below_its_plain_part():
    assert run("invert in/*.png -o flat") == 0
    assert run("invert in/**/*.png -o tree") == 0
    assert len(contents("flat")) == 6 and "0_invert.png" in contents("flat")
    assert len(contents("tree")) == 10 and "deeper/6_invert.png" in contents("tree")
    assert run("invert nowhere/*.png -o none") == 2


def test_shards_together_are_the_whole():
    shards = ("1/3", "2/3", "3/3")
    assert run("canny in -o whole --recursive") == 0
    assert all(run(f"canny in -o parts --recursive --shard {shard}") == 0 for shard in shards)
    assert contents("parts") == contents("whole")
    assert run(f"canny in -o parts --recursive --shard {shards[0]}") == 0  # unchanged
    assert run(f"canny in -o parts --recursive --shard {shards[0]} --low 3") == 2  # they exist


def test_shards_and_resumed_jobs_put_the_same_images_into_a_networks_batch():
    from controlnet_ext.annotators import pidinet
    from lines import random_state  # here, as processes that start import this file

    write_weights("table5_pidinet.pth", random_state(pidinet.PiDiNet(20, 8).state_dict()))
    Path("same").mkdir()
    for i in range(7):
        write_image(f"same/{i}.png", cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 64)))
    words = "pidinet,canny same --library . --batch 2"
    assert run(f"{words} -o whole") == 0
    assert run(f"{words} -o parts --shard 1/2") == 0 and run(f"{words} -o parts --shard 2/2 --jobs 2") == 0
    assert contents("parts") == contents("whole")


def test_bad_images_are_in_the_errors_file_and_tried_again_by_the_same_command(capsys):
    good = Path("in/3.png").read_bytes()
    Path("in/3.png").write_bytes(good[:99])
    Path("in/deeper/8.png").write_text("no image")
    for _ in range(2):
        assert run("canny,invert in -o maps --recursive --jobs 2") == 1
        rows = [json.loads(line) for line in Path("maps.job/errors.jsonl").read_text().splitlines()]
        assert [(row["path"], row["key"]) for row in rows] == [("in/3.png", "3"), ("in/deeper/8.png", "deeper/8")]
        assert all(repr(row["path"]) in row["error"] and "\n" not in row["error"] for row in rows)
        assert len(contents("maps")) == 16
    assert "8 of 10 images done\n2 failed" in capsys.readouterr().err
    Path("in/3.png").write_bytes(good)
    Path("in/deeper/8.png").write_bytes(good)
    before = {path: os.stat(path).st_mtime_ns for path in Path("maps").rglob("*.png")}
    assert run("canny,invert in -o maps --recursive") == 0
    assert len(contents("maps")) == 20 and not Path("maps.job").exists()
    assert all(os.stat(path).st_mtime_ns == then for path, then in before.items())


def test_another_job_in_the_same_place_is_refused_or_starts_anew_when_asked(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        full(3, patch)
        assert run("canny in -o maps") == 1
    kept = contents("maps"), contents("maps.job")
    capsys.readouterr()
    for words in ("canny in -o maps --low 3", "invert in -o maps", "canny in -o maps --recursive"):
        assert run(words) == 2
        assert "unfinished job with another" in capsys.readouterr().err
    assert (contents("maps"), contents("maps.job")) == kept
    assert run("canny in -o maps --low 3 --overwrite") == 0 and run("canny in -o other --low 3") == 0
    assert contents("maps") == contents("other") and not Path("maps.job").exists()


def test_a_job_that_has_tried_everything_blocks_no_other_and_is_tried_again(capsys):
    good = Path("in/3.png").read_bytes()
    Path("in/3.png").write_text("no image")
    assert run("canny in -o maps") == 1
    assert run("invert in -o maps") == 1
    assert "in/3.png" in Path("maps.job/errors.jsonl").read_text()
    Path("in/3.png").write_bytes(good)
    capsys.readouterr()
    assert run("canny in -o maps") == 0
    assert "5 unchanged since an earlier job, left as they are" in capsys.readouterr().err
    assert run("invert in -o maps") == 0 and len(contents("maps")) == 12
    assert sorted(os.listdir()) == ["in", "maps"]


def times(folder):
    return {path.name: os.stat(path).st_mtime_ns for path in Path(folder).rglob("*.png")}


def test_a_finished_folder_and_one_new_image_makes_the_map_of_that_one(capsys):
    assert run("canny,invert in -o maps --recursive") == 0
    before = times("maps")
    write_image("in/new.png", np.zeros((64, 64, 3), np.uint8))
    capsys.readouterr()
    assert run("canny,invert in -o maps --recursive") == 0
    assert capsys.readouterr().err == "1 of 1 images done\n10 unchanged since an earlier job, left as they are\n"
    after = times("maps")
    assert after.keys() - before.keys() == {"new_canny.png", "new_invert.png"} and after.items() >= before.items()
    assert run("canny in -o maps --recursive") == 0 and times("maps") == after  # of two, one
    assert run("canny,invert in -o maps --recursive --overwrite") == 0
    assert all(time > after[name] for name, time in times("maps").items())


@pytest.mark.parametrize("change", ["image", "parameters", "result", "elsewhere"])
def test_what_is_not_as_the_record_has_it_is_refused_as_before(change, capsys):
    assert run("invert in -o maps") == 0
    words = "invert in -o maps"
    if change == "image":
        write_image("in/0.png", np.zeros((64, 65, 3), np.uint8), overwrite=True)
    elif change == "parameters":
        words += " --resolution 64"
    elif change == "result":
        Path("maps/.controlnet-ext.jsonl").unlink()
    else:
        Path("in").rename("moved")
        words = "invert moved -o maps"
    kept = contents("maps")
    assert run(words) == 2
    assert "0_invert.png' exists; --overwrite replaces it" in capsys.readouterr().err and contents("maps") == kept


def test_a_map_that_was_removed_is_made_again():
    assert run("invert in -o maps") == 0
    whole = contents("maps")
    Path("maps/2_invert.png").unlink()
    assert run("invert in -o maps") == 0 and contents("maps") == whole


def test_an_image_that_changed_since_a_job_began_is_done_again(monkeypatch):
    with monkeypatch.context() as patch:
        full(4, patch)
        assert run("invert in -o maps") == 1
    pixels = np.full((64, 64, 3), 9, np.uint8)
    write_image("in/0.png", pixels, overwrite=True)
    assert run("invert in -o maps") == 0
    np.testing.assert_array_equal(read_image("maps/0_invert.png"), 255 - pixels)


def test_a_record_that_is_damaged_or_foreign_is_no_error():
    assert run("invert in -o maps") == 0
    record = Path("maps/.controlnet-ext.jsonl")
    first = record.read_text().splitlines()[0]
    record.write_text(f'{first}\n[]\n{{"key": 3}}\n{{"key": "1", "made": 5}}\n{{"key": "2", "ma')
    Path("maps/1_invert.png").unlink()
    assert run("invert in/0.png in/1.png -o maps") == 0 and Path("maps/1_invert.png").exists()


@pytest.mark.parametrize("out", ["maps/", "maps/0_invert.png"])
def test_a_map_that_was_made_anew_by_itself_is_not_what_the_record_has(out, capsys):
    assert run("invert in -o maps") == 0
    assert run(f"invert in/0.png -o {out} --resolution 128 --overwrite") == 0
    assert run("invert in -o maps") == 2
    assert "0_invert.png' exists; --overwrite replaces it" in capsys.readouterr().err
    assert run("invert in/1.png in/2.png -o maps") == 0


def test_the_latest_record_counts(capsys):
    assert run("canny in -o maps") == 0
    for shard in ("1/2", "2/2"):
        assert run(f"canny in -o maps --low 3 --overwrite --shard {shard}") == 0
    assert run("canny in -o maps --low 3") == 0
    assert run("canny in -o maps") == 2


def test_maps_among_the_images_are_told_from_them_by_the_record(capsys):
    assert run("canny in -o in") == 0
    assert "maps go among the images of 'in'" in capsys.readouterr().err
    assert run("invert in -o in") == 0
    assert "6 maps of earlier jobs in 'in' are left out" in capsys.readouterr().err
    assert run("invert in/*.png -o elsewhere") == 0 and len(contents("elsewhere")) == 6
    assert run("canny in -o in/deep/maps --recursive") == 0
    assert run("invert in -o tree --recursive") == 0 and len(contents("tree")) == 10


def test_maps_of_maps_are_made_of_a_folder_of_maps():
    assert run("canny in -o maps") == 0
    assert run("invert maps -o inverted") == 0
    assert sorted(contents("inverted"))[0] == "0_canny_invert.png" and len(contents("inverted")) == 6
    assert run("invert in/0_canny.png -o one.png") == 2
    assert run("canny in -o in") == 0 and run("invert in/0_canny.png -o one.png") == 0  # named, it is an image


def test_names_are_on_the_disk_before_the_job_says_that_they_are_done(monkeypatch):
    settle, settled = folder.fsync_dir, set()

    def settling(place):
        there = set(os.listdir(place))
        settle(place)
        settled.update(there)

    def adding(self, result):
        assert not result.errors and f"{result.image.key}_invert.png" in settled
        add(self, result)

    add = folder.FolderSink.add
    monkeypatch.setattr(folder, "fsync_dir", settling)
    monkeypatch.setattr(folder.FolderSink, "add", adding)
    assert run("invert in -o out --overwrite") == 0
    assert len([name for name in settled if not name.startswith(".")]) == 6


def full(after, monkeypatch):
    """A disk that is full after so many files."""
    write, count = folder.write_atomically, iter(range(after))

    def limited(path, *arguments, **options):
        if next(count, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *arguments, **options)

    monkeypatch.setattr(folder, "write_atomically", limited)


@pytest.mark.parametrize("out", ["in", "in/maps"])
def test_results_among_the_images_are_not_taken_for_images_by_shards_and_resumed_jobs(out, monkeypatch):
    assert run("canny in -o whole --recursive") == 0
    with monkeypatch.context() as patch:
        full(5, patch)
        assert run(f"canny in -o {out} --recursive") == 1
    assert run(f"canny in -o {out} --recursive") == 0
    assert len(contents("in")) == 20 and contents("whole").items() <= contents(out).items()
    assert run(f"invert in -o {out}/2 --shard 1/2") == 0 and run(f"invert in -o {out}/2 --shard 2/2") == 0


@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
def test_a_full_disk_stops_the_job_which_then_goes_on_from_there(overwrite, monkeypatch, capsys):
    if overwrite:  # what is there of another job is not taken for done
        assert run("canny in -o maps --low 3") == 0
    with monkeypatch.context() as patch:
        full(5, patch)
        assert run("canny in -o maps" + overwrite) == 1
    assert "No space left" in capsys.readouterr().err
    assert run("canny in -o maps" + overwrite) == 0
    assert run("canny in -o uninterrupted") == 0
    assert contents("maps") == contents("uninterrupted")
    assert sorted(os.listdir()) == ["in", "maps", "uninterrupted"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_job_killed_and_run_again_gives_the_bytes_of_an_uninterrupted_one(jobs):
    words = f"canny,lineart_standard in --recursive --jobs {jobs} -o"
    assert run(f"{words} whole") == 0
    process = command(f"{words} maps")
    wait_until(lambda: list(Path(".").glob("maps/*.png")), process)
    process.kill()
    process.communicate()
    if Path("maps.job/job.json").exists():
        mark = json.loads(Path("maps.job/job.json").read_text())["mark"]
        Path(f"maps/.{mark}0123.part").write_bytes(b"half")
        assert run(f"{words} maps") == 0
    assert contents("maps") == contents("whole")
    assert sorted(os.listdir()) == ["in", "maps", "whole"]


def test_a_job_is_on_record_until_there_is_nothing_left_to_do(monkeypatch):
    class Killed(BaseException):
        pass

    def kill(words):
        if "images done" in words:  # the last words
            raise Killed

    words = "canny,invert in -o maps --overwrite"  # of which the record alone says that all is done
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "print_stderr", kill)
        with pytest.raises(Killed):
            run(words)
    before = {path: os.stat(path).st_mtime_ns for path in Path("maps").glob("*.png")}
    assert run(words) == 0 and not Path("maps.job").exists()
    assert len(before) == 12 and all(os.stat(path).st_mtime_ns == then for path, then in before.items())


@pytest.mark.parametrize("step", range(6))
def test_a_job_that_is_killed_as_it_clears_its_record_away_is_known(step, monkeypatch):
    class Killed(BaseException):
        pass

    steps = iter(range(step))

    def dying(function):
        def call(*arguments, **options):
            if clearing and next(steps, None) is None:
                raise Killed
            return function(*arguments, **options)

        return call

    clearing = []
    monkeypatch.setattr(job, "close_state", lambda *arguments: (clearing.append(True), record.close_state(*arguments)))
    with monkeypatch.context() as patch:
        for owner, name in ((Path, "unlink"), (Path, "rmdir"), (os, "replace")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        if step < 5:
            with pytest.raises(Killed):
                run("invert in -o maps")
        else:
            assert run("invert in -o maps") == 0
    assert run("invert in -o maps") == 0
    assert sorted(os.listdir()) == ["in", "maps"] and len(contents("maps")) == 6


@pytest.mark.parametrize("overwrite", ["", " --overwrite"])
def test_a_job_killed_at_any_operation_on_files_goes_on_to_the_same_bytes(overwrite, tmp_path, monkeypatch):
    for i in range(3, 10):
        Path(f"in/{'deeper/' if i > 5 else ''}{i}.png").unlink()
    words = f"invert ../in -o maps{overwrite}"
    whole = None
    for count in itertools.count():
        (tmp_path / str(count)).mkdir()
        monkeypatch.chdir(tmp_path / str(count))
        try:
            with killed_at(count, monkeypatch) as done:
                assert run(words) == 0
            break
        except Killed:
            if whole is None:
                assert run(words) == 0
                whole = contents(".")
            assert run(words) == 0
            assert contents(".") == whole, f"killed at operation {count}, after {done}"
    assert count > 20 and {"mkdir", "open", "os.open", "write", "fsync", "unlink", "rmdir"} <= set(done)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_process_ends_with_its_job_so_that_a_kill_does_not_come_between():
    program = (
        "import atexit, os, sys; atexit.register(os.kill, os.getpid(), 9)\n"
        "from controlnet_ext import cli; print('said'); cli.program()"
    )
    words = [sys.executable, "-c", program, "preprocess", "invert", "in", "-o", "maps"]
    done = subprocess.run(words, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout.strip()) == (0, b"said") and len(contents("maps")) == 6


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_two_hundred_kills_of_a_thousand_images_leave_no_trace():
    for i in range(1000):
        Path(f"many/{i % 10}").mkdir(parents=True, exist_ok=True)
        write_image(f"many/{i % 10}/{i}.png", cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (128, 128)))
    words = "canny,invert many --recursive --jobs 2 -o"
    assert run(f"{words} whole") == 0
    kills, jobs = killed_often(words, "maps", 200, lambda: contents("maps") == contents("whole"))
    print(f"{kills} kills, {jobs} jobs to their end")
    assert sorted(os.listdir()) == ["in", "many", "whole"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_processes_end_with_the_one_that_started_them():
    import psutil

    for i in range(100, 400):
        write_image(f"in/{i}.png", np.zeros((64, 64, 3), np.uint8))
    process = command("lineart_standard in --jobs 2 -o maps")
    wait_until(Path("maps").is_dir, process)
    children = wait_until(lambda: psutil.Process(process.pid).children(recursive=True), process)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=HANG)[1]


@pytest.mark.skipif(os.name == "nt", reason="locks")
def test_two_processes_do_not_work_at_one_job(capsys):
    Path("in/3.png").write_text("no image")
    assert run("canny in -o maps") == 1
    with lock_folder(Path("maps.job"), "job"):
        assert run("canny in -o maps") == 2
    assert "another process works at this job" in capsys.readouterr().err


def test_results_come_in_order_with_few_under_way():
    class Ready:
        def __init__(self, value):
            self.result = lambda: value

    begun = []
    results = map_ordered(lambda i: (begun.append(i), Ready(i))[1], range(9), 3)
    assert next(results) == 0 and begun == [0, 1, 2]
    assert list(results) == list(range(1, 9))


def test_an_image_that_ends_its_process_is_told_and_the_others_are_done():
    lots = [["a", "b"], ["d"], ["e", "f"]]
    done = list(ProcessEngine(2).map(doubled, lots, lambda one: f"{one} lost"))
    assert done == [["aa", "b lost"], ["dd"], ["ee", "ff"]]


def test_without_ray_its_engine_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("canny in -o maps --engine ray") == 2
    assert "--engine ray needs ray: pip install" in capsys.readouterr().err and not Path("maps.job").exists()


def test_two_workers_of_a_ray_cluster_give_the_same_bytes(monkeypatch):
    ray = pytest.importorskip("ray", reason="--engine ray needs ray")
    from controlnet_ext.annotators import pidinet
    from lines import random_state

    write_weights("table5_pidinet.pth", random_state(pidinet.PiDiNet(20, 8).state_dict()))
    Path("in/3.png").write_text("no image")
    words = "canny,pidinet in --recursive --library . --batch 2 -o"
    assert run(f"{words} here") == 1
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("HOME", os.getcwd())  # where it writes a token
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert run(f"{words} there --engine ray --jobs 2") == 1
        assert run("invert in/deeper -o more --engine ray --jobs 2") == 0
    finally:
        ray.shutdown()
    assert contents("there") == contents("here") and len(contents("there")) == 18
    assert contents("there.job")["errors.jsonl"] == contents("here.job")["errors.jsonl"]
    assert np.array_equal(read_image("more/7_invert.png"), 255 - read_image("in/deeper/7.png"))


def test_progress_is_a_bar_on_a_terminal_and_a_line_a_minute_elsewhere(monkeypatch, capsys):
    clock, lines = iter(range(1000)), []
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    quiet = job.JobProgress(1000, lines.append)
    for i in range(100, 165):
        quiet.add(i)
    quiet.close()
    assert capsys.readouterr().err == ""
    assert len(lines) == 1 and re.search(r"160/1000 \[01:0\d<14:\d\d, .*images", lines[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    loud = job.JobProgress(None, lines.append)
    loud.add(0)
    assert "\r1 images [00:0" in capsys.readouterr().err and len(lines) == 1
    for _ in range(30):
        loud.add_error("bad")
    assert len(lines) == 21
    loud.close()


def test_maps_in_a_tree_are_those_of_the_images():
    assert run("invert in -o maps --recursive --jobs 2") == 0
    assert np.array_equal(read_image("maps/deeper/7_invert.png"), 255 - read_image("in/deeper/7.png"))
