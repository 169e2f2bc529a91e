"""``atelier convert-lora``: a FLUX LoRA from any format into another, whole or not at all."""

from dataclasses import dataclass, field
from pathlib import Path

from atelier.convert.lora import Lora
from atelier.convert.lora_read import DIFFUSERS, read_lora
from atelier.convert.lora_write import (
    aitoolkit_file,
    diffusers_file,
    kohya_file,
    write_file,
    write_peft_folder,
)
from atelier.convert.weights import DTYPES
from atelier.errors import ConfigError, DataError
from atelier.models.keys import listed
from atelier.storage.atomic import new_folder, replace_file, require_new

FORMS = ("diffusers", "peft", "kohya", "aitoolkit")
"""What can be written."""


@dataclass(frozen=True)
class Conversion:
    """What was read and written.

    Attributes:
        form: of the source.
        layers, parameters: converted.
        lines: the account for a person.
    """

    form: str
    layers: int
    parameters: int
    lines: list[str] = field(default_factory=list)


def convert_lora(
    source: Path, target: Path, to: str, base: Path | None = None, dtype: str = "", alpha: float | None = None
) -> Conversion:
    """Reads a LoRA of any format and writes it in another.

    Args:
        source: a file, or the folder it lies in.
        target: must not exist. ``peft`` is a folder; the others are a file when it ends in .safetensors, else
            (``diffusers`` only) a folder with ``pytorch_lora_weights.safetensors``.
        to: one of ``FORMS``.
        base: a diffusers folder of the FLUX model (or of its transformer), to check layers and shapes against.
        dtype: ``fp32``, ``fp16`` or ``bf16``; by default as stored.
        alpha: of a bare peft state dict, which does not say it.

    Raises:
        ConfigError: a key has no meaning (they are listed), the target exists or has the wrong ending, the base has
            other layers. DataError: the source is missing or damaged.
    """
    if to not in FORMS:
        raise ConfigError(f"there is no LoRA format {to!r} to write", f"use one of {', '.join(FORMS)}")
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"{dtype!r} is no type", f"one of {', '.join(DTYPES)}")
    require_new(target)
    file = target.suffix == ".safetensors"
    if file == (to == "peft") and to != "diffusers":
        wanted = "a folder" if to == "peft" else "a file that ends in .safetensors"
        raise ConfigError(f"{target}: {to} is written as {wanted}", f"name {wanted}")
    found = read_lora(source, alpha)
    if base is not None:
        require_base(found.lora, base)
    kind = DTYPES.get(dtype)
    if to == "peft":
        with new_folder(target) as folder:
            write_peft_folder(found.lora, folder, kind)
    else:
        if to == "aitoolkit":
            made = aitoolkit_file(found.lora, target.stem, found.header if found.form == "aitoolkit" else None)
        else:
            made = (kohya_file if to == "kohya" else diffusers_file)(found.lora)
        if file:
            with replace_file(target) as scratch:
                write_file(made, scratch, kind)
        else:
            with new_folder(target) as folder:
                write_file(made, folder / DIFFUSERS, kind)
    count = sum(delta.down.numel + delta.up.numel for delta in found.lora.values())
    lines = [f"read  {found.form} LoRA {source}: {len(found.lora)} layers, {count:,} parameters, {_ranks(found.lora)}"]
    lines += [f"      {note}" for note in found.notes]
    lines.append(f"wrote {to} LoRA {target}")
    return Conversion(found.form, len(found.lora), count, lines)


def require_base(lora: Lora, base: Path) -> None:
    """Every layer is one of the base's, and of its shape.

    Raises:
        ConfigError: some are not; they are listed. DataError: there is no transformer's configuration.
    """
    import json

    from torch import nn

    from atelier.models.flux.configs import on_meta

    path = next((p for p in (base / "transformer" / "config.json", base / "config.json") if p.is_file()), None)
    if path is None:
        raise DataError(f"{base} has no transformer's config.json", "give FLUX's diffusers folder")
    try:
        config = json.loads(path.read_text())
        layers = {name: m for name, m in on_meta(config).named_modules() if isinstance(m, nn.Linear)}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no configuration of a FLUX transformer ({error})", "give FLUX's folder") from error
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    wrong = {
        "unknown": sorted(lora.keys() - shapes.keys()),
        "misshapen": [
            f"{name} {lora[name].shape} for {shapes[name]}"
            for name in sorted(lora.keys() & shapes.keys())
            if lora[name].shape != shapes[name]
        ],
    }
    said = [listed(kind, names) for kind, names in wrong.items() if names]
    if said:
        raise ConfigError(f"the LoRA is not for {base}: {'; '.join(said)}", "give the base that it was trained on")


def _ranks(lora: Lora) -> str:
    ranks = sorted({delta.rank for delta in lora.values()})
    scales = sorted({round(delta.scale, 6) for delta in lora.values()})
    return f"rank {', '.join(map(str, ranks))}, scale {', '.join(f'{scale:g}' for scale in scales)}"
