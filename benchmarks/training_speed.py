"""A step of our training beside one of diffusers' train_controlnet.py, on the same model, images and number of threads.

    python -m benchmarks.training_speed [--model tiny|half|sd15] [--size 256] [--batch 1] [--steps 4] [--rounds 2]
    python -m benchmarks.training_speed --memory [--model half] ...
    python -m benchmarks.training_speed --count

The loop of diffusers is that of huggingface/diffusers @ 58eb52c, examples/controlnet/train_controlnet.py: its image
transforms, its loader, its forward and backward pass, its optimizer, without trackers and validation. Both train in
float32 unless --precision says otherwise; ours also averages weights (--ema 0: it does not). `tiny` is the embedded
model; `half` and `sd15` have the shape of SD1.5 with half its channels and with all of them, and random weights.

Prints, for each, images per second by the median step, in wall time and in time of this process (which other processes
on the machine do not lengthen), and where the time goes. Then what ours encodes once for each image. --memory prints
the largest resident memory of processes that train for two steps with different settings. --count counts the
operations of a step of SD1.5 on tensors without values, and the bytes of state that each optimizer keeps.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from controlnet_ext.embedded.scenes import TRAINING_SEEDS, draw_scene
from controlnet_ext.generation.pipeline_folder import PipelineFolder
from controlnet_ext.training.bases import FrozenBase
from controlnet_ext.training.config import OPTIMIZERS, Execution, TrainingSchedule
from controlnet_ext.training.data import (
    FolderDataset,
    LoadingSettings,
    RandomSource,
    Sampling,
    Tolerance,
    read_examples,
)
from controlnet_ext.training.encoding import ExampleEncoder
from controlnet_ext.training.job import BatchReader, compute_control_errors
from controlnet_ext.training.loading import TrainingBatches
from controlnet_ext.training.loop import train
from controlnet_ext.training.losses import DiffusionLoss, make_generator
from controlnet_ext.training.optimizers import OptimizerState, check_optimizer, make_optimizer
from controlnet_ext.training.processes import Processes
from controlnet_ext.training.targets import DEFAULT_TARGET, TargetSettings, find_target

WARM_UP = 1
IMAGES = 4
WIDTHS = {"half": (160, 320, 640, 640), "sd15": (320, 640, 1280, 1280)}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGURATIONS = {  # flags of ours, for --memory
    "fp32": ["--precision", "fp32"],
    "fp32, checkpointing": ["--precision", "fp32", "--checkpointing"],
    "bf16": ["--precision", "bf16"],
    "bf16, checkpointing": ["--precision", "bf16", "--checkpointing"],
    "fp32, no averaged weights": ["--precision", "fp32", "--ema", "0"],
    "fp32, adafactor": ["--precision", "fp32", "--optimizer", "adafactor"],
    "fp32, adamw8bit": ["--precision", "fp32", "--optimizer", "adamw8bit"],
}


@dataclass
class StepClock:
    """Times of steps, which end with a step of the optimizer, and of their parts."""

    walls: list[float] = field(default_factory=list)
    owns: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def end_step(self, *_: Any) -> None:
        self.walls.append(time.perf_counter())
        self.owns.append(time.process_time())
        if len(self.walls) == WARM_UP:
            self.parts.clear()

    def add(self, part: str, seconds: float) -> None:
        self.parts[part] += seconds

    def step_times(self) -> tuple[list[float], list[float]]:
        """Return wall times and own times of the steps after the warm-up, in seconds."""
        pairs = [[b - a for a, b in zip(t[WARM_UP - 1 :], t[WARM_UP:], strict=False)] for t in (self.walls, self.owns)]
        return pairs[0], pairs[1]


@contextmanager
def watch(clock: StepClock, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Take the time of the forward passes of modules, of backward passes and of the optimizer within the context."""
    began: dict[object, float] = {}

    def begin(key: object) -> None:
        began[key] = time.process_time()

    def end(key: object, part: str) -> None:
        clock.add(part, time.process_time() - began.pop(key))

    handles: list[Any] = []
    for name, module in modules.items():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: begin(name)),
            module.register_forward_hook(lambda *_, name=name: end(name, name)),
        ]
    handles += [
        register_optimizer_step_pre_hook(lambda *_: begin("optimizer")),
        register_optimizer_step_post_hook(lambda *_: end("optimizer", "optimizer")),
        register_optimizer_step_post_hook(clock.end_step),
    ]
    backward = torch.Tensor.backward

    def timed_backward(self: torch.Tensor, *args: Any, **more: Any) -> None:
        begin("backward")
        backward(self, *args, **more)
        end("backward", "backward")

    torch.Tensor.backward = timed_backward  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()


