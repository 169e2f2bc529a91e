"""What a GPU can do at most, and what share of it a training uses.

MFU (model FLOPs utilization; Chowdhery et al. 2022, PaLM, appendix B): the operations that the model needs, whatever
was computed besides (recomputed activations), over what the device could do in that time.
"""

import re
from typing import TYPE_CHECKING, Literal

from atelier.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from atelier.training.config import Precision

Variant = Literal["", "PCIe", "NVL"]

_PEAKS: dict[tuple[str, Variant], dict[str, float]] = {
    # TFLOP/s: tensor cores without sparsity for bf16 and fp16 (datasheets print twice that where they count sparsity),
    # CUDA cores for fp32, as torch multiplies matrices unless TF32 is allowed. Source: NVIDIA's datasheet or white
    # paper of each product. No entry: the device has no such unit.
    ("V100", ""): {"fp16": 125, "fp32": 15.7},  # Tesla V100 datasheet, SXM2
    ("V100", "PCIe"): {"fp16": 112, "fp32": 14},
    ("T4", ""): {"fp16": 65, "fp32": 8.1},
    ("A100", ""): {"bf16": 312, "fp16": 312, "fp32": 19.5},  # A100 datasheet; SXM4 and PCIe alike
    ("A30", ""): {"bf16": 165, "fp16": 165, "fp32": 10.3},
    ("A40", ""): {"bf16": 149.7, "fp16": 149.7, "fp32": 37.4},
    ("A10", ""): {"bf16": 125, "fp16": 125, "fp32": 31.2},
    ("L4", ""): {"bf16": 121, "fp16": 121, "fp32": 30.3},
    ("L40", ""): {"bf16": 181, "fp16": 181, "fp32": 90.5},
    ("L40S", ""): {"bf16": 362, "fp16": 362, "fp32": 91.6},
    ("H100", ""): {"bf16": 989, "fp16": 989, "fp32": 67},  # H100 datasheet, SXM5
    ("H100", "PCIe"): {"bf16": 756, "fp16": 756, "fp32": 51},
    ("H100", "NVL"): {"bf16": 835, "fp16": 835, "fp32": 60},
    ("GH200", ""): {"bf16": 989, "fp16": 989, "fp32": 67},
    ("H200", ""): {"bf16": 989, "fp16": 989, "fp32": 67},  # H200 datasheet, SXM5
    ("H200", "NVL"): {"bf16": 835, "fp16": 835, "fp32": 60},
    ("B200", ""): {"bf16": 2250, "fp16": 2250},  # HGX B200 datasheet
    ("3090", ""): {"bf16": 71, "fp16": 71, "fp32": 35.6},  # GA102 white paper, with fp32 accumulation
    ("4090", ""): {"bf16": 165.2, "fp16": 165.2, "fp32": 82.6},  # Ada white paper, with fp32 accumulation
}


def peak_flops(name: str, precision: "Precision") -> float | None:
    """Dense FLOP/s of one GPU.

    Args:
        name: as ``torch.cuda.get_device_name`` gives it, e.g. "NVIDIA H100 80GB HBM3".

    Returns:
        None for a device that is not in the table, a slice of one (MIG), or a precision that it has no unit for.
    """
    words = re.split(r"[\s\-_]+", name)
    if "MIG" in words:
        return None
    variant: Variant = "NVL" if "NVL" in words else "PCIe" if "PCIe" in words or "PCIE" in words else ""
    for word in words:
        peaks = _PEAKS.get((word, variant)) or _PEAKS.get((word, ""))
        if peaks is not None:
            return peaks[precision] * 1e12 if precision in peaks else None
    return None


def require_fp16() -> None:
    """Refuses fp16 where the device that DeepSpeed takes cannot compute in it.

    Raises:
        ConfigError: it cannot.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if not accelerator.is_fp16_supported():
        raise ConfigError(f"fp16 is not supported on this device ({accelerator.device_name()})", "use bf16 or fp32")


def device_peak(device: "torch.device", precision: "Precision") -> float | None:
    """``peak_flops`` of a torch device; None for a CPU, whose peak nobody states for its clock under load."""
    if device.type != "cuda":
        return None
    import torch

    return peak_flops(torch.cuda.get_device_name(device), precision)


def utilization(samples_per_s: float, flops_per_sample: float, processes: int, peak: float | None) -> dict[str, float]:
    """What one device achieved.

    Args:
        samples_per_s: of all processes together.
        flops_per_sample: forward and backward (1 MAC = 2 FLOP).
        peak: FLOP/s of one device; None where it is not known.

    Returns:
        ``tflops_per_s`` of one process, and ``mfu`` in [0, 1] where the peak is known.
    """
    achieved = samples_per_s * flops_per_sample / processes
    found = {"tflops_per_s": float(f"{achieved / 1e12:.4g}")}
    if peak:
        found["mfu"] = round(achieved / peak, 4)
    return found
