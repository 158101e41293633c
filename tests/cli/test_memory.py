import ctypes
from pathlib import Path

import pytest
import torch

from overfitting_lab.cli.memory import keep_freed_memory
from tests.processes import start_function

resource = pytest.importorskip("resource", reason="Windows counts no page faults")


def count_page_faults() -> None:
    """Print the page faults of four large tensors, before and after the setting."""
    print(faults())
    keep_freed_memory()
    print(faults())


def faults() -> int:
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16_000_000)  # 64 MB, above any threshold of malloc's
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")
def test_freed_memory_is_allocated_again_without_page_faults(tmp_path: Path) -> None:
    start_function(count_page_faults, (), tmp_path).join()
    before, after = map(int, (tmp_path / "output.txt").read_text().split())
    assert 10 * after < before  # before is 32 if pages are huge
