"""Changes of FLUX's layers in the formats that others read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from atelier.convert import lora_metadata
from atelier.convert.lora import Delta, Lora, folded, fuse, halves_swapped
from atelier.convert.lora_forms import PEFT_PREFIX
from atelier.convert.lora_names import Place, kohya_name, numbered, of_diffusers
from atelier.convert.lora_read import ADAPTER, ADAPTER_CONFIG
from atelier.convert.weights import Weight, Weights, of_state, save


class File(NamedTuple):
    """A file's weights and the texts in its header."""

    weights: Weights
    header: dict[str, str]


def peft_state(lora: Lora, prefix: str = "") -> Weights:
    """By peft's names, behind a prefix; they do not say alpha."""
    weights: Weights = {}
    for name, delta in lora.items():
        weights |= {f"{prefix}{name}.lora_A.weight": delta.down, f"{prefix}{name}.lora_B.weight": delta.up}
    return weights


def diffusers_file(lora: Lora) -> File:
    """For ``FluxPipeline.load_lora_weights``; alpha is in the header alone, which some other programs do not read."""
    return File(peft_state(lora, lora_metadata.PART), lora_metadata.header_of(lora))


def aitoolkit_file(lora: Lora, name: str, header: Mapping[str, str] | None = None) -> File:
    """The same keys with alpha folded into the up factors: right in every program that knows the keys.

    Args:
        header: what an ai-toolkit file told of its training, to be kept.
    """
    kept = {
        key: value for key, value in (header or {}).items() if key in ("training_info", "name", "software", "version")
    }
    weights = peft_state({layer: folded(delta, "up") for layer, delta in lora.items()}, lora_metadata.PART)
    return File(weights, {"name": name} | kept)


def kohya_file(lora: Lora) -> File:
    """By sd-scripts' names: q, k, v (and a single block's mlp) fused, alpha as tensors, exact."""
    groups: dict[str, tuple[Place, str]] = {}
    for name in lora:
        found = of_diffusers(name)
        assert found is not None, name  # everything that is read has a place
        groups[kohya_name(*found)] = found
    weights: Weights = {}
    alphas: dict[str, torch.Tensor] = {}
    for name, (place, block) in sorted(groups.items()):
        delta = _at(lora, place, block)
        key = f"lora_unet_{name}"
        weights |= {f"{key}.lora_down.weight": delta.down, f"{key}.lora_up.weight": delta.up}
        alphas[f"{key}.alpha"] = torch.tensor(delta.alpha)
    ranks, scales = {delta.rank for delta in lora.values()}, {delta.alpha for delta in lora.values()}
    header = {"ss_network_module": "networks.lora_flux"}
    if len(ranks) == len(scales) == 1:
        header |= {"ss_network_dim": str(*ranks), "ss_network_alpha": str(*scales)}
    return File(weights | of_state(alphas), header)


def _at(lora: Lora, place: Place, block: str) -> Delta:
    names = [numbered(name, block) for name in place.diffusers]
    if not place.outs:
        return halves_swapped(lora[names[0]]) if place.swapped else lora[names[0]]
    members = [lora.get(name) for name in names]
    width = next(member.shape[1] for member in members if member is not None)
    return fuse(members, [units * width for units in place.outs])


def _to(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """The factors in another type; an alpha, one number a layer, stays exact."""

    def one(name: str, weight: Weight) -> Weight:
        return (
            weight
            if dtype is None or name.endswith(".alpha")
            else Weight(weight.shape, weight.dtype, weight.read, dtype)
        )

    return {name: one(name, weight) for name, weight in weights.items()}


def write_file(file: File, path: Path, dtype: torch.dtype | None) -> None:
    """Writes one safetensors file."""
    save(_to(file.weights, dtype), path, file.header)


def write_peft_folder(lora: Lora, folder: Path, dtype: torch.dtype | None) -> None:
    """``adapter_model.safetensors`` and ``adapter_config.json`` into a folder that is there: ``PeftModel`` opens it."""
    write_file(File(peft_state(lora, PEFT_PREFIX), {}), folder / ADAPTER, dtype)
    config = json.dumps(lora_metadata.config_of(lora), indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(config + "\n")
