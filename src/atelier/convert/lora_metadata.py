"""Ranks and alphas beside the weights: peft's ``adapter_config.json``, and diffusers' copy of it in a file's header."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key

from atelier.convert.lora import Lora
from atelier.errors import ConfigError, DataError
from atelier.storage.atomic import os_errors

HEADER = "lora_adapter_metadata"
"""diffusers' field of a safetensors header: JSON whose fields begin with the part's name."""
PART = "transformer."
_REFUSED = ("use_dora", "use_qalora", "lora_bias", "use_bdlora")
"""Kinds of LoRA whose change is not alpha/rank · up @ down."""


def config_of(lora: Lora) -> dict[str, Any]:
    """peft's configuration of these layers, JSON-able: the most common rank and alpha, others as patterns.

    Layers stand by their full names. peft takes a name for the end of other layers' names too: ``proj_out`` would be
    every single block's. Where that is so, one regular expression names exactly ours.
    """
    rank = _commonest(delta.rank for delta in lora.values())
    alpha = _commonest(delta.alpha for delta in lora.values())
    names = sorted(lora)
    config = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,  # peft says int, and divides it by the rank
        # ^ keeps peft from taking a name for another's end.
        rank_pattern={f"^{name}": delta.rank for name, delta in sorted(lora.items()) if delta.rank != rank},
        alpha_pattern={f"^{name}": delta.alpha for name, delta in sorted(lora.items()) if delta.alpha != alpha},
    ).to_dict()
    exact = "|".join(name.replace(".", r"\.") for name in names)
    config["target_modules"] = f"({exact})" if "proj_out" in lora else names
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}


def header_of(lora: Lora) -> dict[str, str]:
    """What diffusers writes into the header of ``pytorch_lora_weights.safetensors`` and reads ranks and alphas from."""
    fields = {PART + name: value for name, value in config_of(lora).items()}
    return {HEADER: json.dumps(fields, indent=2, sort_keys=True)}


def read_header(header: Mapping[str, str], what: str) -> dict[str, Any] | None:
    """peft's configuration out of a file's header; None where it holds none.

    Raises:
        DataError: it is damaged.
    """
    if HEADER not in header:
        return None
    try:
        fields = json.loads(header[HEADER])
        return {name.removeprefix(PART): value for name, value in fields.items() if name.startswith(PART)} or None
    except (ValueError, AttributeError) as error:
        raise DataError(f"{what}: its {HEADER} is no JSON object ({error})", "save it again") from error


def read_config(path: Path) -> dict[str, Any]:
    """An ``adapter_config.json``.

    Raises:
        DataError: it is damaged. ConfigError: it is of another method than LoRA.
    """
    try:
        with os_errors(path):
            config = json.loads(path.read_text())
        kind = config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is no JSON object ({error})", "copy or download it again") from error
    if kind != "LORA":
        raise ConfigError(f"{path} is of {kind}, not of LoRA", "convert plain LoRA")
    return dict(config)


def alphas_of(config: Mapping[str, Any], ranks: Mapping[str, int], what: str) -> dict[str, float]:
    """Each layer's alpha, so that alpha / rank is its scale.

    Args:
        ranks: of the weights, by layer.

    Raises:
        ConfigError: it is a kind of LoRA that changes more than alpha/rank · up @ down.
        DataError: it tells of other ranks than the weights have, or of no alpha.
    """
    strange = [name for name in _REFUSED if config.get(name)]
    if strange:
        raise ConfigError(f"{what} sets {', '.join(strange)}", "convert plain LoRA: other kinds have no such files")
    patterns = {field: dict(config.get(field) or {}) for field in ("rank_pattern", "alpha_pattern")}
    alphas = {}
    for layer, rank in ranks.items():
        said = patterns["rank_pattern"].get(_key(patterns["rank_pattern"], layer), config.get("r"))
        alpha = patterns["alpha_pattern"].get(_key(patterns["alpha_pattern"], layer), config.get("lora_alpha"))
        if said != rank:
            raise DataError(
                f"{what} says rank {said} of {layer}, whose weights have {rank}", "give files that belong together"
            )
        if not isinstance(alpha, int | float) or alpha <= 0:
            raise DataError(f"{what} says alpha {alpha!r} of {layer}", "save the adapter again")
        alphas[layer] = float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return alphas


def _key(patterns: Mapping[str, Any], layer: str) -> str:
    found: str = get_pattern_key(list(patterns), layer)
    return found


def _commonest(values: Iterable[float]) -> float:
    """The most frequent value; of several the smallest, so that the same layers give the same file."""
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]
