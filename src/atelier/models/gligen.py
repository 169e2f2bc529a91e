"""GLIGEN's two layers (arXiv 2301.07093): the gated self-attention and the grounding token network.

Parameter names and shapes are those of the released checkpoints (original ldm and diffusers agree on the leaf
names), so that weights move between the three without renaming.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.models.attention import attend
from atelier.models.fourier import fourier_embedding


class ScaledTokens(NamedTuple):
    """Grounding tokens with the strength at which the fusers take them in.

    They travel where plain tokens travel, so a strength a step (the original's ``alpha_type``) needs nothing that is
    switched on a module and could be left switched.

    Attributes:
        tokens: [B, N, context_dim].
        scale: multiplies tanh of both gates; 1 is the trained layer, 0 the identity. A number, or a row a sample
            [B, 1, 1].
    """

    tokens: Tensor
    scale: float | Tensor


class GatedGEGLU(nn.Module):
    """Linear to twice the width, one half gating the other through the exact (erf) GELU."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward of expansion 4; the middle slot is where the released layout has its dropout."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        self.net = nn.ModuleList([GatedGEGLU(dim, dim * expansion), nn.Identity(), nn.Linear(dim * expansion, dim)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TokenAttention(nn.Module):
    """Multi-head attention of some tokens over all tokens; q, k and v have no bias."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def forward(self, queries: Tensor, tokens: Tensor, rows: int) -> Tensor:
        """queries [B * Q, dim], tokens [B * T, dim] of B ``rows`` → [B * Q, dim]."""

        def split(x: Tensor) -> Tensor:
            return x.view(rows, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)

        y = attend(split(self.to_q(queries)), split(self.to_k(tokens)), split(self.to_v(tokens)))
        return self.to_out[0](y.transpose(1, 2).reshape(len(queries), -1))


class GatedSelfAttention(nn.Module):
    """The layer GLIGEN puts between a block's self- and cross-attention (equation 8 of the paper).

    ``x += tanh(alpha_attn) * attn(norm1([x, linear(objs)]))[:, :len(x)]`` and
    ``x += tanh(alpha_dense) * ff(norm2(x))``. Both gates start at 0, so a fresh layer is the identity.

    Only the visual tokens' queries are computed: the rows of the grounding tokens are thrown away by the equation.

    Args:
        query_dim: width of the visual tokens.
        context_dim: width of the grounding tokens.
        heads, head_dim: those of the host block.
    """

    def __init__(self, query_dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim, query_dim)
        self.attn = TokenAttention(query_dim, heads, head_dim)
        self.ff = FeedForward(query_dim)
        self.norm1 = nn.LayerNorm(query_dim)
        self.norm2 = nn.LayerNorm(query_dim)
        self.alpha_attn = nn.Parameter(torch.tensor(0.0))
        self.alpha_dense = nn.Parameter(torch.tensor(0.0))
        self.enabled = True

    def attend(self, x: Tensor, objs: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """The first gated residual: x [B, V, query_dim] attends to itself and objs [B, N, context_dim]."""
        rows = x.shape[0]
        # Rows and tokens in one axis: else torch lays every matrix product out anew, there and back.
        visual, grounding = self.norm1(x.flatten(0, 1)), self.norm1(self.linear(objs))
        tokens = torch.cat((visual.unflatten(0, (rows, -1)), grounding), dim=1).flatten(0, 1)
        attended = self.attn(visual, tokens, rows).unflatten(0, (rows, -1))
        return x + self._gate(self.alpha_attn, scale) * attended

    @staticmethod
    def _gate(alpha: Tensor, scale: float | Tensor) -> Tensor:
        return alpha.tanh() if isinstance(scale, float) and scale == 1 else scale * alpha.tanh()

    def forward(self, x: Tensor, objs: Tensor | ScaledTokens) -> Tensor:
        """x [B, V, query_dim], objs [B, N, context_dim] → [B, V, query_dim]."""
        if not self.enabled:
            return x
        tokens, scale = objs if isinstance(objs, ScaledTokens) else (objs, 1.0)
        x = self.attend(x, tokens, scale)
        return x + self._gate(self.alpha_dense, scale) * self.ff(self.norm2(x))


class PositionNet(nn.Module):
    """Grounding tokens from boxes and phrase embeddings (GLIGEN, equation 5).

    A masked slot becomes the learnt null token whatever its box and embedding hold.

    Args:
        positive_len: width of a phrase embedding.
        out_dim: width of a grounding token (the UNet's cross_attention_dim).
        frequencies: Fourier frequencies a coordinate.
        hidden: width of the two hidden layers (512 in every released model).
    """

    def __init__(self, positive_len: int, out_dim: int, frequencies: int = 8, hidden: int = 512) -> None:
        super().__init__()
        self.frequencies = frequencies
        position_dim = frequencies * 2 * 4
        self.linears = nn.Sequential(
            nn.Linear(positive_len + position_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, out_dim),
        )
        self.null_positive_feature = nn.Parameter(torch.zeros(positive_len))
        self.null_position_feature = nn.Parameter(torch.zeros(position_dim))

    def forward(
        self,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        positive_embeddings: Tensor | None = None,
        objs: Tensor | ScaledTokens | None = None,
    ) -> Tensor | ScaledTokens:
        """Grounding tokens [B, N, out_dim].

        Args:
            boxes: [B, N, 4] normalised xyxy.
            masks: [B, N]; 1 keeps a slot, 0 makes it the null token.
            positive_embeddings: [B, N, positive_len].
            objs: tokens computed before; returned as they are, so that a sampler computes them once a run and
                passes them through the UNet's own ``cross_attention_kwargs["gligen"]``.
        """
        if objs is not None:
            return objs
        if boxes is None or masks is None or positive_embeddings is None:
            raise ValueError("PositionNet needs boxes, masks and positive_embeddings, or objs computed before")
        keep = masks.unsqueeze(-1).to(positive_embeddings.dtype)
        text = positive_embeddings * keep + (1 - keep) * self.null_positive_feature
        position = fourier_embedding(boxes, self.frequencies).to(text.dtype)
        position = position * keep + (1 - keep) * self.null_position_feature
        return self.linears(torch.cat((text, position), dim=-1).to(self.null_positive_feature.dtype))
