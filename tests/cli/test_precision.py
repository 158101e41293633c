import pytest
import torch

from overfitting_lab.cli.precision import default_precision


class Machine:
    """A machine as torch describes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch.setattr
        self.has(cpu=set(), gpu=None, mps=False)

    def has(self, cpu: set[str], gpu: tuple[int, int] | None, mps: bool) -> None:
        self._set(torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(cpu, True)})
        self._set(torch.cuda, "is_available", lambda: gpu is not None)
        self._set(torch.cuda, "get_device_capability", lambda: gpu)
        self._set(torch.backends.mps, "is_available", lambda: mps)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("cpu", "precision", "reason"),
    [
        (set(), "32-true", "this CPU does not multiply in bf16"),
        ({"avx512_f"}, "32-true", "this CPU does not multiply in bf16"),
        ({"avx512_bf16"}, "bf16-mixed", "this CPU multiplies in bf16"),
        ({"amx_bf16"}, "bf16-mixed", "this CPU multiplies in bf16"),
    ],
)
@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_cpu(machine: Machine, cpu: set[str], precision: str, reason: str, accelerator: str) -> None:
    machine.has(cpu, gpu=None, mps=False)
    assert default_precision(accelerator) == (precision, reason)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), "32-true"), ((8, 0), "bf16-mixed"), ((8, 6), "bf16-mixed"), ((12, 0), "bf16-mixed")],
)
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_gpu(machine: Machine, capability: tuple[int, int], precision: str, accelerator: str) -> None:
    machine.has({"amx_bf16"}, gpu=capability, mps=False)
    chosen, reason = default_precision(accelerator)
    assert chosen == precision
    assert "this GPU" in reason


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "mps"])
def test_mps(machine: Machine, accelerator: str) -> None:
    machine.has({"amx_bf16"}, gpu=None, mps=True)
    chosen, reason = default_precision(accelerator)
    assert chosen == "32-true"
    assert "MPS" in reason


def test_cpu_asked_for_beside_a_gpu(machine: Machine) -> None:
    machine.has(set(), gpu=(9, 0), mps=True)
    assert default_precision("cpu") == ("32-true", "this CPU does not multiply in bf16")