def make_random(build: Callable[[], nn.Module]) -> Any:
    """Return a module with small random weights, without PyTorch's slow initialisation."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.fill_(1.0) if "norm" in name and name.endswith("weight") else parameter.normal_(0, 0.02)
    for name, buffer in module.named_buffers():
        if "position_ids" in name:
            buffer.copy_(torch.arange(buffer.shape[-1]))
    return module.eval()


def list_parts(name: str) -> dict[str, Callable[[], Any]]:
    """Return what makes the UNet and the VAE of a model."""
    share = WIDTHS[name][0] / 320
    return {
        "unet": lambda: UNet2DConditionModel(
            block_out_channels=WIDTHS[name], cross_attention_dim=768, attention_head_dim=8
        ),
        "vae": lambda: AutoencoderKL(
            block_out_channels=tuple(int(c * share) for c in (128, 256, 512, 512)),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        ),
    }


def make_pipeline(name: str) -> StableDiffusionPipeline:
    """Return the embedded model, or one of the shape of SD1.5 with random weights."""
    folder = PipelineFolder.find("embedded")
    if name == "tiny":
        pipe: Any = folder.load(torch.float32, folder.make_scheduler(None))
        return pipe
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(folder.path / "tokenizer", model_max_length=77)
    unet, vae = (make_random(build) for build in list_parts(name).values())
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    text = CLIPTextModel(config).eval()
    return StableDiffusionPipeline(
        vae,
        text,
        tokenizer,
        unet,
        DDPMScheduler(**SCHEDULER, steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )


def write_images(folder: Path, size: int) -> None:
    """Write scenes, their maps and their captions, as both trainers read them."""
    import cv2

    for i in range(IMAGES):
        scene = draw_scene(TRAINING_SEEDS[i], 128)
        pixels = np.asarray(Image.fromarray(scene.pixels).resize((size, size)))
        Image.fromarray(pixels).save(folder / f"{i}.png")
        Image.fromarray(cv2.Canny(pixels, 100, 200)).convert("RGB").save(folder / f"{i}_map.png")
    rows = [f'{{"file_name": "{i}.png", "text": "a scene", "map": "{i}_map.png"}}\n' for i in range(IMAGES)]
    (folder / "metadata.jsonl").write_text("".join(rows))


class DiffusersImages(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The data set of train_controlnet.py, make_train_dataset and preprocess_train."""

    def __init__(self, folder: Path, size: int, tokenizer: Any):
        from torchvision import transforms

        resize = [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
        ]
        self._folder = folder
        self._for_image = transforms.Compose([*resize, transforms.Normalize([0.5], [0.5])])
        self._for_map = transforms.Compose(resize)
        self._ids = tokenizer(
            "a scene",
            max_length=tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]

    def __len__(self) -> int:
        return 1000 * IMAGES

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        name = self._folder / str(i % IMAGES)
        return {
            "pixel_values": self._for_image(Image.open(f"{name}.png").convert("RGB")),
            "conditioning_pixel_values": self._for_map(Image.open(f"{name}_map.png").convert("RGB")),
            "input_ids": self._ids,
        }


def train_like_diffusers(
    pipe: StableDiffusionPipeline, folder: Path, options: argparse.Namespace, clock: StepClock
) -> None:
    """Train as train_controlnet.py does: lines 1015 to 1105 of it, with its defaults."""
    unet, vae, text = pipe.unet, pipe.vae, pipe.text_encoder
    for part in (unet, vae, text):
        part.requires_grad_(False)
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    controlnet = ControlNetModel.from_unet(unet).train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=5e-6, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    images = DiffusersImages(folder, options.size, pipe.tokenizer)
    loader = torch.utils.data.DataLoader(images, shuffle=True, batch_size=options.batch, num_workers=0)
    modules = {"copy": controlnet, "UNet": unet, "VAE": vae.encoder, "text encoder": text}
    precision = options.precision
    weight_dtype = torch.float32
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    if precision == "bf16":
        weight_dtype = torch.bfloat16
        for part in (unet, vae, text):
            part.to(weight_dtype)
    with watch(clock, modules):
        for batch in islice(loader, options.steps + WARM_UP):
            with torch.no_grad():
                latents = vae.encode(batch["pixel_values"].to(weight_dtype)).latent_dist.sample()
                latents = latents * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),)).long()
            noisy = noise_scheduler.add_noise(latents.float(), noise.float(), timesteps).to(weight_dtype)
            with torch.no_grad():
                states = text(batch["input_ids"], return_dict=False)[0]
            with autocast:
                down, middle = controlnet(
                    noisy,
                    timesteps,
                    encoder_hidden_states=states,
                    controlnet_cond=batch["conditioning_pixel_values"].to(weight_dtype),
                    return_dict=False,
                )
            predicted = unet(
                noisy,
                timesteps,
                encoder_hidden_states=states,
                down_block_additional_residuals=[each.to(weight_dtype) for each in down],
                mid_block_additional_residual=middle.to(weight_dtype),
                return_dict=False,
            )[0]
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
            loss.backward()
            nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            loss.detach().item()
    for part in (unet, vae, text):
        part.to(torch.float32)


