"""Rich-context models as folders: a stock diffusers base, and the trained regional layers in a file beside it."""

import dataclasses
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
from atelier.models.keys import Shape, listed, require_same_keys
from atelier.models.regional.rules import ADAPTER, RegionRules, read_rules
from atelier.models.regional_unet import attach_regional, kind_of, require_drawn
from atelier.storage.atomic import new_folder, replace_file, require_new

_POSITIVE = "null_positive_feature"
"""What early checkpoints call ``null_text_feature``."""
_AVERAGE = "ema_unet."
"""What the published script takes along by mistake."""
_UPSTREAMS = ("attention_type", "position_net_cls", "fuser_cls")
"""Of a released UNet's configuration: what stock diffusers does not know, or would build other layers by."""


def export(base: Path, adapter: Mapping[str, Tensor], folder: Path, rules: RegionRules) -> dict[str, int]:
    """Writes a trained adapter beside a copy of the base.

    Stock diffusers opens the folder as the base model; with boxes ``sampling``'s regional pipeline of its family does.

    Args:
        base: the frozen base's diffusers folder, SDXL or Stable Diffusion 1.x.
        adapter: fusers and position net by the names of the UNet.
        rules: that it was trained by; the folder's pipeline goes by them.

    Returns:
        parameter counts: ``adapter`` and ``total``.

    Raises:
        ConfigError: counts and lists the adapter's keys that are missing, unknown or of another shape; or nothing
            draws with such layers.
        DataError: the base is no whole diffusers folder.
    """
    require_drawn(kind_of(adapter))
    frozen, config = unet_folder.read(base / "unet")
    frozen = {name: weight for name, weight in frozen.items() if not is_adapter_key(name)}
    check_adapter({name: tuple(tensor.shape) for name, tensor in adapter.items()}, config, "the adapter")
    tensors = {name: tensor.contiguous() for name, tensor in sorted(adapter.items())}
    save_file(tensors, folder / ADAPTER, rules.metadata())
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
    weights, lines = _read(source)
    check_adapter(shapes_of(weights), config, str(source))
    stated = _stated(source)
    save(weights, folder / ADAPTER, stated.metadata() if stated else None)
    return lines


def to_folder(source: Path, target: Path, base: Path, parity: bool | None = None) -> list[str]:
    """Regional layers from elsewhere to a folder that draws, which appears whole or not at all.

    Args:
        source: as of ``unpack``.
        base: the diffusers folder that they were trained on.
        parity: whether regions are made by upstream's rules or by ours; None: as the source states, upstream's where
            it states nothing, as released ones.

    Returns:
        what there is to say.

    Raises:
        ConfigError: the layers are not the base's; lists the keys. Or nothing draws with them, or the target exists.
            DataError: a source is missing or damaged.
    """
    require_new(target)
    weights, lines = _read(source)
    rules = _rules(source, parity)
    with new_folder(target) as folder:
        counts = export(base, {name: weight.tensor() for name, weight in weights.items()}, folder, rules)
    return [*lines, f"wrote {target}: {counts['total']:,} parameters on {base}, regions by {_named(rules)}"]


def to_layers(source: Path, target: Path, parity: bool | None = None) -> list[str]:
    """Regional layers alone, by their published names: as .safetensors, which states by which rules they were trained,
    or as .pth for upstream's loader, which cannot.

    Args:
        source: as of ``unpack``.
        parity: as of ``to_folder``.

    Returns:
        what there is to say.

    Raises:
        ConfigError: the source has none, or the target exists. DataError: it is missing or damaged.
    """
    require_new(target)
    weights, lines = _read(source)
    rules, told = _rules(source, parity), target.suffix == ".safetensors"
    with replace_file(target) as scratch:
        if told:
            save(weights, scratch, rules.metadata())
        else:
            torch.save({name: weight.tensor() for name, weight in weights.items()}, scratch)
    said = f"regions by {_named(rules)}" + ("" if told else f", which a {target.suffix} does not state")
    return [*lines, f"wrote {target}: {said}"]


def _stated(source: Path) -> RegionRules | None:
    """What the source says of its rules, if anything."""
    place = source / ADAPTER if source.is_dir() else source
    return read_rules(place) if place.suffix == ".safetensors" and place.is_file() else None


def _rules(source: Path, parity: bool | None) -> RegionRules:
    rules = _stated(source) or RegionRules(parity=True)
    return rules if parity is None else dataclasses.replace(rules, parity=parity)


def _named(rules: RegionRules) -> str:
    by = "upstream's rules" if rules.parity else "our rules"
    return by if rules.iou_weight == RegionRules().iou_weight else f"{by}, iou_weight {rules.iou_weight:g}"


def _read(source: Path) -> tuple[Weights, list[str]]:
    """The layers, and what there is to say of them."""
    weights = _adapter_of(source)
    averages = [name for name in weights if name.startswith(_AVERAGE)]
    weights = {name: weight for name, weight in weights.items() if name not in averages}
    count = sum(weight.numel for weight in weights.values())
    lines = [f"read  {source}: regional layers ({kind_of(weights)}), {count:,} parameters"]
    return weights, [*lines, *([f"left out {len(averages)} keys of an average ({_AVERAGE}*)"] if averages else [])]


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
    if tuned := [name for name in renamed if "lora_" in name]:
        raise ConfigError(f"{source} holds LoRA weights ({listed('lora', tuned)})", "merge them into the base first")
    found = {name: weight for name, weight in renamed.items() if is_adapter_key(name)}
    if not found:
        raise ConfigError(f"{source} holds no regional layers", "give a Rich-context model or its layers")
    return found
