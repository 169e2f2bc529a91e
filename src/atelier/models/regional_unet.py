"""Attaches Rich-context's regional layers to a stock diffusers UNet, without forking it (see ``grounded_unet``)."""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from diffusers import UNet2DConditionModel
from torch import Tensor

from atelier.errors import ConfigError
from atelier.models.grounded_unet import context_width, give_layers, load_adapter
from atelier.models.regional.fusers import (
    InstDiffSelfAttention,
    RegionalCrossAndSelfAttention,
    RegionalCrossAttention,
)
from atelier.models.regional.position_net import RegionTextNet

FuserKind: TypeAlias = Literal["ca", "casa", "instdiff"]

FUSERS: dict[FuserKind, type[RegionalCrossAttention] | type[InstDiffSelfAttention]] = {
    "ca": RegionalCrossAttention,
    "casa": RegionalCrossAndSelfAttention,
    "instdiff": InstDiffSelfAttention,
}


def attach_regional(
    unet: UNet2DConditionModel,
    fuser: FuserKind = "ca",
    positive_len: int | None = None,
    hidden: int = 512,
    *,
    boxed: bool = True,
    keep_small: bool = True,
) -> UNet2DConditionModel:
    """Gives every transformer block a regional fuser and the UNet a position net, all freshly initialised.

    The fusers' last layers are 0: the attached UNet computes exactly what it computed before. ``attention_type``
    becomes "regional" in the configuration, a name that stock diffusers passes over: a saved folder opens there as the
    base model alone, and ``adopt_regional`` gives it its layers again.

    Args:
        fuser: "ca" cross-attention; "casa" self-attention besides; "instdiff" the ablation.
        positive_len: width of a text state; the UNet's cross_attention_dim by default.
        hidden: hidden width of the position net.
        boxed: whether the position net reads boxes.
        keep_small: whether small regions get a cell on coarse levels where there is room (``Grounding``); upstream
            loses them.

    Returns:
        the same UNet.

    Raises:
        ConfigError: there is no such fuser, or the UNet's blocks have no one width of context.
    """
    if fuser not in FUSERS:
        raise ConfigError(f"there is no regional fuser {fuser!r}", f"use one of {', '.join(FUSERS)}")
    width = context_width(unet)
    net = RegionTextNet(positive_len or width, width, hidden=hidden, boxed=boxed, keep_small=keep_small)
    return give_layers(unet, FUSERS[fuser], net, "regional")


def adopt_regional(
    unet: UNet2DConditionModel, state: dict[str, Tensor], *, keep_small: bool = True
) -> UNet2DConditionModel:
    """Attaches the layers that a trained adapter is of, and loads it.

    Args:
        state: the adapter's tensors by name, and none besides (``grounded_unet.is_adapter_key`` tells them).
        keep_small: as in ``attach_regional``.

    Raises:
        ConfigError: these are no regional layers, or they do not fit the UNet; lists every key that is wrong.
    """
    null, bias = state.get("position_net.null_text_feature"), state.get("position_net.linears.0.bias")
    if null is None or bias is None:
        raise ConfigError("the adapter has no position net of regional layers", "it is another system's, or incomplete")
    boxed = len(null) != context_width(unet)
    text = len(null) - (_BOX if boxed else 0)
    attach_regional(unet, kind_of(state), text, len(bias), boxed=boxed, keep_small=keep_small)
    load_adapter(unet, state)
    return unet


def require_drawn(kind: FuserKind) -> None:
    """A sampler knows these fusers.

    Raises:
        ConfigError: it is the ablation, whose regions have one pooled token each, which no sampler here makes.
    """
    if kind == "instdiff":
        raise ConfigError(
            "these layers are the ablation with InstanceDiffusion's self-attention (instdiff), which is not drawn with",
            f"use layers of {', '.join(name for name in FUSERS if name != 'instdiff')}",
        )


def kind_of(names: Iterable[str]) -> FuserKind:
    """Which fusers an adapter is of, by its parameters' names.

    Raises:
        ConfigError: of none of ours.
    """
    parts = {name.split(".fuser.", 1)[1].split(".", 1)[0] for name in names if ".fuser." in name}
    for kind, own in _PARTS.items():
        if parts == own:
            return kind
    raise ConfigError(
        f"the adapter's fusers have {', '.join(sorted(parts)) or 'no parts'}: no regional ones",
        "use an adapter of Rich-context",
    )


_BOX = 64
"""Fourier features of a box in every released model."""

_PARTS: dict[FuserKind, set[str]] = {
    "ca": {"attn", "null_text_feat"},
    "casa": {"attn", "self_attn", "null_text_feat"},
    "instdiff": {"text_linear", "self_attn", "null_text_feat"},
}
