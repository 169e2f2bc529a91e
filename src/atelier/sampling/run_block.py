"""A transformer block for one sampling run: diffusers' operations, in its order, without what stands around them.

In a small batch a step's time is Python's: a block is some thirty module calls, and diffusers inspects the attention
processor's signature in each. Here it is thirteen operations on the block's own weights, and a prompt's keys and values
are computed once a run. The results are the block's to the last bit.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.models.gligen import GatedSelfAttention
from atelier.sampling.remembered import Remembered
from atelier.sampling.view import View


class RunBlock(View):
    """Answers for a block of which ``fits`` is true.

    Args:
        block: left as it is.
        fuser: what stands in its fuser's place for this run.
    """

    def __init__(self, block: BasicTransformerBlock, fuser: nn.Module) -> None:
        super().__init__(block)
        self._fuser = fuser
        # Looked up once: every access to a module's part costs a search.
        self._norms = tuple((norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in _norms(block))
        self._own, self._cross = _Attention(block.attn1), _Attention(block.attn2)
        self._keys, self._values = Remembered(block.attn2.to_k), Remembered(block.attn2.to_v)
        self._widen, self._narrow = block.ff.net[0].proj, block.ff.net[2]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
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
                **given,
            )
            return made
        first, second, third = self._norms
        own, x = self._own, hidden_states
        normed = F.layer_norm(x, *first)
        x = own.attend(normed, own.linear("to_k", normed), own.linear("to_v", normed)) + x
        if "gligen" in asked:
            x = self._fuser(x, asked["gligen"]["objs"])
        normed = F.layer_norm(x, *second)
        x = self._cross.attend(normed, self._keys(encoder_hidden_states), self._values(encoder_hidden_states)) + x
        wide, gate = F.linear(F.layer_norm(x, *third), self._widen.weight, self._widen.bias).chunk(2, dim=-1)
        return F.linear(wide * F.gelu(gate), self._narrow.weight, self._narrow.bias) + x


class _Attention:
    """An ``Attention``'s weights, and its work from keys and values on."""

    def __init__(self, attention: Attention) -> None:
        self.heads = attention.heads
        parts = {name: getattr(attention, name) for name in ("to_q", "to_k", "to_v")} | {"to_out": attention.to_out[0]}
        self._weights = {name: (part.weight, part.bias) for name, part in parts.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self._weights[name])

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows, width = x.shape[0], keys.shape[-1]
        queries, keys, values = (
            part.view(rows, -1, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.linear("to_q", x), keys, values)
        )
        found = F.scaled_dot_product_attention(queries, keys, values, dropout_p=0.0, is_causal=False)
        return self.linear("to_out", found.transpose(1, 2).reshape(rows, -1, width))


def fits(block: nn.Module) -> bool:
    """Whether a block is what SD and SDXL have, in evaluation, with nothing put into it (LoRA, adapters)."""
    if type(block) is not BasicTransformerBlock or block.training or torch.is_grad_enabled():
        return False
    plain = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
    norms = all(type(norm) is nn.LayerNorm for norm in _norms(block))
    feed_forward: Any = block.ff
    net = feed_forward.net
    wide = len(net) == 3 and type(net[0]) is GEGLU and type(net[0].proj) is nn.Linear and type(net[2]) is nn.Linear
    attentions = _is_plain(block.attn1) and _is_plain(block.attn2)
    return bool(
        plain
        and norms
        and wide
        and attentions
        and block._chunk_size is None
        and type(block.fuser) is GatedSelfAttention
    )


def _norms(block: BasicTransformerBlock) -> tuple[Any, Any, Any]:
    return block.norm1, block.norm2, block.norm3


def _is_plain(attention: Any) -> bool:
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
