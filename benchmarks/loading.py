"""Loading control files: time beside a raw read of the same bytes, and peak memory beside the file's size.

    python benchmarks/loading.py [--folder FOLDER] [--runs 5] [--kinds SD1.5-float16,SDXL-float16]

Files of the published shapes with random numbers are written into FOLDER (a temporary one by default, 0.4 to 5 GB each,
one at a time). Each run is a process of its own: it imports torch, reads the file once so that it is in the page cache,
then reads its bytes into fresh memory and loads it in turn. Prints the median of the runs of both (least to most), in
seconds of the processor, which others on the machine lengthen less than those of the clock; the median of their ratio;
and by how much loading raised the process's peak memory, as a share of the file's size.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from network import PUBLISHED

FORMATS = {"safetensors": ".safetensors", "pickle": ".pth"}
KINDS = ["SD1.5-float16", "SD1.5-float32", "SD1.5-bfloat16", "SD1.5-float8_e4m3fn", "SD1.5-float16-pickle"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.processor() or platform.machine()}"
    )
    print(f"{torch.get_num_threads()} threads, page cache warm, median (least to most) of {options.runs} processes")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for kind in options.kinds.split(","):
            path = write_checkpoint(kind, Path(folder))
            runs = [measure_file(path) for _ in range(options.runs)]
            raw, load, peak = ([run[name] for run in runs] for name in ("raw", "load", "peak"))
            ratio = [a / b for a, b in zip(load, raw, strict=True)]
            print(
                f"{kind:22} {path.stat().st_size / 1e6:6.0f} MB  raw {spread(raw)} s  load {spread(load)} s  "
                f"ratio {spread(ratio)}  peak {spread(peak)} of the file"
            )
            path.unlink()


def write_checkpoint(kind: str, folder: Path) -> Path:
    """A file as published: a ControlNet of that shape in ldm's layout."""
    from diffusers import ControlNetModel

    from controlnet_ext.files.safetensors import write_weights
    from controlnet_ext.models.state_dict.ldm_keys import to_ldm_keys

    shape, dtype, *rest = kind.split("-")
    with torch.device("meta"):
        names = to_ldm_keys(ControlNetModel(**PUBLISHED[shape]).state_dict())
    some = (torch.randn(2**22, generator=torch.Generator().manual_seed(0)) / 50).to(getattr(torch, dtype))
    tensors = {}
    for name, tensor in names.items():
        count = -(-tensor.numel() // len(some))
        tensors[name] = some.repeat(count)[: tensor.numel()].reshape(tensor.shape).clone()
    path = folder / f"net{FORMATS['pickle' if rest else 'safetensors']}"
    if rest:
        torch.save(tensors, path)
    else:
        write_weights(path, tensors)
    return path


def measure_file(path: Path) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", str(path)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def one(path: Path) -> dict[str, float]:
    """Seconds for a raw read and for loading, and the peak that loading added, in file sizes."""
    import controlnet_ext.files.weights  # noqa: F401  what importing takes is not loading
    from controlnet_ext import models

    models.iter_kinds()
    raw(path)  # into the page cache
    seconds = raw(path)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    started = time.process_time()
    net = models.load(path)
    load = time.process_time() - started
    assert next(net.parameters()) is not None
    return {"raw": seconds, "load": load, "peak": (memory("VmHWM") - before) / path.stat().st_size}


def raw(path: Path) -> float:
    """Seconds to read all bytes into fresh memory."""
    started = time.process_time()
    content = path.read_bytes()
    seconds = time.process_time() - started
    assert len(content) == path.stat().st_size
    return seconds


def memory(name: str) -> int:
    """Bytes, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
