import pytest
import torch

from overfitting_lab.cli.precision import default_precision

SLOW_CPU, FAST_CPU = ("32-true", "this CPU does not multiply in bf16"), ("bf16-mixed", "this CPU multiplies in bf16")
SLOW_BF16 = ("32-true", "this CPU multiplies slower in bf16")
SLOW_GPU, FAST_GPU = ("32-true", "this GPU does not multiply in bf16"), ("bf16-mixed", "this GPU multiplies in bf16")


@pytest.mark.parametrize(
    ("accelerators", "cpu", "gpu", "mps", "expected"),
    [
        ("auto cpu", "avx2", None, False, SLOW_CPU),
        ("auto cpu", "avx512_f", None, False, SLOW_CPU),
        ("auto cpu", "avx512_bf16 AMD", None, False, FAST_CPU),
        ("auto cpu", "avx512_bf16 Intel", None, False, SLOW_BF16),
        ("auto cpu", "avx512_bf16", None, False, FAST_CPU),
        ("auto cpu", "amx_bf16 Intel", None, False, FAST_CPU),
        ("auto gpu cuda", "amx_bf16", (7, 5), False, SLOW_GPU),
        ("auto gpu cuda", "avx2", (8, 0), False, FAST_GPU),
        ("auto gpu cuda", "avx2", (8, 6), False, FAST_GPU),
        ("auto gpu cuda", "avx2", (12, 0), False, FAST_GPU),
        ("auto gpu mps", "amx_bf16", None, True, ("32-true", "bf16 on MPS is not faster everywhere")),
        ("cpu", "avx2", (9, 0), True, SLOW_CPU),
    ],
)
def test_the_default_precision_suits_the_machine_that_torch_reports(
    monkeypatch: pytest.MonkeyPatch,
    accelerators: str,
    cpu: str,
    gpu: tuple[int, int] | None,
    mps: bool,
    expected: tuple[str, str],
) -> None:
    feature, _, maker = cpu.partition(" ")
    name = {"cpu_name": f"{maker} Xeon"} if maker else {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, feature: True, **name})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    for accelerator in accelerators.split():
        assert default_precision(accelerator) == expected
