"""One thread a process: networks this small gain nothing from two, and while something else runs there, threads
that wait for each other make the tests of ControlNets take 181 s instead of 58 s."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
