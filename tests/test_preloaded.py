"""A fork of the process that has imported torch is called and ends as Python itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from limits import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="without forks it is Python itself")
SHOW = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["WORD"], sys.path[0], sys.stdin.read(), "torch" in sys.modules)
"""


@pytest.mark.parametrize("way", ["-c", "-m", "file"])
def test_words_folder_environment_and_files_are_the_callers(way: str, warm_python: str, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    words = {"-c": ["-c", SHOW], "-m": ["-m", "show"], "file": ["show.py"]}[way]
    shown = []
    for python in (sys.executable, warm_python):
        environment = {**os.environ, "WORD": "here", "PYTHONPATH": ""}
        options = {"cwd": tmp_path, "env": environment, "input": "said", "capture_output": True, "text": True}
        done = subprocess.run([python, *words, "a", "--b"], **options)
        assert (done.returncode, done.stderr) == (0, "")
        shown.append(done.stdout)
    assert shown[1] == shown[0].replace("False", "True") and "True" in shown[1]


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise SystemExit('no')", "1 / 0", "import os; os.abort()"])
def test_an_end_is_handed_on(code: str, warm_python: str) -> None:
    pythons = (sys.executable, warm_python)
    cold, warm = (subprocess.run([python, "-c", code], capture_output=True, text=True) for python in pythons)
    assert cold.returncode == warm.returncode != 0
    assert cold.stderr.splitlines()[-1:] == warm.stderr.splitlines()[-1:]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_the_fork(sent: signal.Signals, warm_python: str, tmp_path: Path) -> None:
    code = "import os, time; open('pid', 'w').write(f'{os.getpid()} '); time.sleep(600)"
    with subprocess.Popen([warm_python, "-c", code], cwd=tmp_path) as process:
        file = tmp_path / "pid"
        pid = int(wait_until(lambda: file.exists() and file.read_text().endswith(" ") and file.read_text(), process))
        process.send_signal(sent)
        assert process.wait() == -sent
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
