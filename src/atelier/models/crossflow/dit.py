"""CrossFlow's DiT: a diffusion transformer (arXiv 2212.09748) that predicts the velocity from text to image."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atelier.models.crossflow.flow import check_latent


def sin_cos_table(dim: int, grid: int) -> Tensor:
    """Fixed 2-D position table [1, grid², dim]: the first half by column, the second by row, each [sin, cos]."""
    omega = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    line = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    by_column, by_row = line[None].expand(grid, -1, -1), line[:, None].expand(-1, grid, -1)
    return torch.cat([by_column, by_row], dim=-1).reshape(1, grid * grid, dim)


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → [B, H · W / patch², dim]."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class TimeEmbedder(nn.Module):
    """The time t ∈ [0, 1] (not scaled by 1000) through 256 [cos, sin] features and a small MLP."""

    FEATURES, MAX_PERIOD = 256, 10000

    def __init__(self, dim: int) -> None:
        super().__init__()
        first, last = nn.Linear(self.FEATURES, dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)
        nn.init.normal_(first.weight, std=0.02)
        nn.init.normal_(last.weight, std=0.02)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t [B] → [B, dim]."""
        half = self.FEATURES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t.float()[:, None] * torch.exp(-math.log(self.MAX_PERIOD) * exponents)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedded


class IndicatorEmbedder(nn.Module):
    """One learned vector for conditional (0) and one for null (1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(2, dim)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, null: Tensor) -> Tensor:
        """null bool [B] → [B, dim]."""
        embedded: Tensor = self.embedding_table(null.long())
        return embedded


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        output: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return output


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, approximate: str = "tanh") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] → [..., d]."""
        output: Tensor = self.fc2(self.act(self.fc1(x)))
        return output


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, shifted and scaled by the condition."""
    normed = nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


class Block(nn.Module):
    """A transformer block under adaLN-Zero."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(dim, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, N, d]; condition [B, d]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(_modulated(x, shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(_modulated(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    """adaLN and a linear layer to the pixels of a patch."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, outputs]."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        output: Tensor = self.linear(_modulated(x, shift, scale))
        return output


class CrossFlowDiT(ModelMixin, ConfigMixin):
    """The velocity at (x, t) as one transformer; ``DiT-H/2`` by default.

    Args:
        latent_size: side of the square latent.
        patch_size: side of a token's patch.
    """

    _supports_gradient_checkpointing = True
    loss_coeffs = (1.0,)

    @register_to_config
    def __init__(
        self,
        latent_size: int = 64,
        channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 1280,
        depth: int = 36,
        num_heads: int = 20,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        grid = latent_size // patch_size
        self.latent_shape = (channels, latent_size, latent_size)
        self.gradient_checkpointing = False
        # A parameter and not a buffer: released checkpoints hold it.
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, hidden_size), requires_grad=False)
        self.x_embedder = PatchEmbed(channels, hidden_size, patch_size)
        self.t_embedder = TimeEmbedder(hidden_size)
        self.y_embedder = IndicatorEmbedder(hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * channels)
        self._initialise(hidden_size, grid)

    def _initialise(self, dim: int, grid: int) -> None:
        """DiT's own start: every block and the output begin as nothing (adaLN-Zero)."""
        with torch.no_grad():
            if not self.pos_embed.is_meta:
                self.pos_embed.copy_(sin_cos_table(dim, grid))
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear) or name.startswith("t_embedder."):
                continue
            if "adaLN_modulation" in name or name == "final_layer.linear":
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor, null: Tensor | None = None) -> list[Tensor]:
        """The velocity, in a list of one; see ``flow.FlowNetwork``."""
        check_latent(x, self.latent_shape)
        condition = self.condition(t, null, x.shape[0])
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, use_reentrant=False)
            else:
                tokens = block(tokens, condition)
        patch, grid = self.config.patch_size, x.shape[-1] // self.config.patch_size
        pixels = self.final_layer(tokens, condition).unflatten(1, (grid, grid)).unflatten(-1, (patch, patch, -1))
        return [pixels.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)]

    def condition(self, t: Tensor, null: Tensor | None, batch: int) -> Tensor:
        """[B, dim]: time plus indicator."""
        if null is None:
            null = torch.zeros(batch, dtype=torch.bool, device=t.device)
        condition: Tensor = self.t_embedder(t) + self.y_embedder(null)
        return condition
