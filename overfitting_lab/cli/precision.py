"""Which precision suits a machine."""

import torch


def default_precision(accelerator: str) -> tuple[str, str]:
    """The precision where none was asked for: bf16-mixed where the hardware multiplies in bf16, else float32.

    Args:
        accelerator: the Trainer's; ``auto`` takes a GPU where there is one.

    Returns:
        The Trainer's name of the precision, and the reason for a person to read.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.get_device_capability() >= (8, 0):
            return "bf16-mixed", "this GPU multiplies in bf16"
        return "32-true", "this GPU does not multiply in bf16"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "bf16 on MPS is not faster everywhere"
    features = torch.cpu.get_capabilities()
    if features.get("avx512_bf16") or features.get("amx_bf16"):
        return "bf16-mixed", "this CPU multiplies in bf16"
    return "32-true", "this CPU does not multiply in bf16"
