"""The limits that other tests rely on, and that no test asserts a time or depends on who started pytest."""

import ast
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from limits import limit_cpu, wait_until


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of CPU time")
def test_a_loop_without_end_is_stopped_and_all_is_as_before():
    before = signal.getitimer(signal.ITIMER_PROF), signal.getsignal(signal.SIGPROF)
    with pytest.raises(AssertionError, match="over 1 s of CPU time"), limit_cpu(1):
        while True:
            pass
    with limit_cpu(1):
        pass
    assert (signal.getitimer(signal.ITIMER_PROF), signal.getsignal(signal.SIGPROF)) == before


def test_a_wait_ends_with_the_state_or_the_process():
    words = iter([0, "", "here"])
    assert wait_until(lambda: next(words)) == "here"
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        with pytest.raises(AssertionError, match="exit code 3"):
            wait_until(lambda: False, process)
        assert wait_until(lambda: process.returncode == 3, process)


TESTS = Path(__file__).parent
CLOCKS = {"perf_counter", "monotonic", "process_time", "thread_time", "time"}
LOOKERS = {
    "helpers/limits.py",  # ends endless waits
    "helpers/killing.py",  # draws moments of kills
    "server/test_server_campaign.py",  # prints the figures of a campaign, and asserts none
    "training/test_training_campaigns.py",  # draws moments of kills
}


def calls(path, pattern):
    """(outermost function, call) of every call in a file in which the pattern is found."""
    text = path.read_text()
    for top in ast.parse(text).body if re.search(pattern, text) else []:
        for node in ast.walk(top):
            if isinstance(node, ast.Call):
                yield top, node


def test_no_test_looks_at_a_clock_or_waits_for_a_number_of_seconds():
    wrong = []
    for path in sorted(TESTS.rglob("*.py")):
        name = path.relative_to(TESTS).as_posix()
        for _, call in calls(path, r"\btime\b|timeout|\.wait\(|\.join\(\d"):
            function = ast.unparse(call.func)
            clock = function.removeprefix("time.") in CLOCKS and function != "time"
            numbers = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
            numbers += call.args if function.endswith((".join", ".wait")) else []
            if clock and name not in LOOKERS:
                wrong.append(f"{name}:{call.lineno} {function}")
            if any(isinstance(number, ast.Constant) and isinstance(number.value, (int, float)) for number in numbers):
                wrong.append(f"{name}:{call.lineno} {ast.unparse(call)}")
    assert wrong == []


def test_a_test_that_interrupts_takes_the_fixture_that_lets_it():
    """`nohup` and a shell's background jobs start pytest with SIGINT ignored. A file may set it for its processes."""
    for path in sorted(TESTS.rglob("test_*.py")):
        if "signal.signal(signal.SIGINT, signal.default_int_handler)" in path.read_text():
            continue
        for top, call in calls(path, "SIGINT"):
            if ast.unparse(call.func).endswith(("send_signal", "os.kill")) and "SIGINT" in ast.unparse(call):
                assert "sigint" in [argument.arg for argument in top.args.args], f"{path.name}: {top.name}"
