"""Attaches GLIGEN's layers to a stock diffusers UNet, without forking it.

diffusers' ``BasicTransformerBlock`` calls ``self.fuser`` and ``UNet2DConditionModel`` calls ``self.position_net``
whenever ``cross_attention_kwargs["gligen"]`` is given, so setting those two attributes is all it takes. A call
without that key skips the fusers altogether (no work, not a multiplication by zero).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from atelier.errors import ConfigError
from atelier.models.gligen import GatedSelfAttention, PositionNet
from atelier.models.keys import require_same_keys


def blocks(unet: UNet2DConditionModel) -> Iterator[tuple[str, BasicTransformerBlock]]:
    """The UNet's transformer blocks with their names, in forward registration order."""
    for name, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock):
            yield name, module


def attach(unet: UNet2DConditionModel, positive_len: int | None = None, hidden: int = 512) -> UNet2DConditionModel:
    """Gives every transformer block a fuser and the UNet a position net, all freshly initialised.

    The gates are 0: the attached UNet computes exactly what it computed before. ``attention_type`` becomes
    "gated" in the configuration, so that a saved folder opens in stock diffusers.

    Args:
        positive_len: width of a phrase embedding; the UNet's cross_attention_dim by default.
        hidden: hidden width of the position net.

    Returns:
        the same UNet.
    """
    context_dim = context_width(unet)
    net = PositionNet(positive_len or context_dim, context_dim, hidden=hidden)
    return give_layers(unet, GatedSelfAttention, net, "gated")


def context_width(unet: UNet2DConditionModel) -> int:
    """The width of what the UNet's blocks attend to.

    Raises:
        ConfigError: it is another one from block to block.
    """
    width = unet.config["cross_attention_dim"]
    if not isinstance(width, int):
        raise ConfigError(f"cross_attention_dim is {width}: a UNet with one width for all blocks is needed")
    return width


def give_layers(
    unet: UNet2DConditionModel,
    fuser: Callable[[int, int, int, int], nn.Module],
    position_net: nn.Module,
    attention_type: str,
) -> UNet2DConditionModel:
    """Puts a fuser into every transformer block, and a position net beside them, on the UNet's device in its type.

    Args:
        fuser: makes one from a block's width, the context's, the block's heads and their width.
        position_net: what makes of ``cross_attention_kwargs["gligen"]`` the fusers' ``objs``.
        attention_type: for the configuration.

    Returns:
        the same UNet.
    """
    width, reference = context_width(unet), next(unet.parameters())
    for _, block in blocks(unet):
        attention = block.attn1
        head_dim = attention.to_q.out_features // attention.heads
        made = fuser(attention.to_q.in_features, width, attention.heads, head_dim)
        block.fuser = made.to(reference.device, reference.dtype)
    unet.position_net = position_net.to(reference.device, reference.dtype)
    unet.register_to_config(attention_type=attention_type)
    return unet


def adopt(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Puts our layers in the place of diffusers' own gated ones, weights kept; a UNet that has ours stays as it is.

    Ours keep the Fourier features in float32, compute only the queries that are used, and take grounding tokens
    computed before.

    Raises:
        ConfigError: the UNet has no grounding layers at all.
    """
    position_net = getattr(unet, "position_net", None)
    if position_net is None:
        raise ConfigError("the UNet has no GLIGEN layers", "convert a trained adapter into it first")
    if isinstance(position_net, PositionNet):
        return unet
    state = {name: tensor.detach() for name, tensor in unet.state_dict().items() if is_adapter_key(name)}
    attach(unet, position_net.null_positive_feature.shape[0], hidden=position_net.linears[0].out_features)
    load_adapter(unet, state)
    return unet


def is_adapter_key(name: str) -> bool:
    """Whether a parameter belongs to the trained part (fusers and position net)."""
    return ".fuser." in name or name.startswith("position_net.")


def adapter_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The trained part's parameters by name."""
    return {name: parameter for name, parameter in unet.named_parameters() if is_adapter_key(name)}


def freeze_base(unet: nn.Module) -> None:
    """Leaves only the fusers and the position net trainable."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(is_adapter_key(name))


def gates(unet: UNet2DConditionModel) -> dict[str, float]:
    """tanh of both gates of every block, by block name: the one sign of when grounding sets in."""
    values = {}
    for name, block in blocks(unet):
        fuser: Any = block.fuser
        values[f"{name}.attn"] = fuser.alpha_attn.detach().float().tanh().item()
        values[f"{name}.dense"] = fuser.alpha_dense.detach().float().tanh().item()
    return values


def load_adapter(unet: UNet2DConditionModel, state: dict[str, Tensor]) -> None:
    """Loads fusers and position net; every key must be there and none besides.

    Raises:
        ConfigError: counts and lists the missing, unknown and misshapen keys.
    """
    own = adapter_parameters(unet)
    require_same_keys(
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        {name: tuple(parameter.shape) for name, parameter in own.items()},
        "the adapter does not fit this UNet",
        "use the adapter with the base model it was trained on",
    )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
