"""CrossFlow's variational text encoder: a prompt's embedding to the latent that the flow starts from."""

from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from atelier.models.crossflow.heads import Adaptor, needs_adaptor
from atelier.models.crossflow.norms import SampleLayerNorm

T5_WIDTH, COMPRESSED = 4096, 1024


class Posterior(NamedTuple):
    """The distribution of a prompt's latent, float32 [B, C·H·W] each."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + exp(log_var / 2) · noise."""
        return self.mean + torch.exp(0.5 * self.log_var) * noise

    def clamped(self, low: float, high: float) -> "Posterior":
        """The same with its log-variance in [low, high], so that no step can make it infinite."""
        return Posterior(self.mean, self.log_var.clamp(low, high))


class Compressor(nn.Module):
    """T5's wide embedding to what the layers work on."""

    def __init__(self, width: int, compressed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, compressed)
        self.ln_fc1 = nn.LayerNorm(compressed)
        self.fc2 = nn.Linear(compressed, compressed)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width] → [B, T, compressed]."""
        hidden: Tensor = self.fc2(self.ln_fc1(self.fc1(x)).relu())
        return hidden


class SelfAttention(nn.Module):
    """Multi-head self-attention over the tokens that the mask leaves."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.W_Q = nn.Linear(dim, dim)
        self.W_K = nn.Linear(dim, dim)
        self.W_V = nn.Linear(dim, dim)
        self.W_O = nn.Linear(dim, dim)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, T, d]; bias [B, 1, 1, T], added to the scores."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.W_Q, self.W_K, self.W_V)
        )
        dropout = self.dropout if self.training else 0.0
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        output: Tensor = self.W_O(attended.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.ffn_1 = nn.Linear(dim, hidden)
        self.ffn_2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, d] → [B, T, d]."""
        output: Tensor = self.ffn_2(self.dropout(self.ffn_1(x).relu()))
        return output


class EncoderLayer(nn.Module):
    """A post-norm transformer layer, and for ``halved`` a projection to half its width."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, halved: bool = False) -> None:
        super().__init__()
        self.attn = SelfAttention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.norm1 = SampleLayerNorm(dim)
        self.norm2 = SampleLayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.reduction = nn.Linear(dim, dim // 2) if halved else None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, T, d] → [B, T, d or d / 2]."""
        x = self.norm1(x + self.dropout(self.attn(x, bias)))
        x = self.norm2(x + self.dropout(self.feed_forward(x)))
        return x if self.reduction is None else self.reduction(x)


class CrossFlowTextEncoder(ModelMixin, ConfigMixin):
    """A text's embedding [B, T, d] and mask [B, T] → the posterior of its latent.

    Padded tokens are no keys, but they are rows like the others: all T are flattened into the head.

    Args:
        width: d; 4096 (T5-XXL) passes a ``Compressor`` first.
        tokens: T.
        latent_shape: [C, H, W] of the image's latent.
        num_layers, num_reductions: layers at full width, and layers that halve it.
        zero_padding: padded places enter as zeros, so that they need not be stored; released models read there what
            the language model makes of its own padding.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 768,
        tokens: int = 77,
        latent_shape: tuple[int, ...] = (4, 32, 32),
        num_layers: int = 11,
        num_heads: int = 8,
        hidden: int = 1024,
        num_reductions: int = 3,
        dropout: float = 0.1,
        zero_padding: bool = False,
    ) -> None:
        super().__init__()
        dim = COMPRESSED if width == T5_WIDTH else width
        self.compressor = Compressor(width, dim) if width == T5_WIDTH else None
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, hidden, dropout) for _ in range(num_layers))
        self.reduction_layers = nn.ModuleList(
            EncoderLayer(dim >> halvings, num_heads, hidden, dropout, halved=True) for halvings in range(num_reductions)
        )
        flat, size = tokens * (dim >> num_reductions), 2 * torch.Size(latent_shape).numel()
        if needs_adaptor(size):
            self.adaptor = Adaptor(flat, size)
        else:
            self.linear = nn.Linear(flat, size)

    def hidden_states(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens after the layers [B, T, d] and after the reductions [B, T, d / 2^reductions]."""
        if self.config.zero_padding:
            text = text * (mask != 0).to(text.dtype)[..., None]
        x = text if self.compressor is None else self.compressor(text)
        # A finite score: a text of no token attends evenly, where minus infinity would give NaN.
        masked = -1e4 if x.dtype == torch.float16 else -1e9
        bias = ((mask == 0).to(x.dtype) * masked)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        whole = x
        for layer in self.reduction_layers:
            x = layer(x, bias)
        return whole, x

    def forward(self, text: Tensor, mask: Tensor) -> Posterior:
        """text [B, T, d]; mask [B, T], 1 where there is a token."""
        _, reduced = self.hidden_states(text, mask)
        head = self.adaptor if hasattr(self, "adaptor") else self.linear
        mean, log_var = head(reduced.flatten(1)).float().chunk(2, dim=-1)
        return Posterior(mean, log_var)
