"""The memory of a job."""

import platform
import subprocess
import sys

import pytest
from killing import ROOT

FAULTS = """
import resource
import numpy as np
from controlnet_ext.batch.engines import keep_heap
if {keep}:
    keep_heap()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(50):  # images with what is made of them, 2 MiB and less each
    arrays = [np.full(2**20 - i * 4096, i, np.uint8) for _ in range(4)] + [np.full(2**19, i, np.int16)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
def test_memory_of_freed_arrays_is_taken_again_and_not_cleared_by_the_system():
    given_back, kept = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)], cwd=ROOT))
        for keep in (False, True)
    )
    assert kept < 5000 < given_back  # of 4 KiB; one image's are 1,500
