import ctypes
import subprocess
import sys

import pytest

FAULTS_OF_A_TENSOR_TAKEN_ANEW = """
import resource
import torch
from cli.memory import keep_freed_memory

{setup}
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)  # 64 MB, above any threshold of malloc's
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")
def test_freed_memory_is_taken_again_without_the_system() -> None:
    def faults(setup: str) -> int:
        code = FAULTS_OF_A_TENSOR_TAKEN_ANEW.format(setup=setup)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert 10 * faults("keep_freed_memory()") < faults("")  # which is 32 where pages are huge
