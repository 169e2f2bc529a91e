"""A golden case: a JSON of configuration, meaning and tolerance, with tensors beside it."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

_UNSAID = {
    "rich_context": (1e-5, 1e-5),
    "rich_context/metrics": (1e-3, 0.0),
    "rich_context/pipeline_sdxl": (1e-4, 1e-4),
}
"""(atol, rtol) where a case says none: by system, or by system and kind (CLIP's logits span ±50; rounding adds up over
a guided run)."""


@dataclass(frozen=True)
class Comparison:
    """What a kind returns whose case is JSON alone: our values and the expected ones, by name.

    Tensors are compared to the case's tolerance, everything else for equality.

    Attributes:
        tolerance: (atol, rtol) of a case whose JSON names none.
    """

    ours: dict[str, Any]
    expected: dict[str, Any]
    tolerance: tuple[float, float] | None = None


@dataclass(frozen=True)
class Case:
    """One golden case on disk.

    Attributes:
        path: its JSON. The folder names the system, the stem the kind and the case (``unet_sdxl_a``).
    """

    path: Path

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The JSON."""
        loaded: dict[str, Any] = json.loads(self.path.read_text())
        return loaded

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Everything in the safetensors file: ``w.`` weights, ``in.`` inputs, ``out.`` outputs; {} without a file."""
        path = self.path.with_suffix(".safetensors")
        return load_file(path) if path.exists() else {}

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Weights by upstream's names; a weight stored as factors is multiplied out."""
        weights = self._under("w.")
        for name in [n.removesuffix(".U") for n in weights if n.endswith(".U")]:
            weights[name] = weights.pop(f"{name}.U") @ weights.pop(f"{name}.V")
        return weights

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs by name."""
        return self._under("in.")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Expected outputs by name."""
        return self._under("out.")

    @property
    def system(self) -> str:
        """The paper's system: the folder's name."""
        return self.path.parent.name

    @property
    def kind(self) -> str:
        """The kind: the stem without its last part."""
        return self.path.stem.rpartition("_")[0]

    @property
    def name(self) -> str:
        """``gligen/unet_sdxl_a``."""
        return f"{self.system}/{self.path.stem}"

    @property
    def tolerance(self) -> tuple[float, float]:
        """(atol, rtol) from the JSON's sentence, whichever field it is in; ``1/127.5`` is a grey level.

        A case of JSON alone that has none is compared almost exactly, one of a system whose cases have none at all to
        what the system's facts say.

        Raises:
            ValueError: the sentence names none.
        """
        fields = ("tolerance", "tolerance_hint", "meaning")
        sentence = next((str(self.spec[field]) for field in fields if field in self.spec), "")
        if sentence.startswith("1/127.5"):
            return 1.001 / 127.5, 0.0
        found = re.search(r"atol\s*=?\s*([\d.eE+-]+)[,;\s]+rtol\s*=?\s*([\d.eE+-]+)", sentence)
        if not found and not self.tensors:
            return 1e-9, 1e-9
        unsaid = _UNSAID.get(f"{self.system}/{self.kind}", _UNSAID.get(self.system))
        if not sentence and unsaid:
            return unsaid
        if not found:
            raise ValueError(f"{self.path}: no atol and rtol in {sentence!r}")
        return float(found[1].rstrip(".")), float(found[2].rstrip("."))
