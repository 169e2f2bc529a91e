"""The image tower of CrossFlow's contrastive loss: a vision transformer with attention pooling, as SigLIP's.

It is trained with the rest and left out of exports: sampling does not need it.
"""

import math

import torch
from torch import Tensor, nn

from atelier.models.crossflow.dit import Attention, Mlp, PatchEmbed

EPS = 1e-6


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden, approximate="none")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class _AttentionPool(nn.Module):
    """One learned query over all tokens, then an MLP."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden, approximate="none")
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, d] → [B, d]."""
        query = self.q(self.latent).expand(x.shape[0], -1, -1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        pooled = self.proj(attended.transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class VisionTransformer(nn.Module):
    """Pictures [B, C, H, H] → [B, width]; parameter names as timm's."""

    def __init__(self, channels: int, image_size: int, patch: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        places, hidden = (image_size // patch) ** 2, 4 * width
        self.pos_embed = nn.Parameter(torch.randn(1, places, width) * 0.02)
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.blocks = nn.ModuleList(_Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.attn_pool = _AttentionPool(width, heads, hidden)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        pooled: Tensor = self.attn_pool(self.norm(tokens))
        return pooled


class ImageTower(nn.Module):
    """The transformer and the temperature of the contrastive loss.

    Args:
        channels: 3 for pixels in [-1, 1]; a latent's for a tower that reads latents.
        image_size: side of what it reads; other sizes are resized.
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 256,
        patch: int = 16,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
    ) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.visual = nn.ModuleDict({"trunk": VisionTransformer(channels, image_size, patch, width, layers, heads)})
        self.image_size = image_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, C, H, H] → (features [B, width], not normalised; the raw ``logit_scale``)."""
        size = self.image_size
        if images.shape[-1] != size:
            images = nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        return self.visual["trunk"](images), self.logit_scale
