"""Whole diffusers folders around a grounded UNet: the base's other parts, the index, the adapter beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from atelier.convert import unet_folder
from atelier.convert.weights import MAX_SHARD, Weights, of_state, shapes_of, size_of
from atelier.errors import DataError
from atelier.models.grounded_unet import is_adapter_key
from atelier.models.keys import require_same_keys
from atelier.storage.atomic import os_errors

ADAPTER = "gligen_adapter.safetensors"
INDEX = "model_index.json"


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's index.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        return dict(index)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / INDEX} cannot be read ({error})", "give a whole diffusers folder") from error


def parts_of(folder: Path) -> list[str]:
    """The pipeline's parts beside its UNet that have a folder.

    Raises:
        DataError: the index names a part that is not there.
    """
    named = [
        name
        for name, value in read_index(folder).items()
        if not name.startswith("_") and name != "unet" and isinstance(value, list) and value and value[0] is not None
    ]
    missing = [name for name in named if not (folder / name).is_dir()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}, which its {INDEX} names", "copy or download it again")
    return named


def copy_parts(base: Path, folder: Path) -> list[str]:
    """Copies everything but the UNet and the index; returns the parts' names."""
    parts = parts_of(base)
    with os_errors(folder):
        for part in parts:
            shutil.copytree(base / part, folder / part, dirs_exist_ok=True)
    return parts


def write(
    folder: Path, weights: Weights, config: dict[str, Any], base: Path | None, max_shard: int
) -> tuple[list[str], list[str]]:
    """Writes ``unet/`` and, where there is a base to take them from, the other parts and the index.

    Returns:
        (names of the UNet's weight files, names of the copied parts).
    """
    files = unet_folder.write(weights, config, folder / "unet", max_shard)
    if base is None:
        return files, []
    parts = copy_parts(base, folder)
    index = read_index(base) | {"unet": ["diffusers", "UNet2DConditionModel"]}
    if isinstance(index.get("_class_name"), list):  # the base's own pipeline code is not copied
        index["_class_name"] = "StableDiffusionXLPipeline" if "text_encoder_2" in index else "StableDiffusionPipeline"
    write_index(folder, index)
    return files, parts


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Writes ``model_index.json``."""
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def export(base: Path, adapter: dict[str, Tensor], folder: Path) -> dict[str, int]:
    """Writes a trained adapter and the diffusers folder that holds it.

    The folder opens in stock diffusers (its UNet with ``attention_type="gated"``) and, with boxes and phrases, in
    ``atelier.sampling``'s pipeline of its family.

    Args:
        base: the frozen base's diffusers folder, of any family.
        adapter: fusers and position net by their diffusers names.

    Returns:
        parameter counts: ``adapter`` and ``total``.

    Raises:
        ConfigError: counts and lists the adapter's keys that are missing, unknown or of another shape.
        DataError: the base is no whole diffusers folder.
    """
    frozen, config = unet_folder.read(base / "unet")
    added = of_state(adapter)
    check_adapter(added, config, "the adapter")
    weights = unet_folder.with_adapter(frozen, added)
    unet_folder.check(weights, config, f"{base} with the adapter")
    save_file({name: tensor.contiguous() for name, tensor in sorted(adapter.items())}, folder / ADAPTER)
    write(folder, weights, config, base, size_of(MAX_SHARD))
    return {
        "adapter": sum(tensor.numel() for tensor in adapter.values()),
        "total": sum(weight.numel for weight in weights.values()),
    }


def check_adapter(adapter: Weights, config: dict[str, Any], what: str) -> None:
    """The adapter has every fuser and the position net of such a UNet, and nothing besides.

    Raises:
        ConfigError: counts and lists what is missing, unknown or of another shape.
    """
    hidden = adapter[unet_folder.HIDDEN].shape[0] if unet_folder.HIDDEN in adapter else 512
    expected = unet_folder.expected_shapes(config, hidden)
    require_same_keys(
        shapes_of(adapter),
        {name: shape for name, shape in expected.items() if is_adapter_key(name)},
        f"{what} does not fit the UNet ({unet_folder.family_of(config)})",
        "use the adapter with the base model it was trained on",
    )
