"""A LoRA file of any format, as changes of diffusers' layers: every key accounted for, or an error that lists them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atelier.convert import lora_metadata
from atelier.convert.lora import Delta, Lora, halves_swapped, split
from atelier.convert.lora_forms import ALPHA, DOWN, PEFT_PREFIX, UP, Key, detect, require_pairs
from atelier.convert.lora_names import numbered
from atelier.convert.weights import Weight, Weights, of_file
from atelier.errors import ConfigError, DataError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
DIFFUSERS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Found:
    """What a file holds.

    Attributes:
        form: its format's name (``lora_forms.FORMS``, and ``aitoolkit``).
        lora: its changes, weights not yet read.
        header: of the file.
        notes: what a person should know.
    """

    form: str
    lora: Lora
    header: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_lora(source: Path, alpha: float | None = None) -> Found:
    """A file, or the folder that one lies in.

    Args:
        alpha: of all layers, for a file that cannot say it (a bare peft state dict).

    Raises:
        ConfigError: its keys are no format's, or not all of them; alpha is missing, or given against what it says.
        DataError: it is missing or damaged, or two files that do not belong together.
    """
    path = file_of(source)
    weights, header = of_file(path), header_of_file(path)
    config = lora_metadata.read_header(header, str(path))
    beside = path.with_name(ADAPTER_CONFIG)
    form, meanings = detect(weights, str(path))
    if beside.is_file() and (form == "peft-state" or any(key.startswith(PEFT_PREFIX) for key in meanings)):
        config = lora_metadata.read_config(beside)
    found = interpreted(weights, form, meanings, config, alpha, str(path))
    if form == "diffusers" and config is None and _by_aitoolkit(header):
        return Found("aitoolkit", found.lora, header)  # whose alpha is the rank: nothing to note
    return Found(found.form, found.lora, header, found.notes)


def _by_aitoolkit(header: Mapping[str, str]) -> bool:
    return "ai-toolkit" in header.get("software", "") or "training_info" in header


def file_of(source: Path) -> Path:
    """The file of weights that a person means by a path.

    Raises:
        DataError: there is none, or a folder holds several.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise DataError(f"{source}: there is no such file or folder", "check the path")
    known = [source / name for name in (ADAPTER, "adapter_model.bin", DIFFUSERS) if (source / name).is_file()]
    every = known or sorted(source.glob("*.safetensors"))
    if len(every) != 1:
        raise DataError(f"{source} holds {len(every)} files that may be the LoRA", "name one of them")
    return every[0]


def header_of_file(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header; {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def interpreted(
    weights: Weights,
    form: str,
    meanings: Mapping[str, Key],
    config: Mapping[str, Any] | None,
    alpha: float | None,
    what: str,
) -> Found:
    """The changes that weights of a format mean.

    Args:
        meanings: of every key.
        config: peft's, from beside or the header.
        others: as of ``read_lora``.
    """
    require_pairs(meanings, what)
    parts: dict[str, dict[str, Weight]] = {}
    for key, meaning in meanings.items():
        own = parts.setdefault(meaning.layer, {})
        if meaning.part in own:
            raise DataError(f"{what} holds {meaning.layer} twice, also as {key}", "ask its author which one is meant")
        own[meaning.part] = weights[key]
    places = {meaning.layer: meaning for meaning in meanings.values()}
    for layer, own in parts.items():
        _check_factors(own, layer, what)
    ranks = {layer: own[DOWN].shape[0] for layer, own in parts.items()}
    alphas, notes = _alphas(parts, ranks, form, config, alpha, what)
    lora: Lora = {}
    for layer, own in parts.items():
        delta = Delta(own[DOWN], own[UP], alphas[layer])
        place, block = places[layer].place, places[layer].block
        if form in ("diffusers", "peft", "peft-state"):
            members: dict[str, Delta | None] = {layer: delta}  # already by diffusers' names
        elif place.outs:
            outs = [units * delta.shape[1] for units in place.outs]
            names = [numbered(name, block) for name in place.diffusers]
            members = dict(zip(names, split(delta, outs, f"{what}: {layer}"), strict=True))
        else:
            members = {numbered(place.diffusers[0], block): halves_swapped(delta) if place.swapped else delta}
        lora |= {name: member for name, member in members.items() if member is not None}
    return Found(form, dict(sorted(lora.items())), notes=notes)


def _check_factors(own: Mapping[str, Weight], layer: str, what: str) -> None:
    down, up = own[DOWN].shape, own[UP].shape
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
        raise DataError(
            f"{what}: {layer} has factors of {tuple(down)} and {tuple(up)}, no [rank, in] and [out, rank]",
            "give LoRA of linear layers",
        )
    if ALPHA in own and own[ALPHA].numel != 1:
        raise DataError(f"{what}: {layer} has an alpha of {tuple(own[ALPHA].shape)}", "copy or download it again")


def _alphas(
    parts: Mapping[str, Mapping[str, Weight]],
    ranks: Mapping[str, int],
    form: str,
    config: Mapping[str, Any] | None,
    given: float | None,
    what: str,
) -> tuple[dict[str, float], list[str]]:
    """Every layer's alpha: of its own tensor, of the configuration, given, or (where a format means that) the rank."""
    own = {layer: float(factors[ALPHA].read()) for layer, factors in parts.items() if ALPHA in factors}
    for layer, value in own.items():
        if not 0 < value < math.inf:
            raise DataError(f"{what}: {layer} has alpha {value}", "copy or download it again")
    if config is not None and not own:
        told = lora_metadata.alphas_of(config, ranks, what)
    elif given is not None and not own:
        return dict.fromkeys(ranks, given), []
    elif form in ("peft", "peft-state") and not own:
        raise ConfigError(
            f"{what} does not say its alpha, and there is no {ADAPTER_CONFIG} beside it",
            "give what it was trained with: --alpha NUMBER",
        )
    else:
        told = own
    if given is not None:
        raise ConfigError(f"{what} says its alpha itself", "leave --alpha out")
    silent = [layer for layer in ranks if layer not in told]
    notes = [f"no alpha of {len(silent)} layers in it: taken as their rank (scale 1)"] if silent else []
    return {layer: told.get(layer, float(rank)) for layer, rank in ranks.items()}, notes
