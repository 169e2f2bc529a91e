"""A trained model's regional layers as a file, and by which rules its regions were made: a sampler must go by them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from atelier.errors import DataError

ADAPTER = "regional_adapter.safetensors"
"""The trained layers' file beside a stock base model."""

_ENTRY = "atelier.regions"


@dataclass(frozen=True)
class RegionRules:
    """How boxes and descriptions become tokens.

    Attributes:
        parity: as upstream does, for its released checkpoints and what is trained like them.
        iou_weight: how much a region favours the boxes that it is most of (upstream's ``attention_weight_scale``).
    """

    parity: bool = False
    iou_weight: float = 1.0

    def metadata(self) -> dict[str, str]:
        """For a safetensors file's header."""
        return {_ENTRY: json.dumps(asdict(self))}


def read_rules(path: Path) -> RegionRules | None:
    """Those in a safetensors file's header; None where it states none.

    Raises:
        DataError: it is no safetensors file, or what it names are no rules.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get(_ENTRY)
        if not stated:
            return None
        given = RegionRules(**json.loads(stated))
        return RegionRules(bool(given.parity), float(given.iou_weight))
    except (SafetensorError, ValueError, TypeError) as error:
        raise DataError(f"{path} does not say how its regions are made ({error})", "export the model again") from error
