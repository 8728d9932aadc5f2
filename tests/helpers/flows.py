"""The project's files and functions that run while a program does one thing, in a process of its own.

They are noted by sys.settrace, since sys.setprofile would also be called for each call of C."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import gc, inspect, json, os, sys, threading
gc.disable()  # it takes a fifth of the time of the imports
root, counts, ran = {root!r}, {{}}, {{}}

def note(frame, event, _):  # events are calls alone
    counts[frame.f_code] = counts.get(frame.f_code, 0) + 1

{setup}
threading.settrace(note)
sys.settrace(note)
{flow}
sys.settrace(None)
threading.settrace(None)
for code, count in counts.items():
    if code.co_filename.startswith(root) and code.co_flags & inspect.CO_OPTIMIZED:
        calls = ran.setdefault(os.path.relpath(os.path.realpath(code.co_filename), root), {{}})
        calls[code.co_qualname] = calls.get(code.co_qualname, 0) + count
print(json.dumps({{name: calls for name, calls in ran.items() if not name.startswith(("tests", "examples"))}}))
"""


def count_calls(python: str, setup: str, flow: str) -> dict[str, dict[str, int]]:
    """Run `setup`, then `flow`, both Python source, in `python`, and return the calls of each function by file of the
    project during `flow`; bodies of modules and classes do not count. Raises AssertionError with the program's words if
    it fails."""
    program = PROGRAM.format(root=f"{ROOT}{os.sep}", setup=setup, flow=flow).replace(
        "code.co_qualname", "getattr(code, 'co_qualname', code.co_name)"
    )  # Python 3.10 has no co_qualname
    paths = [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([python, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])
