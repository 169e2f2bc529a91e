"""Rich-context models as folders: a stock diffusers base, and the trained regional layers in a file beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from atelier.convert import unet_folder
from atelier.convert.pipeline_folder import copy_parts, read_index, write_index
from atelier.convert.weights import MAX_SHARD, Weights, of_file, save, save_folder, shapes_of, size_of
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import adapter_parameters, is_adapter_key
from atelier.models.keys import Shape, require_same_keys
from atelier.models.regional_unet import ADAPTER, attach_regional, kind_of

_POSITIVE = "null_positive_feature"
"""What early checkpoints call ``null_text_feature``."""
_AVERAGE = "ema_unet."
"""What the published script takes along by mistake."""
_UPSTREAMS = ("attention_type", "position_net_cls", "fuser_cls")
"""Of a released UNet's configuration: what stock diffusers does not know, or would build other layers by."""


def export(base: Path, adapter: Mapping[str, Tensor], folder: Path) -> dict[str, int]:
    """Writes a trained adapter beside a copy of the base.

    Stock diffusers opens the folder as the base model; with boxes ``sampling``'s regional pipeline of its family does.

    Args:
        base: the frozen base's diffusers folder, SDXL or Stable Diffusion 1.x.
        adapter: fusers and position net by the names of the UNet.

    Returns:
        parameter counts: ``adapter`` and ``total``.

    Raises:
        ConfigError: counts and lists the adapter's keys that are missing, unknown or of another shape.
        DataError: the base is no whole diffusers folder.
    """
    frozen, config = unet_folder.read(base / "unet")
    frozen = {name: weight for name, weight in frozen.items() if not is_adapter_key(name)}
    check_adapter({name: tuple(tensor.shape) for name, tensor in adapter.items()}, config, "the adapter")
    save_file({name: tensor.contiguous() for name, tensor in sorted(adapter.items())}, folder / ADAPTER)
    unet = folder / "unet"
    unet.mkdir(parents=True, exist_ok=True)
    (unet / unet_folder.CONFIG).write_text(json.dumps(_stock(config), indent=2, sort_keys=True) + "\n")
    save_folder(frozen, unet, size_of(MAX_SHARD))
    copy_parts(base, folder)
    write_index(folder, read_index(base) | {"unet": ["diffusers", "UNet2DConditionModel"]})
    trained = sum(tensor.numel() for tensor in adapter.values())
    return {"adapter": trained, "total": trained + sum(weight.numel for weight in frozen.values())}


def unpack(source: Path, folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The regional layers of a foreign checkpoint into a folder that is there, as ``regional_adapter.safetensors``.

    Args:
        source: a released pipeline's folder or its ``unet``, a .pth of position net and fusers (opened with
            ``weights_only``), one of ours.
        config: of the UNet that they are for.

    Returns:
        what there is to say.

    Raises:
        ConfigError: they are not this UNet's; lists the keys. DataError: the source is missing or damaged.
    """
    weights = _adapter_of(source)
    averages = [name for name in weights if name.startswith(_AVERAGE)]
    weights = {name: weight for name, weight in weights.items() if name not in averages}
    check_adapter(shapes_of(weights), config, str(source))
    save(weights, folder / ADAPTER)
    count = sum(weight.numel for weight in weights.values())
    lines = [f"read  {source}: regional layers ({kind_of(weights)}), {count:,} parameters"]
    return [*lines, *([f"left out {len(averages)} keys of an average ({_AVERAGE}*)"] if averages else [])]


def check_adapter(shapes: Mapping[str, Shape], config: Mapping[str, Any], what: str) -> None:
    """The adapter has every fuser and the position net of such a UNet, and nothing besides.

    Raises:
        ConfigError: counts and lists what is missing, unknown or of another shape.
    """
    hidden = shapes.get(unet_folder.HIDDEN, (512,))[0]
    with torch.device("meta"):
        unet = attach_regional(UNet2DConditionModel.from_config(_stock(config)), kind_of(shapes), hidden=hidden)
    require_same_keys(
        dict(shapes),
        {name: tuple(parameter.shape) for name, parameter in adapter_parameters(unet).items()},
        f"{what} does not fit the UNet ({unet_folder.family_of(config)})",
        "use the adapter with the base model it was trained on",
    )


def _stock(config: Mapping[str, Any]) -> dict[str, Any]:
    """A UNet's configuration without the regional layers' entries, and without where it was loaded from."""
    own = (*_UPSTREAMS, "_name_or_path")
    return {name: value for name, value in config.items() if name not in own}


def _adapter_of(source: Path) -> Weights:
    if source.is_dir():
        if (source / ADAPTER).is_file():
            return of_file(source / ADAPTER)
        place = source / "unet" if (source / "unet").is_dir() else source
        weights, _ = unet_folder.read(place)
    elif source.is_file():
        weights = of_file(source)
    else:
        raise DataError(f"{source}: there is no such file or folder", "check the path")
    renamed = {name.replace(_POSITIVE, "null_text_feature"): weight for name, weight in weights.items()}
    found = {name: weight for name, weight in renamed.items() if is_adapter_key(name)}
    if not found:
        raise ConfigError(f"{source} holds no regional layers", "give a Rich-context model or its layers")
    return found