def train_like_us(pipe: StableDiffusionPipeline, folder: Path, options: argparse.Namespace, clock: StepClock) -> float:
    """Train as `controlnet-ext train` does, and return the seconds that each image takes once to be encoded."""
    frozen = FrozenBase(pipe, "cpu")
    network = find_target(DEFAULT_TARGET).create(pipe.unet, TargetSettings()).requires_grad_(True)
    loading = LoadingSettings(Tolerance(0, print), workers=0)
    encoder = ExampleEncoder(frozen, loading)
    size = (options.size, options.size)
    source = RandomSource(FolderDataset(read_examples(folder), None))
    batches = TrainingBatches(source, encoder, Sampling(size), loading, options.batch, 0)
    began = time.process_time()
    for _ in islice(batches.iterate(0), 8 * IMAGES // options.batch):  # every image is drawn, and stays in memory
        pass
    encoding = (time.process_time() - began) / IMAGES
    objective = DiffusionLoss(DDPMScheduler.from_config(pipe.scheduler.config))
    reader = BatchReader(batches, 1, Processes())

    def loss(net: Any, step: int, part: int) -> torch.Tensor:
        numbers = make_generator(0, step, part, 1)
        return compute_control_errors(net, frozen, reader.read(step, part), objective, numbers).mean()

    if options.checkpointing:
        frozen.unet.enable_gradient_checkpointing()
    schedule = TrainingSchedule(options.steps + WARM_UP, 5e-6, ema_decay=options.ema, evaluation_interval=10**6)
    execution = Execution(options.precision, options.optimizer, options.checkpointing)
    modules = {"map encoder": network.controlnet_cond_embedding, "copy": network, "UNet": frozen.unet}
    with tempfile.TemporaryDirectory() as work, watch(clock, modules), no_checkpoint():
        train(network, loss, lambda *_: {}, schedule, Path(work), execution=execution)
    frozen.unet.set_default_attn_processor()  # not theirs to profit from
    frozen.unet.disable_gradient_checkpointing()
    return encoding


@contextmanager
def no_checkpoint() -> Iterator[None]:
    """Write no checkpoint within the context: only steps are measured."""
    from controlnet_ext.training.checkpoints import TrainingState

    save = TrainingState.save
    TrainingState.save = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingState.save = save  # type: ignore[method-assign]


def report(name: str, clocks: list[StepClock], batch: int) -> float:
    """Print the figures of a trainer, and return its images per second by the time of this process."""
    walls, owns = ([seconds for clock in clocks for seconds in clock.step_times()[i]] for i in range(2))
    wall, own = statistics.median(walls), statistics.median(owns)
    print(
        f"{name}: {batch / own:.4g} images/s of process time ({batch / wall:.4g} of wall time); step {own:.3f} s "
        f"({min(owns):.3f} to {max(owns):.3f}, {len(owns)} steps)"
    )
    parts: dict[str, float] = defaultdict(float)
    for clock in clocks:
        for part, seconds in clock.parts.items():
            parts[part] += seconds / len(owns)
    parts["rest"] = statistics.mean(owns) - sum(parts.values())
    print("  " + ", ".join(f"{part} {seconds:.3f} s" for part, seconds in parts.items()))
    return batch / own


def compare(options: argparse.Namespace) -> None:
    pipe = make_pipeline(options.model)
    count = sum(p.numel() for p in pipe.unet.parameters())
    print(f"{options.model}, UNet of {count / 1e6:.0f} million parameters, {options.size} px, batch {options.batch}")
    theirs, ours, encodings = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, options.size)
        for _ in range(options.rounds):
            for clocks, run in ((theirs, train_like_diffusers), (ours, train_like_us)):
                clocks.append(StepClock())
                result = run(pipe, folder, options, clocks[-1])
                encodings += [result] if result is not None else []
                gc.collect()
    rates = [report(name, clocks, options.batch) for name, clocks in (("diffusers", theirs), ("ours", ours))]
    print(f"ratio {rates[1] / rates[0]:.2f}; ours encodes an image once, in {statistics.median(encodings):.3f} s")


