"""Regional cross-attention as its published code computes it, on the same weights: what ours is measured against.

By the description of that code, not from it: a picture has 30 slots of 77 tokens, all go through the position net,
every visual token attends to every slot in a batch of its own through diffusers' attention, and of the 30 answers the
masks, resized in each layer anew, leave one.
"""

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.models.fourier import fourier_embedding
from atelier.models.regional.fusers import RegionalCrossAttention
from atelier.models.regional.position_net import RegionTextNet


class PlainFuser(nn.Module):
    """A fuser that attends to all slots; its parameters are those of ``own``."""

    def __init__(self, own: RegionalCrossAttention) -> None:
        super().__init__()
        attn = own.attn
        inner, query_dim = attn.to_q.weight.shape
        self.attn = Attention(query_dim, attn.to_k.in_features, heads=attn.heads, dim_head=inner // attn.heads)
        self.attn.to_q, self.attn.to_k, self.attn.to_v = attn.to_q, attn.to_k, attn.to_v
        self.attn.to_out[0] = attn.to_out[0]
        self.null_text_feat = own.null_text_feat

    def forward(self, x: Tensor, text: Tensor, dense: dict[str, Tensor]) -> Tensor:
        """x [B, L, C], text [B, n, 77, D] → [B, L, C]."""
        rows, length, width = x.shape
        slots, side = text.shape[1], int(length**0.5)
        masks = F.interpolate(dense["reorg_masks"], (side, side)).reshape(rows, slots, length, 1)
        repeated = x[:, None].expand(-1, slots, -1, -1).reshape(rows * slots, length, width)
        bias = dense["cross_attention_mask"].flatten(0, 1)[:, None]
        read = self.attn(repeated, text.flatten(0, 1), bias).reshape(rows, slots, length, width)
        return x + (read * masks).sum(1) + (1 - masks.sum(1)) * self.null_text_feat


class PlainNet(nn.Module):
    """A position net over all slots' tokens; its parameters are those of ``own``."""

    def __init__(self, own: RegionTextNet) -> None:
        super().__init__()
        self.own = own

    def forward(self, dense: dict[str, Tensor]) -> Tensor:
        """Tokens [B, n, 77, C]."""
        position = fourier_embedding(dense["bbox_embeddings"], self.own.frequencies)
        keep = dense["object_masks"][..., None, None]
        features = torch.cat((dense["text_embeddings"], position), dim=-1)
        tokens: Tensor = self.own.linears(features * keep + (1 - keep) * self.own.null_text_feature)
        return tokens
