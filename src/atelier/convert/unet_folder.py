"""A diffusers UNet with GLIGEN's layers: its configuration, the parameters it must have, its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from atelier.convert.weights import Weights, of_folder, save_folder, shapes_of
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import attach, is_adapter_key
from atelier.models.keys import Shape, require_same_keys

CONFIG = "config.json"
HIDDEN = "position_net.linears.0.bias"


def read_config(folder: Path) -> dict[str, Any]:
    """The UNet's configuration.

    Raises:
        DataError: ``config.json`` is missing or damaged, or is that of another model.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", "give a diffusers folder with a UNet") from error
    if not isinstance(config, dict) or config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise DataError(f"{path} is no configuration of a UNet2DConditionModel", "give a diffusers folder with a UNet")
    return config


def gated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with GLIGEN's layers, without where it was loaded from."""
    kept = {name: value for name, value in config.items() if name != "_name_or_path"}
    return {"_class_name": "UNet2DConditionModel"} | kept | {"attention_type": "gated"}


def family_of(config: Mapping[str, Any]) -> str:
    """``SD1``, ``SD2`` or ``SDXL``: SDXL by its size conditions, SD 2.x by its linear projections."""
    if config.get("addition_embed_type") == "text_time":
        return "SDXL"
    return "SD2" if config.get("use_linear_projection") else "SD1"


def expected_shapes(config: Mapping[str, Any], hidden: int = 512) -> dict[str, Shape]:
    """Names and shapes of every parameter of the grounded UNet, from its configuration alone.

    Args:
        hidden: width of the position net.

    Raises:
        ConfigError: diffusers cannot build such a UNet.
    """
    from diffusers import UNet2DConditionModel

    plain = {name: value for name, value in config.items() if not name.startswith("_") and name != "attention_type"}
    try:
        with torch.device("meta"):
            unet = attach(UNet2DConditionModel(**plain), hidden=hidden)
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"diffusers cannot build this UNet: {error}", "check its config.json") from error
    return {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}


def check(weights: Weights, config: Mapping[str, Any], what: str) -> None:
    """Every parameter of the grounded UNet is in ``weights`` and nothing besides.

    Raises:
        ConfigError: counts and lists what is missing, unknown or of another shape.
    """
    hidden = weights[HIDDEN].shape[0] if HIDDEN in weights and len(weights[HIDDEN].shape) == 1 else 512
    require_same_keys(
        shapes_of(weights),
        expected_shapes(config, hidden),
        f"{what} is no whole GLIGEN UNet of its family ({family_of(config)})",
        "check that it is a text-and-box GLIGEN model and, with --base, that the base is the model it was trained on",
    )


def read(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """A UNet folder's weights and configuration, grounded or not; nothing is checked against each other.

    Raises:
        DataError: a part is missing or damaged.
    """
    config, weights = read_config(folder), of_folder(folder)
    if weights is None:
        raise DataError(f"{folder} holds no diffusion_pytorch_model.safetensors or .bin", "copy or download it again")
    return weights, config


def write(weights: Weights, config: Mapping[str, Any], folder: Path, max_shard: int) -> list[str]:
    """Writes a UNet folder that stock diffusers opens; returns the names of its weight files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(gated(config), indent=2, sort_keys=True) + "\n")
    return save_folder(weights, folder, max_shard)


def adapter_of(weights: Weights) -> Weights:
    """Fusers and position net."""
    return {name: weight for name, weight in weights.items() if is_adapter_key(name)}


def with_adapter(base: Weights, adapter: Weights) -> Weights:
    """The base's frozen weights with the adapter's; an adapter that the base has is replaced."""
    return {name: weight for name, weight in base.items() if not is_adapter_key(name)} | adapter
