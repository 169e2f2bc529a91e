"""A transformer block of SD or SDXL as bare operations: diffusers' own, in its order, without what stands around them.

In a small batch much of a step's time is Python's: a block is some thirty module calls, and diffusers inspects the
attention processor's signature in each, divides by 1 and drops out nothing. Here it is thirteen operations on the
block's own weights.
"""

from collections.abc import Callable
from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.models.gligen import GatedSelfAttention, ScaledTokens
from atelier.models.regional.fusers import (
    InstDiffSelfAttention,
    RegionalCrossAndSelfAttention,
    RegionalCrossAttention,
)
from atelier.models.regional.grounding import Grounding
from atelier.models.view import View

_FUSERS = (GatedSelfAttention, RegionalCrossAttention, RegionalCrossAndSelfAttention, InstDiffSelfAttention)
"""Ours, which take nothing but the visual tokens and ``objs``."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [B, H, Q, d], keys and values [B, H, T, d] → [B, H, Q, d]."""


class LeanBlock(View):
    """Answers for a block of which ``is_plain`` is true.

    Args:
        block: left as it is.
        fuser: what stands in its fuser's place.
        attend: how attention is computed.
    """

    def __init__(self, block: BasicTransformerBlock, fuser: nn.Module, attend: Attend) -> None:
        super().__init__(block)
        self._fuser = fuser
        # Looked up once: every access to a module's part costs a search.
        self._norms = tuple((norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in _norms(block))
        self._own, self._cross = _Attention(block.attn1, attend), _Attention(block.attn2, attend)
        self._widen, self._narrow = block.ff.net[0].proj, block.ff.net[2]

    def text(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B * T, C] of the text's states [B, T, D]."""
        flat = states.flatten(0, 1)
        return self._cross.linear("to_k", flat), self._cross.linear("to_v", flat)

    def ground(self, x: Tensor, objs: Tensor | ScaledTokens | Grounding, rows: int) -> Tensor:
        """The fuser's answer [B * N, C] for x [B * N, C] of B ``rows``."""
        made: Tensor = self._fuser(x.unflatten(0, (rows, -1)), objs)
        return made.flatten(0, 1)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """As ``BasicTransformerBlock.forward``: [B, N, C] and the text's [B, T, D] → [B, N, C]."""
        asked = cross_attention_kwargs or {}
        masked = attention_mask is not None or encoder_attention_mask is not None
        if masked or encoder_hidden_states is None or hidden_states.ndim != 3 or not asked.keys() <= {"gligen"}:
            given = {"encoder_attention_mask": encoder_attention_mask, "timestep": timestep, **others}
            made: Tensor = self.inner(
                hidden_states,
                attention_mask,
                encoder_hidden_states,
                cross_attention_kwargs=cross_attention_kwargs,
                class_labels=class_labels,
                **given,
            )
            return made
        first, second, third = self._norms
        own, cross, rows = self._own, self._cross, hidden_states.shape[0]
        # Rows and tokens in one axis: else torch lays every matrix product out anew, there and back.
        x = hidden_states.flatten(0, 1)
        normed = F.layer_norm(x, *first)
        x = own.attend(normed, own.linear("to_k", normed), own.linear("to_v", normed), rows) + x
        if "gligen" in asked:
            x = self.ground(x, asked["gligen"]["objs"], rows)
        x = cross.attend(F.layer_norm(x, *second), *self.text(encoder_hidden_states), rows) + x
        wide, gate = F.linear(F.layer_norm(x, *third), self._widen.weight, self._widen.bias).chunk(2, dim=-1)
        x = F.linear(wide * F.gelu(gate), self._narrow.weight, self._narrow.bias) + x
        return x.unflatten(0, (rows, -1))


class _Attention:
    """An ``Attention``'s weights, and its work from keys and values on."""

    def __init__(self, attention: Attention, attend: Attend) -> None:
        self.heads, self._attend = attention.heads, attend
        parts = {name: getattr(attention, name) for name in ("to_q", "to_k", "to_v")} | {"to_out": attention.to_out[0]}
        self._weights = {name: (part.weight, part.bias) for name, part in parts.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self._weights[name])

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, rows: int) -> Tensor:
        queries, keys, values = (
            part.view(rows, -1, self.heads, part.shape[-1] // self.heads).transpose(1, 2)
            for part in (self.linear("to_q", x), keys, values)
        )
        found = self._attend(queries, keys, values)
        return self.linear("to_out", found.transpose(1, 2).reshape(len(x), -1))


def is_plain(block: nn.Module) -> bool:
    """Whether a block is what SD and SDXL have, with nothing put into it (LoRA, adapters) and nothing dropped out."""
    if type(block) is not BasicTransformerBlock:
        return False
    plain = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
    norms = all(type(norm) is nn.LayerNorm for norm in _norms(block))
    feed_forward: Any = block.ff
    net = feed_forward.net
    wide = len(net) == 3 and type(net[0]) is GEGLU and type(net[0].proj) is nn.Linear and type(net[2]) is nn.Linear
    attentions = _is_plain_attention(block.attn1) and _is_plain_attention(block.attn2)
    return bool(
        plain
        and norms
        and wide
        and attentions
        and block._chunk_size is None
        and type(block.fuser) in _FUSERS
        and not any(part.p for part in block.modules() if isinstance(part, nn.Dropout) and part.training)
    )


def _norms(block: BasicTransformerBlock) -> tuple[Any, Any, Any]:
    return block.norm1, block.norm2, block.norm3


def _is_plain_attention(attention: Any) -> bool:
    if type(attention) is not Attention or type(attention.processor) is not AttnProcessor2_0:
        return False
    parts = (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    added = (attention.spatial_norm, attention.group_norm, attention.norm_cross, attention.norm_q, attention.norm_k)
    return (
        all(type(part) is nn.Linear for part in parts)
        and not any(added)
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )
