"""LoRA on FLUX by peft: which linear layers, how they begin, how much they weigh."""

import re
from collections.abc import Iterable
from typing import Literal

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from atelier.errors import ConfigError

Targets = Literal["blocks", "diffusers", "attention"]
Init = Literal["kaiming", "gaussian"]
ADAPTER = "default"

_ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0)"
_DIFFUSERS = (
    r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)|(ff|ff_context)\.net\.(0\.proj|2)"
)
_INSIDE: dict[Targets, re.Pattern[str]] = {
    "blocks": re.compile(r"(single_)?transformer_blocks\.\d+\..+"),
    "diffusers": re.compile(rf"(single_)?transformer_blocks\.\d+\.({_DIFFUSERS})"),
    "attention": re.compile(rf"(single_)?transformer_blocks\.\d+\.{_ATTENTION}"),
}
"""``blocks``: every linear layer of every block, the modulations' too: ai-toolkit's choice and so GRID's (494 of
FLUX.1's 504). ``diffusers``: that of diffusers' train_dreambooth_lora_flux.py (342): no modulations, and of a single
block only q, k and v. ``attention``: the image's q, k, v and output (190)."""


def target_modules(model: nn.Module, targets: Targets) -> list[str]:
    """The full names of the linear layers that a choice means, in the model's order.

    Raises:
        ConfigError: there is no such choice, or the model has none of the layers.
    """
    if targets not in _INSIDE:
        raise ConfigError(f"there are no LoRA targets {targets!r}", f"use one of {', '.join(_INSIDE)}")
    pattern = _INSIDE[targets]
    found = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and pattern.fullmatch(name)]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no layers for LoRA ({targets})", "give a FLUX transformer")
    return found


def lora_config(modules: Iterable[str], rank: int, alpha: float, init: Init = "kaiming") -> LoraConfig:
    """peft's configuration of ΔW = alpha/rank · B A for layers by their full names.

    Args:
        alpha: really scales, also for FLUX (ai-toolkit sets it to the rank there, whatever is asked for).
        init: of A; ``kaiming`` as ai-toolkit (uniform, √5), ``gaussian`` as diffusers' script (σ = 1/rank). B is zero.

    Raises:
        ConfigError: rank or alpha is not positive, or there is no such initialisation.
    """
    if rank < 1 or alpha <= 0:
        raise ConfigError(f"LoRA of rank {rank} and alpha {alpha} changes nothing", "give both above zero")
    if init not in ("kaiming", "gaussian"):
        raise ConfigError(f"there is no initialisation {init!r}", "use kaiming or gaussian")
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # peft says int, and divides it by the rank
        target_modules=list(modules),
        init_lora_weights="gaussian" if init == "gaussian" else True,
    )


def add_lora(
    model: FluxTransformer2DModel, targets: Targets, rank: int, alpha: float, init: Init = "kaiming"
) -> list[nn.Parameter]:
    """Hangs LoRA onto a transformer, freezes the rest, and returns what is trained: float32 whatever the base is.

    A draws from torch's global generator, which the engine seeds.
    """
    names = target_modules(model, targets)
    model.requires_grad_(False)
    model.add_adapter(lora_config(names, rank, alpha, init), ADAPTER)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()  # Adam's steps vanish in bfloat16's rounding
    return trained


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained part by peft's names without an adapter's (``….attn.to_q.lora_A.weight``); the model's own memory."""
    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    return found


def load_lora_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Writes a state of ``lora_state``'s names into the model.

    Raises:
        ConfigError: names or shapes are not this model's.
    """
    from atelier.models.keys import require_same_keys

    own = lora_state(model)
    require_same_keys(
        {name: tuple(t.shape) for name, t in state.items()},
        {name: tuple(t.shape) for name, t in own.items()},
        "these LoRA weights are not the model's",
        "use the rank and targets that they were trained with",
    )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
