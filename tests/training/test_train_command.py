"""`controlnet-ext train` on a narrow Stable Diffusion with random weights and six photos."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import constants
from networks import randomised

from controlnet_ext import Unit, guide, load
from controlnet_ext.cli import main
from controlnet_ext.files.weights import read_weights
from controlnet_ext.training import evaluation, job, monitoring, reward, verdict
from controlnet_ext.training.bases import FrozenBase
from controlnet_ext.training.config import DECAY_SHARE, MAX_LAYOUT_FACTOR, WARM_UP_STEPS
from controlnet_ext.training.data import Example, check_disjoint, read_examples, reading, split_examples
from controlnet_ext.training.verdict import describe_fit
from controlnet_ext.training.work_folder import LOG_FILE

STEPS = 24


def unet() -> UNet2DConditionModel:
    """Smaller still than the tiny one: these tests go backwards too."""
    shape = {**tiny.SHAPES["SD1.5"], "block_out_channels": (32,) * 4, "layers_per_block": 1}
    return randomised(UNet2DConditionModel(sample_size=tiny.SIZE // 8, **shape), seed=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small steps are slower on two, which wait for each other: 5 times where other processes are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shelf(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, six photos with captions, and a ControlNet trained on them."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny.pipeline(StableDiffusionPipeline, unet=unet()).save_pretrained(folder / "sd")
    (folder / "photos").mkdir()
    for i in range(6):
        tiny.random_image(seed=i, size=96).save(folder / f"photos/{i}.png")
        (folder / f"photos/{i}.txt").write_text(f"image {'abcdef'[i]}")
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluation, "EVALUATION_DRAWS", 8)
    patch.setattr(monitoring, "write_report", lambda work: [])
    patch.chdir(folder)
    assert main(words("out.safetensors")) == 0
    patch.undo()
    return folder


@pytest.fixture(autouse=True)
def at_the_shelf(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EVALUATION_DRAWS", 8)
    monkeypatch.setattr(monitoring, "write_report", lambda work: [])  # tests/training/test_report.py writes some
    for name in ("sd", "photos"):
        (tmp_path / name).symlink_to(shelf / name)
    monkeypatch.chdir(tmp_path)


def words(out: str, *more: str, data: str = "photos", steps: int = STEPS) -> list[str]:
    """A command line; of an option that is given twice the last holds."""
    options = [
        "--map",
        "canny,low=50",
        "--steps",
        str(steps),
        "--batch",
        "2",
        "--rate",
        "3e-3",
        "--every",
        str(STEPS // 2),
        "--fidelity-images",
        "0",
    ]
    return ["train", "--model", "sd", "--data", data, *options, "--validation", "0.3", *more, "-o", out]


def line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr."""
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("controlnet-ext: ") and err.count("\n") == 1, err
    return err


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (folder / LOG_FILE).read_text().splitlines()]


