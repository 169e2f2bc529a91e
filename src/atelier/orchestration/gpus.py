"""The GPUs that a plan can be made for."""

from dataclasses import dataclass

from atelier.errors import ConfigError
from atelier.orchestration.catalogue import nearest
from atelier.training.config import Precision
from atelier.training.devices import peak_flops


@dataclass(frozen=True)
class Gpu:
    """One kind.

    Attributes:
        name: as the driver names it, for ``peak_flops``.
        memory: bytes, as sold.
    """

    name: str
    memory: float

    def peak(self, precision: Precision) -> float | None:
        """Dense FLOP/s; None where it has no unit for that precision."""
        return peak_flops(self.name, precision)


GPUS = {
    "h200": Gpu("H200", 141e9),
    "h100": Gpu("H100", 80e9),
    "h100-nvl": Gpu("H100 NVL", 94e9),
    "b200": Gpu("B200", 180e9),
    "a100-80g": Gpu("A100", 80e9),
    "a100-40g": Gpu("A100", 40e9),
    "l40s": Gpu("L40S", 48e9),
    "l4": Gpu("L4", 24e9),
    "a10": Gpu("A10", 24e9),
    "4090": Gpu("4090", 24e9),
    "v100": Gpu("V100", 32e9),
    "t4": Gpu("T4", 16e9),
}


def gpu(kind: str) -> Gpu:
    """A GPU by its short name.

    Raises:
        ConfigError: none of that name.
    """
    found = GPUS.get(kind.lower())
    if found is None:
        raise ConfigError(f"there is no GPU {kind!r}{nearest(kind.lower(), list(GPUS))}", f"one of: {', '.join(GPUS)}")
    return found
