"""The layers that stand between a block's self- and cross-attention (arXiv 2409.04847): each region reads its own text.

Upstream attends from every visual token to each of 30 regions' 77 tokens and masks 29 of the 30 answers away. Here
queries, keys and values are computed once, and one masked attention lets a query see its own region's tokens alone: the
same function (``tests/parity``) for a small part of the work.

Parameter names and shapes are the released checkpoints'. Every last layer starts at zero, so that a fresh fuser is the
identity.
"""

import torch
from torch import Tensor, nn

from atelier.models.attention import attend
from atelier.models.regional.grounding import Grounding, LevelMask


class RegionAttention(nn.Module):
    """Multi-head attention of visual tokens over others under a mask; q, k and v have no bias."""

    def __init__(self, query_dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        out = nn.Linear(inner, query_dim)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        self.to_out = nn.ModuleList([out])

    def forward(self, x: Tensor, context: Tensor, mask: LevelMask) -> Tensor:
        """x [B, L, query_dim], context [B, K, context_dim] → [B, L, query_dim]."""
        rows = x.shape[0]

        # Rows and tokens in one axis: else torch lays every matrix product out anew, there and back.
        def split(made: Tensor) -> Tensor:
            return made.view(rows, -1, self.heads, made.shape[-1] // self.heads).transpose(1, 2)

        queries = x.flatten(0, 1)
        # The context as it was given: a sampling run knows the tensor again and keeps its keys and values.
        keys, values = self.to_k(context), self.to_v(context)
        found = attend(split(self.to_q(queries)), split(keys), split(values), mask.scores)
        out: Tensor = self.to_out[0](found.transpose(1, 2).reshape(len(queries), -1))
        return out.unflatten(0, (rows, -1))


class RegionalCrossAttention(nn.Module):
    """Every visual token reads its region's tokens (upstream's ``ca``).

    ``x + attn(x, its region's tokens)`` where a cell has a region, else ``x + null_text_feat``. x is not normed.
    A sample that is not grounded (``Grounding.grounded``) stays x, as in every fuser here.

    Args:
        query_dim: width of the visual tokens.
        context_dim: width of the region tokens.
        heads, head_dim: those of the host block.
    """

    def __init__(self, query_dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.attn = RegionAttention(query_dim, context_dim, heads, head_dim)
        self.null_text_feat = nn.Parameter(torch.zeros(query_dim))

    def forward(self, x: Tensor, objs: Grounding) -> Tensor:
        """x [B, L, query_dim] → [B, L, query_dim].

        Raises:
            ValueError: the map of cells has no level of L tokens.
        """
        mask = objs.token_mask(x.shape[1])
        read = self.attn(x, objs.tokens, mask)
        return objs.applied(x, x + torch.where(mask.covered, read, self.null_text_feat.to(read.dtype)))


class RegionalCrossAndSelfAttention(RegionalCrossAttention):
    """After that, every visual token reads the visual tokens of its region's boxes (upstream's ``casa``).

    ``y + self_attn(y, the union of its region's boxes)``; a background token reads the whole picture.
    """

    def __init__(self, query_dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__(query_dim, context_dim, heads, head_dim)
        self.self_attn = RegionAttention(query_dim, query_dim, heads, head_dim)

    def forward(self, x: Tensor, objs: Grounding) -> Tensor:
        """As the base class.

        Raises:
            ValueError: as the base class; also where ``objs`` has no unions.
        """
        y = super().forward(x, objs)
        return objs.applied(y, y + _where_covered(self.self_attn, y, y, objs.union_mask(x.shape[1])))


class InstDiffSelfAttention(nn.Module):
    """The ablation after InstanceDiffusion: self-attention with a region's one pooled token among the keys.

    ``x + self_attn(x, [the union of its region's boxes, its region's token])``.

    Args:
        query_dim, context_dim, heads, head_dim: as ``RegionalCrossAttention``'s.
    """

    def __init__(self, query_dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.text_linear = nn.Sequential(nn.Linear(context_dim, query_dim), nn.SiLU(), nn.Linear(query_dim, query_dim))
        self.self_attn = RegionAttention(query_dim, query_dim, heads, head_dim)
        # Released with the checkpoints; nothing reads it.
        self.null_text_feat = nn.Parameter(torch.zeros(context_dim))

    def forward(self, x: Tensor, objs: Grounding) -> Tensor:
        """x [B, L, query_dim] → [B, L, query_dim]; ``objs`` has one token a region (``tokens.pooled_tokens``).

        Raises:
            ValueError: the map of cells has no level of L tokens, or ``objs`` has no unions.
        """
        context = torch.cat((x, self.text_linear(objs.tokens)), dim=1)
        return objs.applied(x, x + _where_covered(self.self_attn, x, context, objs.joint_mask(x.shape[1])))


def _where_covered(attention: RegionAttention, x: Tensor, context: Tensor, mask: LevelMask) -> Tensor:
    read = attention(x, context, mask)
    return torch.where(mask.covered, read, read.new_zeros(()))
