"""The annotating models' parts from their places: safetensors only."""

from typing import Any

import torch

from atelier.annotate.places import Place
from atelier.models import pretrained
from atelier.models.pretrained import device

__all__ = ["device", "half_where_fast", "load", "load_model"]


def half_where_fast() -> torch.dtype:
    """float16 on an accelerator, float32 on a CPU."""
    return torch.float16 if torch.cuda.is_available() else torch.float32


def load(kind: Any, place: Place, **arguments: Any) -> Any:
    """See ``pretrained.load``."""
    return pretrained.load(kind, place.name, place.revision, **arguments)


def load_model(kind: Any, place: Place, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    """See ``pretrained.load_model``.

    Raises:
        ConfigError: as there; also where there are pickled weights alone.
    """
    return pretrained.load_model(kind, place.name, place.revision, dtype, use_safetensors=True, **arguments)
