"""The limits that other tests rely on."""

import signal
import subprocess
import sys

import pytest
from limits import limit_cpu, wait_until

resource = pytest.importorskip("resource")


def test_a_loop_without_end_is_stopped_and_all_is_as_before():
    before = resource.getrlimit(resource.RLIMIT_CPU), signal.getsignal(signal.SIGXCPU)
    with pytest.raises(AssertionError, match="over 1 s of CPU time"), limit_cpu(1):
        while True:
            pass
    with limit_cpu(1):
        pass
    assert (resource.getrlimit(resource.RLIMIT_CPU), signal.getsignal(signal.SIGXCPU)) == before


def test_a_wait_ends_with_the_state_or_the_process():
    words = iter([0, "", "here"])
    assert wait_until(lambda: next(words)) == "here"
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        with pytest.raises(AssertionError, match="exit code 3"):
            wait_until(lambda: False, process)
        assert wait_until(lambda: process.returncode == 3, process)
