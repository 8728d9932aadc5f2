"""What the process of a command imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, os, sys
from controlnet_ext import cli

end = os._exit

def end_with_modules(code):
    print(json.dumps(sorted(name for name, module in sys.modules.items() if type(module).__name__ != "DeferredModule")))
    sys.stdout.flush()
    end(code)

os._exit = end_with_modules
cli.program()
"""
UNUSED = {
    "matplotlib",
    "onnx",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "triton",
}


def test_generate_imports_only_what_an_image_needs(tmp_path: Path) -> None:
    words = ["generate", "a red circle", "--image", str(ROOT / "examples" / "coffee.jpg"), "--control", "canny"]
    words += ["--steps", "1", "--seed", "3", "-o", str(tmp_path / "image.png")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0 and (tmp_path / "image.png").exists(), ran.stderr
    modules = set(json.loads(ran.stdout))
    assert {"torch", "diffusers", "transformers"} <= modules
    assert sorted(modules & UNUSED) == []
