"""Peaks by the names that torch reports, and what is made of them."""

import pytest

from atelier.training.devices import peak_flops, utilization


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "bf16", 312),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "fp16", 835),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-32GB", "fp16", 112),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
    ],
)
def test_peaks(name: str, precision: str, tflops: float) -> None:
    assert peak_flops(name, precision) == pytest.approx(tflops * 1e12)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA A10G", "bf16"),  # another chip than the A10
        ("Tesla V100-SXM2-16GB", "bf16"),  # has no such unit
        ("NVIDIA H200 MIG 3g.71gb", "bf16"),  # a slice has a share of the peak that the name does not tell
        ("Some Future GPU", "bf16"),
    ],
)
def test_what_is_not_known_is_not_guessed(name: str, precision: str) -> None:
    assert peak_flops(name, precision) is None  # type: ignore[arg-type]


def test_utilization_is_a_devices_share() -> None:
    # SDXL-GLIGEN at 512 on 8 H200: 8 × 62 samples/s of 6.21 TFLOP each.
    found = utilization(8 * 62.0, 6.2145e12, 8, 989e12)
    assert found == {"tflops_per_s": 385.3, "mfu": 0.3896}
    assert utilization(100.0, 1e9, 2, None) == {"tflops_per_s": 0.05}