def compare_memory(options: argparse.Namespace) -> None:
    """Print the largest resident memory by settings, each in a process of its own."""
    for name, flags in {"diffusers": ["--only", "diffusers"], **CONFIGURATIONS}.items():
        command = [sys.executable, "-m", "benchmarks.training_speed", "--model", options.model, "--steps", "1"]
        command += ["--size", str(options.size), "--batch", str(options.batch), "--only", "ours", *flags]
        process = subprocess.run(command, capture_output=True, text=True)
        print(f"{name}: {process.stdout.strip() or process.stderr.strip().splitlines()[-1]}", flush=True)


def count_operations(size: int) -> dict[str, float]:
    """Return the floating point operations of a step with one image of SD1.5, in 10^9, by part."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import CLIPTextConfig, CLIPTextModel

    def count(call: Callable[[], Any]) -> tuple[float, Any]:
        with FlopCounterMode(display=False) as counter:
            result = call()
        return counter.get_total_flops() / 1e9, result

    with torch.device("meta"):
        pipe = {name: build() for name, build in list_parts("sd15").items()}
        copy = ControlNetModel(cross_attention_dim=768)
        config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        text = CLIPTextModel(config)
        x, t, context = torch.empty(1, 4, size // 8, size // 8), torch.empty(1).long(), torch.empty(1, 77, 768)
        image, ids = torch.empty(1, 3, size, size), torch.empty(1, 77).long()
    unet, vae = pipe["unet"].requires_grad_(False), pipe["vae"].requires_grad_(False)
    found = {
        "VAE": count(lambda: vae.encode(image).latent_dist.parameters)[0],
        "text encoder": count(lambda: text(ids)[0])[0],
    }
    found["copy"], (down, middle) = count(lambda: copy(x, t, context, controlnet_cond=image, return_dict=False))
    arguments = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    found["UNet"], predicted = count(lambda: unet(x, t, context, **arguments, return_dict=False)[0])
    found["backward"] = count(lambda: predicted.sum().backward())[0]
    return found


def report_operations() -> None:
    for size in (256, 512):
        parts = count_operations(size)
        total, once = sum(parts.values()), parts["VAE"] + parts["text encoder"]
        print(f"{size} px: " + ", ".join(f"{name} {operations:,.0f}" for name, operations in parts.items()))
        print(
            f"  10^9 operations; diffusers {total:,.0f}, ours {total - once:,.0f}: ratio {total / (total - once):.2f}"
        )


def report_states() -> None:
    """Print the bytes that optimizers keep for each parameter of a large tensor."""
    for name in OPTIMIZERS:
        try:
            check_optimizer(name)
        except ValueError as error:
            print(f"{name}: {error}")
            continue
        parameter = nn.Parameter(torch.randn(1024, 1024))
        optimizer = make_optimizer(name, [parameter], 1e-3, 0.01)
        state = OptimizerState(optimizer)
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        size = sum(tensor.nbytes for tensor in state.read()[0].values()) / parameter.numel()
        print(f"{name}: {size:.2f} bytes a parameter")


def measure_memory(options: argparse.Namespace) -> None:
    pipe = make_pipeline(options.model)
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), options.size)
        clock = StepClock()
        {"diffusers": train_like_diffusers, "ours": train_like_us}[options.only](pipe, Path(name), options, clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{peak:.2f} GiB, step {statistics.median(clock.step_times()[1]):.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny", choices=["tiny", *WIDTHS])
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--memory", action="store_true", help="memory by settings instead of time")
    parser.add_argument("--count", action="store_true", help="operations instead of time")
    parser.add_argument("--only", choices=["ours", "diffusers"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        measure_memory(options)
        return
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}")
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, load {load:.1f}, {options.precision}")
    if options.count:
        report_operations()
        report_states()
    elif options.memory:
        compare_memory(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
