"""Choose the precision that suits a machine."""

import torch


def default_precision(accelerator: str) -> tuple[str, str]:
    """Return the Trainer's name of the default precision, and the reason in words.

    It is bf16-mixed if the hardware multiplies faster in bf16, else float32. AVX512-bf16 alone is faster on AMD's CPUs.
    Intel's do half as many multiplications a second with it as in float32: see docs/speed.md. The accelerator ``auto``
    prefers a GPU.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        chip, has_bf16 = "GPU", torch.cuda.get_device_capability() >= (8, 0)
    elif accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "bf16 on MPS is not faster everywhere"
    else:
        features = torch.cpu.get_capabilities()
        chip, has_bf16 = "CPU", bool(features.get("amx_bf16") or features.get("avx512_bf16"))
        if has_bf16 and not features.get("amx_bf16") and features.get("cpu_name", "").startswith("Intel"):
            return "32-true", "this CPU multiplies slower in bf16"
    if has_bf16:
        return "bf16-mixed", f"this {chip} multiplies in bf16"
    return "32-true", f"this {chip} does not multiply in bf16"
