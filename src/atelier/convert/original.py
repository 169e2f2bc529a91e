"""Original GLIGEN (ldm) checkpoints: the UNet under its first names, among the other parts of a pipeline or alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atelier.convert import ldm_keys
from atelier.convert.weights import Weights, load_torch, of_safetensors, of_state, save, tensors_of
from atelier.errors import ConfigError, DataError
from atelier.models.keys import listed

PREFIX = "model.diffusion_model."
_MODELS = ("model", "state_dict")


@dataclass(frozen=True)
class OriginalFile:
    """What an original checkpoint holds.

    Attributes:
        unet: the UNet under its original names.
        others: what else is in the file (``autoencoder: 248 tensors``), which conversion of a UNet leaves.
    """

    unet: Weights
    others: list[str]


def read(path: Path, average: bool = False) -> OriginalFile:
    """Opens a ``.safetensors`` file, or one of ``torch.save`` with ``weights_only``.

    The UNet is looked for in ``{"model": …}``, in ``{"state_dict": …}``, in a bare state dict, and there under
    ``model.diffusion_model.``, where a whole pipeline's state dict has it.

    Args:
        average: the moving average (``"ema"``) instead of the last weights.

    Raises:
        DataError: damaged, no weights, more than weights, or no moving average.
    """
    if path.suffix == ".safetensors":
        if average:
            raise DataError(f"{path} holds no moving average", "leave --average out")
        return _unet_of(of_safetensors(path), [])
    loaded = load_torch(path)
    key = "ema" if average else next((name for name in _MODELS if _is_dict(loaded, name)), None)
    if average and not _is_dict(loaded, "ema"):
        raise DataError(f"{path} holds no moving average", "leave --average out")
    if key is None:
        return _unet_of(of_state(tensors_of(loaded, path)), [])
    others = [_described(name, value) for name, value in loaded.items() if name != key]
    return _unet_of(of_state(tensors_of(loaded[key], path)), others)


def _is_dict(loaded: Any, name: str) -> bool:
    return isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping)


def _described(name: str, value: Any) -> str:
    if isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values()):
        return f"{name}: {sum(isinstance(item, Tensor) for item in value.values())} tensors"
    return str(name)


def _unet_of(weights: Weights, others: list[str]) -> OriginalFile:
    inside = {name.removeprefix(PREFIX): weight for name, weight in weights.items() if name.startswith(PREFIX)}
    if not inside:
        return OriginalFile(weights, others)
    parts: dict[str, int] = {}
    for name in weights:
        if not name.startswith(PREFIX):
            part = name.partition(".")[0]
            parts[part] = parts.get(part, 0) + 1
    return OriginalFile(inside, [*others, *(f"{part}: {count} tensors" for part, count in sorted(parts.items()))])


def to_diffusers(weights: Weights, config: Mapping[str, Any], what: str) -> Weights:
    """The weights by their diffusers names.

    Raises:
        ConfigError: lists the names that the rule does not know.
    """
    return _renamed(weights, ldm_keys.to_diffusers(weights, config), what)


def to_original(weights: Weights, config: Mapping[str, Any], what: str) -> Weights:
    """The weights by their original names.

    Raises:
        ConfigError: lists the names that the rule does not know.
    """
    return _renamed(weights, ldm_keys.to_original(weights, config), what)


def _renamed(weights: Weights, names: Mapping[str, str], what: str) -> Weights:
    unknown = sorted(weights.keys() - names.keys())
    if unknown:
        raise ConfigError(f"{what}: {listed('unknown', unknown)}", "convert text-and-box GLIGEN models")
    return {names[name]: weight for name, weight in weights.items()}


def write(unet: Weights, path: Path, bare: bool) -> None:
    """Writes the UNet (original names): bare as safetensors, else ``{"model": …}`` as ``torch.save`` does."""
    if bare:
        save(unet, path)
    else:
        torch.save({"model": {name: unet[name].tensor() for name in sorted(unet)}}, path)
