"""One conversion from any form of a GLIGEN checkpoint to another: every key accounted for, or nothing written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from atelier.convert import igligen_xl, original, pipeline_folder, unet_folder
from atelier.convert.source import Source, open_source
from atelier.convert.weights import DTYPES, MAX_SHARD, Weights, cast, of_folder, save, shards_of, size_of
from atelier.errors import ConfigError, DataError
from atelier.models.gligen import GatedSelfAttention, PositionNet
from atelier.models.grounded_unet import is_adapter_key
from atelier.models.keys import Shape, require_same_keys
from atelier.storage.atomic import new_folder, replace_file, require_new
from atelier.training.start import write_start

TARGETS = ("diffusers", "unet", "original", "adapter", "igligen-xl", "checkpoint")
_ALONE = ("adapter", "checkpoint")
"""Forms that hold the trained part and no frozen weights."""
_WORDS = {
    "original": "original GLIGEN checkpoint",
    "diffusers": "diffusers folder",
    "unet": "UNet folder",
    "adapter": "adapter",
    "checkpoint": "Atelier checkpoint",
    "deepspeed": "DeepSpeed checkpoint",
    "igligen-xl": "IGLIGEN-XL folder",
}
_FAMILY_OF_WIDTH = {768: "SD1", 1024: "SD2", 2048: "SDXL"}


@dataclass(frozen=True)
class Conversion:
    """What was read and what was written.

    Attributes:
        form, to: forms of the source and of the target.
        family: ``SD1``, ``SD2``, ``SDXL``, or ``unknown`` for an adapter of a width of its own.
        trained, frozen: parameters written.
        lines: the account for a person.
    """

    form: str
    to: str
    family: str
    trained: int
    frozen: int
    lines: list[str] = field(default_factory=list)


def convert(
    source: Path,
    target: Path,
    to: str = "",
    base: Path | None = None,
    dtype: str = "",
    average: bool = False,
    max_shard_size: str = MAX_SHARD,
) -> Conversion:
    """Converts ``source`` to ``target``, which appears whole or not at all.

    Args:
        to: one of ``TARGETS``; by default what the target's ending says (``.safetensors`` an adapter, ``.pth``,
            ``.pt`` or ``.ckpt`` an original checkpoint, none a diffusers folder).
        base: a diffusers folder: the frozen weights for an adapter, and the other parts of a whole pipeline.
        dtype: ``fp32``, ``fp16`` or ``bf16``; by default as stored. A checkpoint is always fp32.
        average: the moving average of the trained weights, where the source has one.
        max_shard_size: of one file in a diffusers folder.

    Raises:
        ConfigError: an argument is wrong, or the keys are not those of the UNet; they are listed.
        DataError: the source or the base is missing or damaged.
        StorageError: the target cannot be written.
    """
    to = to or _default_target(target)
    if to not in TARGETS:
        raise ConfigError(f"{to!r} is no form to convert to", f"one of {', '.join(TARGETS)}")
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"{dtype!r} is no type", f"one of {', '.join(DTYPES)}")
    if to == "checkpoint" and dtype not in ("", "fp32"):
        raise ConfigError(
            f"a checkpoint holds fp32 masters, not {dtype}", "leave --dtype out; trainings cast by themselves"
        )
    require_new(target)
    max_shard = size_of(max_shard_size)
    base_unet = _unet_of(base) if base is not None else None
    read = open_source(source, unet_folder.read_config(base_unet) if base_unet else None, average)
    weights, config = _completed(read, base_unet, to)
    family = unet_folder.family_of(config) if config else _family_of_adapter(weights)
    account = _counts(weights)
    lines = [f"read  {_WORDS[read.form]} {read.path}: {family}, {account}, {_types(read.weights)}"]
    lines += [f"      {note}" for note in read.notes]
    if read.form in ("adapter", "checkpoint", "deepspeed") and not read.whole and base_unet and to not in _ALONE:
        lines.append(f"      frozen weights from {base_unet}")
    written_as = torch.float32 if to == "checkpoint" else DTYPES.get(dtype)
    out = cast(unet_folder.adapter_of(weights) if to in _ALONE else weights, written_as)
    written = _write(out, config, target, to, base if base is not None else read.pipeline, max_shard)
    lines.append(f"wrote {_WORDS[to]} {target}: {_counts(out)}, {_types(out)}")
    lines += [f"      {line}" for line in written]
    trained = sum(weight.numel for weight in unet_folder.adapter_of(out).values())
    frozen = sum(weight.numel for weight in out.values()) - trained
    return Conversion(read.form, to, family, trained, frozen, lines)


def _default_target(target: Path) -> str:
    return {".safetensors": "adapter", ".pth": "original", ".pt": "original", ".ckpt": "original"}.get(
        target.suffix, "diffusers"
    )


def _unet_of(folder: Path) -> Path:
    for place in (folder / "unet", folder):
        if (place / unet_folder.CONFIG).is_file():
            return place
    raise DataError(f"--base {folder} holds no UNet (no unet/config.json)", "give a diffusers folder")


def _completed(read: Source, base_unet: Path | None, to: str) -> tuple[Weights, dict[str, Any] | None]:
    """The weights that the target needs, checked, with the configuration where there is one."""
    config = read.config
    if read.whole:
        if config is None:
            if base_unet is None:
                raise ConfigError(f"{read.path} does not tell its UNet's configuration", "give --base FOLDER")
            config = unet_folder.read_config(base_unet)
        unet_folder.check(read.weights, config, str(read.path))
        return read.weights, config
    if base_unet is None:
        if to not in _ALONE:
            raise ConfigError(
                f"{read.path} holds the trained part alone, a {_WORDS[to]} needs the frozen part too",
                "give --base FOLDER, the diffusers folder of the model that it was trained on",
            )
        check_alone(read.weights, str(read.path))
        return read.weights, None
    config = unet_folder.read_config(base_unet)
    pipeline_folder.check_adapter(read.weights, config, str(read.path))
    if to in _ALONE:
        return read.weights, config
    frozen = of_folder(base_unet)
    if frozen is None:
        raise DataError(f"{base_unet} holds no weights", "copy or download the base again")
    weights = unet_folder.with_adapter(frozen, read.weights)
    unet_folder.check(weights, config, f"{base_unet} with {read.path.name}")
    return weights, config


def check_alone(adapter: Weights, what: str) -> None:
    """Without a base: every fuser and the position net have all their parameters, in shapes that fit each other.

    Raises:
        ConfigError: counts and lists what is missing, unknown or of another shape.
    """
    shapes = {name: weight.shape for name, weight in adapter.items()}
    blocks = sorted({name.partition(".fuser.")[0] for name in shapes if ".fuser." in name})
    text = shapes.get("position_net.null_positive_feature", (1,))[0]
    hidden = shapes.get(unet_folder.HIDDEN, (512,))[0]
    token = shapes.get("position_net.linears.4.bias", (text,))[0]
    expected: dict[str, Shape] = {}
    with torch.device("meta"):
        net = PositionNet(text, token, hidden=hidden)
        expected |= {f"position_net.{name}": tuple(p.shape) for name, p in net.state_dict().items()}
        for block in blocks:
            dim = shapes.get(f"{block}.fuser.norm1.weight", (8,))[0]
            fuser = GatedSelfAttention(dim, token, 1, dim)
            expected |= {f"{block}.fuser.{name}": tuple(p.shape) for name, p in fuser.state_dict().items()}
    require_same_keys(shapes, expected, f"{what} is no whole adapter", "convert the checkpoint that it came from again")
    if not blocks:
        raise ConfigError(f"{what} is no whole adapter: it has no fusers", "convert the checkpoint it came from again")


def _family_of_adapter(adapter: Weights) -> str:
    return _FAMILY_OF_WIDTH.get(adapter["position_net.null_positive_feature"].shape[0], "unknown family")


def _counts(weights: Weights) -> str:
    trained = sum(weight.numel for weight in unet_folder.adapter_of(weights).values())
    frozen = sum(weight.numel for name, weight in weights.items() if not is_adapter_key(name))
    return f"{trained:,} trained" + (f" and {frozen:,} frozen" if frozen else "") + " parameters"


def _types(weights: Weights) -> str:
    found = {str(weight.to or weight.dtype).removeprefix("torch.") for weight in weights.values()}
    return " and ".join(sorted(found))


def _write(
    weights: Weights, config: dict[str, Any] | None, target: Path, to: str, pipeline: Path | None, max_shard: int
) -> list[str]:
    """Writes the target; returns what else is to be said of it."""
    if to == "adapter":
        with replace_file(target) as scratch:
            save(weights, scratch)
        return []
    if to == "checkpoint":
        pieces = ({name: weight.tensor() for name, weight in s.items()} for s in shards_of(weights, max_shard))
        with new_folder(target) as folder:
            name = write_start(folder, pieces)
        return [f"{name}: a training that keeps its checkpoints here starts from it, its optimizer from nothing"]
    if config is None:
        raise ConfigError("the UNet's configuration is unknown", "give --base FOLDER")
    if to == "original":
        renamed = original.to_original(weights, config, "the UNet")
        with replace_file(target) as scratch:
            original.write(renamed, scratch, bare=target.suffix == ".safetensors")
        return []
    whole = pipeline if pipeline is not None and (pipeline / pipeline_folder.INDEX).is_file() else None
    if to == "igligen-xl" and whole is None:
        raise ConfigError(
            "an IGLIGEN-XL folder needs the text encoders, the VAE and the scheduler too",
            "give --base FOLDER, a whole SDXL diffusers folder",
        )
    with new_folder(target) as folder:
        if to == "unet":
            return [f"files: {', '.join(unet_folder.write(weights, config, folder, max_shard))}"]
        if to == "igligen-xl" and whole is not None:
            files, parts = igligen_xl.write(folder, weights, config, whole, max_shard)
        else:
            files, parts = pipeline_folder.write(folder, weights, config, whole, max_shard)
        copied = f"copied as they are: {', '.join(parts)}" if parts else "the UNet alone: no --base to copy parts from"
        return [f"files: {', '.join(f'unet/{name}' for name in files)}", copied]
