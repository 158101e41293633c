import ctypes
import subprocess
import sys

import pytest

FAULTS_OF_A_TENSOR_TAKEN_ANEW = """
import resource
import torch
from overfitting_lab.cli.memory import keep_freed_memory

def faults():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16_000_000)  # 64 MB, above any threshold of malloc's
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")
def test_freed_memory_is_taken_again_without_the_system() -> None:
    command = [sys.executable, "-c", FAULTS_OF_A_TENSOR_TAKEN_ANEW]
    before, after = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 10 * after < before  # which is 32 where pages are huge
