import ctypes
import subprocess
import sys

import pytest

PAGE_FAULTS = """
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
def test_freed_memory_is_allocated_again_without_page_faults() -> None:
    command = [sys.executable, "-c", PAGE_FAULTS]
    before, after = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 10 * after < before  # before is 32 if pages are huge