def test_training_lowers_the_loss_below_that_of_the_model_without_control(shelf):
    rows = log(shelf / "out.safetensors.training")
    assert [row["step"] for row in rows] == [STEPS // 2, STEPS]
    assert rows[1]["training"] < rows[0]["training"] < rows[0]["training_unguided"]
    assert len({row["held_out_unguided"] for row in rows}) == 1


def test_what_was_trained_loads_and_guides(shelf):
    net = load(shelf / "out.safetensors")
    assert net.net_config.heads == (8, 8, 8, 8)
    (best,) = (shelf / "out.safetensors.training").glob("best_*.safetensors")  # can be tried while the training goes on
    kept = load(best)
    assert kept.net_config == net.net_config
    assert all(torch.equal(t, kept.state_dict()[name]) for name, t in net.state_dict().items())
    pipe = tiny.pipeline(StableDiffusionPipeline, unet=unet())

    def latents(*units: Unit) -> torch.Tensor:
        with guide(pipe, units):
            return pipe("a", num_inference_steps=2, generator=torch.manual_seed(0), output_type="latent").images

    guided = latents(Unit(net, np.asarray(tiny.random_image(0)), preprocessor="canny"))
    assert (guided - latents()).abs().max() > 1e-3


def test_the_file_says_what_it_was_trained_for(shelf):
    stated = read_weights(shelf / "out.safetensors").metadata
    unet = (shelf / "sd/unet/diffusion_pytorch_model.safetensors").read_bytes()
    assert (stated["controlnet_ext.map"], stated["controlnet_ext.steps"]) == ("edges", str(STEPS))
    assert hashlib.sha256(unet).hexdigest() in json.loads(stated["controlnet_ext.base"]).values()
    assert stated["controlnet_ext.preprocessor"] == "canny,low=50"


def digest(pipe: StableDiffusionPipeline) -> str:
    parts = [pipe.unet, pipe.vae, pipe.text_encoder]
    tensors = [t for part in parts for t in part.state_dict().values()]
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def test_the_model_stays_as_it_is_to_the_bit(monkeypatch):
    seen = []

    class Spied(FrozenBase):
        def __init__(self, pipe, device):
            seen.append((pipe, digest(pipe)))
            super().__init__(pipe, device)

    monkeypatch.setattr(job, "FrozenBase", Spied)
    assert main(words("out.safetensors", "--fidelity-images", "1", steps=3)) == 0
    ((pipe, before),) = seen
    assert digest(pipe) == before and pipe.scheduler.num_inference_steps is None
    (row,) = log(Path("out.safetensors.training"))
    assert 0 <= row["fidelity"] <= 1 and row["gain"] == row["held_out_unguided"] - row["held_out"]
    images = Path("out.safetensors.training/images")
    strips = {path.name: tiny.Image.open(path).size for path in images.glob("*.png")}
    assert strips == dict.fromkeys(["maps.png", "sources.png", "step_00000003.png", "unguided.png"], (64, 64))
    bounds = json.loads((images / "fidelity.json").read_text())
    assert bounds["score"] == "f1" and bounds["ceiling"]["f1"] == 1 > bounds["floor"]["f1"]
    assert all(p.grad is None for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters())


def same(a: str, b: str) -> bool:
    one, other = (read_weights(path).tensors for path in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(sigint, monkeypatch, capsys):
    assert main(words("whole.safetensors", "--accumulate", "2", steps=3)) == 0
    errors, calls = job.compute_control_errors, []

    def interrupting(*given):
        calls.append(1)
        if len(calls) == 3:  # in the second step
            os.kill(os.getpid(), signal.SIGINT)
        return errors(*given)

    with monkeypatch.context() as patch:
        patch.setattr(job, "compute_control_errors", interrupting)
        assert main(words("cut.safetensors", "--accumulate", "2", steps=3)) == 130
    assert not Path("cut.safetensors").exists() and len(calls) == 4
    assert read_weights("cut.safetensors.training/checkpoint.safetensors").metadata["step"] == "2"
    assert main(words("cut.safetensors", "--accumulate", "2", steps=3)) == 0
    assert same("whole.safetensors", "cut.safetensors")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_minutes_that_run_out_leave_a_checkpoint_and_no_file(capsys):
    assert main(words("out.safetensors", "--minutes", "1e-9", steps=3)) == 1
    assert "the same command goes on" in capsys.readouterr().err
    assert not Path("out.safetensors").exists()


def test_the_documented_command_trains():
    text = (Path(__file__).parents[2] / "docs/guides/training.md").read_text()
    command = next(row for row in text.splitlines() if row.startswith("controlnet-ext train --model sd "))
    assert main([*shlex.split(command)[1:], "--minutes", "1e-9", "--fidelity-images", "0"]) == 1
    assert [row["step"] for row in log(Path("canny.safetensors.training"))] == [1]


def test_a_trained_control_learns_further(shelf, capsys):
    """With a rate of nearly nothing it stays as it was: what begins is the file, not a copy."""
    first = str(shelf / "out.safetensors")
    assert main(words("more.safetensors", "--control", first, "--rate", "1e-12", steps=2)) == 0
    before, after = read_weights(first).tensors, read_weights("more.safetensors").tensors
    assert max((before[name] - after[name]).abs().max() for name in before) < 1e-9
    capsys.readouterr()
    assert main(words("more.safetensors", "--overwrite", "--rate", "1e-12", steps=2)) == 2
    assert "another control" in line(capsys)
    assert main(words("none.safetensors", "--control", "none.pth", steps=2)) == 2
    assert "none.pth" in line(capsys)


def test_other_arguments_than_the_checkpoints_are_refused(capsys):
    assert main(words("out.safetensors", "--minutes", "1e-9", steps=3)) == 1
    capsys.readouterr()
    assert main(words("out.safetensors", "--rate", "2e-3", steps=3)) == 2
    assert "another rate (0.003, now 0.002)" in line(capsys)
    assert main(words("out.safetensors", "--loss", "huber", steps=3)) == 2
    assert "another loss (the default, now huber)" in line(capsys)


def test_the_best_weights_are_published_unless_the_last_are_asked_for_which_takes_no_training(capsys, monkeypatch):
    """The loss of the second measurement is read as worse than that of the first."""
    measure, calls = evaluation.FixedNoiseLoss.measure, []

    def spoil(self, net):
        losses = measure(self, net)
        calls.extend([] if net is None else [net])
        return losses._replace(mean=losses.mean + 9 * (len(calls) > 2))

    monkeypatch.setattr(evaluation.FixedNoiseLoss, "measure", spoil)
    command = ("--every", "2", "--stop", "loss", "--work", "work")
    for out, step in (
        (words("best.safetensors", *command, steps=4), "2"),
        (words("last.safetensors", *command, "--last", steps=4), "4"),
    ):
        assert main(out) == 0 and len(calls) == 4
        stated = read_weights(out[-1]).metadata
        assert stated["controlnet_ext.steps"] == step and stated["controlnet_ext.weights"] == out[-1][:4]
    err = capsys.readouterr().err
    assert "best.safetensors: the best weights, of step 2, by loss; the last step was 4; " in err
    assert "last.safetensors: the weights of the last step, 4; the best, of step 2, are kept in 'work'" in err
    assert not same("best.safetensors", "last.safetensors")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--stop", "fidelity:3"], "there is no fidelity to stop by without --fidelity-images"),
        (["--stop", "magic"], "stop 'magic': expected none, or FIGURE:PATIENCE"),
        (["--fidelity-images", "-1"], "--fidelity-images -1: expected 0 or more"),
        (["--draws", "3"], "--draws 3: expected at least 4"),
        (["--wandb", "mine"], "wandb is not installed: pip install wandb"),
        (["--map", "invert", "--fidelity-images", "2"], "--fidelity-images 2: invert turns a drawing"),
        (["--map", "none,kind=depth", "--fidelity-images", "2"], "--fidelity-images 2: all maps are given"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_images_are_read(more, says, monkeypatch, capsys):
    monkeypatch.setattr(reading, "read_examples", lambda *_, **__: pytest.fail("images were read"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(words("out.safetensors", *more)) == 2
    assert says in line(capsys)


def test_an_image_that_changes_is_another_training(tmp_path, capsys):
    shutil.copytree("photos", "own")
    assert main(words("out.safetensors", "--minutes", "1e-9", data="own", steps=3)) == 1
    for caption in Path("own").glob("*.txt"):
        caption.write_text("another caption")
    capsys.readouterr()
    assert main(words("out.safetensors", data="own", steps=3)) == 2
    assert "another data" in line(capsys)


def test_scenes_are_drawn_where_no_photos_are_needed():
    command = words("out.safetensors", "--every", "1", data="scenes", steps=1)
    command = [word for i, word in enumerate(command) if "--validation" not in command[max(i - 1, 0) : i + 1]]
    assert main(command) == 0
    assert log(Path("out.safetensors.training"))[0]["held_out_unguided"] > 0


def test_a_reward_compares_images_of_predictions_with_the_examples(monkeypatch, capsys):
    shapes = []

    def annotate(pixels: torch.Tensor) -> torch.Tensor:
        shapes.append((tuple(pixels.shape), pixels.requires_grad))
        if len(shapes) == 2:
            raise RuntimeError("both were seen")
        return pixels

    monkeypatch.setattr(reward, "load_annotator", lambda *_: annotate)
    rewarded = ["--reward", "canny:0.5", "--reward-timesteps", "1000"]
    assert main(words("out.safetensors", *rewarded, steps=1)) == 1
    assert "both were seen" in line(capsys)
    assert shapes == [((2, 3, 64, 64), False), ((2, 3, 64, 64), True)]
    assert main(words("out.safetensors", "--reward", "canny:1", *rewarded[2:], steps=1)) == 2
    assert "another reward (canny:0.5, now canny:1)" in line(capsys)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--map", "cany"], "unknown preprocessor 'cany'"),
        (["--map", "canny,low=300"], "low 300 is outside"),
        (["--map", "none,kind=edgy"], "expected none,kind=K"),
        (["--map", "none"], "has no map"),
        (["--size", "96x64"], "size 96x64: both sides must be multiples of 64"),
        (["--size", "64"], "expected WIDTHxHEIGHT"),
        (["--batch", "0"], "batch 0"),
        (["--rate", "nan"], "rate nan of the training"),
        (["--loss", "l1"], "loss 'l1' of the training, expected one of l2, huber, smooth-l1"),
        (["--timesteps", "0-500"], "timesteps '0-500': expected FIRST..END, such as 0..1000"),
        (["--timesteps", "0..1001"], "timesteps 0..1001 of the training, the model has 0..1000"),
        (["--reward", "depth:0.5"], "reward 'depth' of the training, expected one of canny, lineart_standard, hed"),
        (["--reward", "canny"], "reward 'canny': expected NAME:WEIGHT, such as canny:0.5"),
        (["--reward", "canny:0"], "weight 0 of the reward canny, expected more than 0"),
        (["--reward", "hed:0.5"], "ControlNetHED.pth could not be downloaded"),
        (["--reward-timesteps", "300"], "reward-timesteps 300 without --reward"),
        (["--reward", "canny:1", "--timesteps", "200..500"], "timesteps 200..500 of the training have no reward"),
        (["--decay", "1.5"], "decay 1.5 of the training is outside 0..1"),
        (["--precision", "fp8"], "precision 'fp8' of the training, expected one of bf16, fp16, fp32"),
        (["--precision", "fp16"], "precision fp16 needs a GPU, which is not there: --precision bf16 or fp32"),
        (
            ["--optimizer", "sgd"],
            "optimizer 'sgd' of the training, expected one of adamw, adamw8bit, adafactor, prodigy",
        ),
        (["--optimizer", "prodigy"], "optimizer prodigy needs prodigyopt: pip install prodigyopt"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--target", "control-lra"], "unknown target 'control-lra', the nearest are: control-lora"),
        (["--target", "lllite"], "a ControlLLLite is made for SDXL, but the model is narrow SD (context 32)"),
        (["--target", "control-lora", "--rank", "32"], "rank 32 is outside 1..31"),
        (["--rank", "4"], "rank 4: a controlnet has none to choose"),
        (["--validation", "1.5"], "leaves none on one side"),
        (["--validation", "photos"], "is held out and also to be learnt"),
        (["--data", "nowhere"], "'nowhere' is not a folder"),
        (["--data", "scenes"], "held-out ones of their own"),
        (["--data", "scenes:0"], "at least one scene"),
        (["--data", "sd"], "'sd' holds no images"),
        (["--model", "photos"], "holds no model_index.json"),
        (["--work", "sd"], "no folder of a training"),
        (["-o", "out.bin"], "does not end in .safetensors"),
        (["-o", "sd/model_index.json/out.safetensors"], "'sd/model_index.json' is a file, expected a folder"),
        (["--lr", "1e-3"], "unknown argument '--lr'; it is called --rate here"),
        (["--train_batch_size=4"], "unknown argument '--train_batch_size=4'; it is called --batch here"),
    ],
)
def test_nonsense_is_refused_in_one_line_before_any_work(more, says, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = sorted(os.listdir())
    command = words("out.safetensors", *(more if more[0] != "-o" else []))
    if more[0] == "-o":
        command[-1] = more[1]
    assert main(command) == 2
    assert says in line(capsys)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--control", "absent.pth"], "'absent.pth' does not exist"),
        (["--data", "absent"], "'absent' is not a folder"),
        (["--validation", "absent"], "'absent' is not a folder"),
    ],
)
def test_what_is_named_and_not_there_is_found_out_before_the_images_are_read(more, says, monkeypatch, capsys):
    monkeypatch.setattr(reading, "read_examples", lambda *_, **__: pytest.fail("images were read"))
    assert main(words("out.safetensors", *more)) == 2
    assert says in line(capsys)


def test_an_existing_output_is_not_replaced(capsys):
    Path("out.safetensors").write_text("mine")
    assert main(words("out.safetensors", steps=1)) == 2
    assert "--overwrite" in line(capsys)
    assert Path("out.safetensors").read_text() == "mine"
    assert main(words("out.safetensors", "--overwrite", steps=1)) == 0
    assert load("out.safetensors").architecture == "controlnet"


def photos(folder: Path, count: int = 2) -> Path:
    folder.mkdir()
    for i in range(count):
        tiny.random_image(seed=i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f" {i}\n")
    return folder


def test_captions_lie_beside_photos_or_in_a_list(tmp_path):
    folder = photos(tmp_path / "some")
    assert [(e.image.name, e.caption, e.map) for e in read_examples(folder)] == [
        ("0.png", "0", None),
        ("1.png", "1", None),
    ]
    rows = [{"file_name": "1.png", "text": "one", "map": "0.png"}, {"file_name": "1.png", "text": "eins"}]
    (folder / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    listed = [(e.image.name, e.caption, e.map and e.map.name) for e in read_examples(folder)]
    assert listed == [("1.png", "one", "0.png"), ("1.png", "eins", None)]


def test_folders_that_cannot_be_learnt_from_are_refused(tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        read_examples(folder)
    tiny.random_image().save(folder / "a.png")
    with pytest.raises(ValueError, match=r"1 of 1 examples cannot be learnt from.*a\.png' has no caption"):
        read_examples(folder)
    (folder / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a\.txt' is not UTF-8"):
        read_examples(folder)
    (folder / "a.txt").write_text("a")
    whole = (folder / "a.png").read_bytes()
    for content, says in ((whole[:-20], "cut short"), (b"text", "no image")):
        (folder / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.png' is .*{says}"):
            read_examples(folder)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"file_name": "../a.png", "text": "a"}', "line 1: '../a.png' is not a file in the list's folder"),
        ('{"file_name": "/a.png", "text": "a"}', "not a file in"),
        ('{"file_name": "a.png"}', "line 1: expected"),
        ("[]", "line 1 holds a JSON list"),
        ("{", "not valid JSON"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path, row, says):
    (tmp_path / "captions.jsonl").write_text(row)
    with pytest.raises(ValueError, match=says):
        read_examples(tmp_path)


def test_a_copy_of_an_image_is_on_its_side(tmp_path):
    found = tuple(Example(Path(f"{i}.png"), "", None, str(i % 5)) for i in range(20))
    learnt, held = split_examples(found, 0.4)
    assert len(held) == 8 and not {e.sha256 for e in learnt} & {e.sha256 for e in held}
    assert sorted(e.image for e in learnt + held) == sorted(e.image for e in found)
    check_disjoint(learnt, held)
    with pytest.raises(ValueError, match=r"held out and also to be learnt, as '5\.png'"):
        check_disjoint((found[5],), (found[10],))


def row(step: float, training: float, held_out: float) -> dict[str, float]:
    return {
        "step": step, "training": training, "held_out": held_out, "training_unguided": 1.0, "held_out_unguided": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "begins"),
    [
        ([row(25, 0.9, 0.9), row(50, 0.7, 0.8), row(75, 0.5, 0.85), row(100, 0.4, 0.9)], "overfits: the held-out loss"),
        ([row(50, 0.8, 0.9), row(75, 0.4, 0.84), row(100, 0.4, 0.84)], "overfits: 26 %"),
        ([row(50, 0.9, 0.9), row(75, 0.8, 0.8), row(100, 0.7, 0.7)], "underfits"),
        ([row(100, 1.0, 1.0)], "underfits"),
        ([row(50, 0.7, 0.7), row(75, 0.5, 0.51), row(100, 0.5, 0.505)], "fits"),
        ([row(3, 0.9, 0.9)], "too few steps to tell, 3 of at least 100; held-out loss 0.9 "),
        ([row(20, 0.9, 0.9), row(30, 0.6, 0.6), row(40, 0.6, 0.6)], "too few steps to tell, 40 of at least 100"),
        ([row(20, 0.5, 0.5), row(99, 0.5, 0.9)], "too few steps to tell, 99 of at least 100"),
        ([row(200, 0.5, 0.5)], "too few measurements to tell"),
    ],
)
def test_the_verdict_says_what_the_losses_show(rows, begins):
    assert describe_fit(rows).startswith(begins)


def test_the_page_on_training_says_what_the_command_does() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/training.md").read_text()
    assert f"counts much noise up to {MAX_LAYOUT_FACTOR:g} times as much" in page
    assert f"too few steps to tell: under {verdict.MIN_VERDICT_STEPS}" in page
    assert f"rises over {WARM_UP_STEPS} steps and falls to zero in the last {DECAY_SHARE * 100:g} %" in page


def test_without_accelerate_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(words("other.safetensors")) == 2
    assert line(capsys).endswith('train needs accelerate: pip install "controlnet-ext[train]"\n')
