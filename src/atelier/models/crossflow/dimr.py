"""CrossFlow's DiMR (arXiv 2406.09416): stages from low to high resolution, each seeing the whole latent.

A transformer works at the lowest resolution, ConvNeXt blocks at the others. The time enters through norms alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atelier.errors import ConfigError
from atelier.models.crossflow.flow import check_latent
from atelier.models.crossflow.norms import TimeDependentLayerNorm, TimeDependentRMSNorm


@dataclass(frozen=True)
class Stage:
    """One resolution of DiMR, by the fields of a released configuration.

    Attributes:
        num_blocks: rounded down to an odd number: as many down as up and one between.
        max_height, max_width: the stage's grid.
        input_feature_ratio: pixels of the latent a token, each way.
        num_attention_heads: of a TransformerBlock; kernel_size: of a ConvNeXtBlock.
    """

    block_type: str
    dim: int
    hidden_dim: int
    num_blocks: int
    max_height: int
    max_width: int
    input_feature_ratio: int
    num_attention_heads: int = 0
    kernel_size: int = 7
    image_input_ratio: int = 1
    final_kernel_size: int = 3
    dropout_prob: float = 0.0

    def __post_init__(self) -> None:
        if self.block_type not in ("TransformerBlock", "ConvNeXtBlock"):
            raise ConfigError(
                f"DiMR has no blocks of type {self.block_type!r}", "use TransformerBlock or ConvNeXtBlock"
            )
        if self.image_input_ratio != 1 or self.dropout_prob:
            raise ConfigError("a DiMR stage has image_input_ratio 1 and no dropout", "as every released configuration")

    @property
    def half(self) -> int:
        """Blocks on the way down, and as many on the way up."""
        return self.num_blocks // 2

    @property
    def states(self) -> int:
        """Hidden states handed to the next stage: the input and every block's output."""
        return 2 * self.half + 2


class PositionTable(nn.Module):
    """A learned vector for every place of the grid."""

    def __init__(self, places: int, dim: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(places, dim)
        nn.init.normal_(self.position_embeddings.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, N, d] → [B, N, d]."""
        return tokens + self.position_embeddings.weight


class PixelShuffle(nn.Module):
    """A linear layer whose outputs are the r × r tokens that one token becomes."""

    def __init__(self, width: int, dim: int, ratio: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(width, dim * ratio * ratio)
        self.ratio = ratio

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens [B, height · width, d] → [B, r² · height · width, dim]."""
        r = self.ratio
        blocks = self.kernel(tokens).unflatten(1, (height, width)).unflatten(-1, (r, r, -1))
        upsampled: Tensor = blocks.transpose(2, 3).flatten(1, 4)
        return upsampled


class SelfAttention(nn.Module):
    """x + attention(norm x)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = TimeDependentRMSNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.dense = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, d]."""
        q, k, v = (
            self.query_key_value(self.norm(x, tau)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.dense(attended.transpose(1, 2).flatten(2))


class DepthwiseConvolution(nn.Module):
    """x + depthwise convolution of x over the grid."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        # Named as in released checkpoints, where a reshape comes first.
        self.add_module("1", nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x [B, H · W, d] → [B, H · W, d]."""
        image = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return x + self.get_submodule("1")(image).permute(0, 2, 3, 1).flatten(1, 2)


class GatedMlp(nn.Module):
    """x + w2(GELU(w0 norm x) · w1 norm x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = TimeDependentRMSNorm(dim)
        self.w0 = nn.Linear(dim, hidden)
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, d]."""
        normed = self.norm(x, tau)
        return x + self.w2(nn.functional.gelu(self.w0(normed)) * self.w1(normed))


class TransformerBlock(nn.Module):
    """Attention, then the MLP."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.block1 = SelfAttention(stage.dim, stage.num_attention_heads)
        self.block2 = GatedMlp(stage.dim, stage.hidden_dim)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, d]."""
        mixed: Tensor = self.block2(self.block1(x, tau), tau)
        return mixed


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then the MLP."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.block1 = DepthwiseConvolution(stage.dim, stage.kernel_size)
        self.block2 = GatedMlp(stage.dim, stage.hidden_dim)
        self.grid = (stage.max_height, stage.max_width)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, d]."""
        mixed: Tensor = self.block2(self.block1(x, *self.grid), tau)
        return mixed


def _start_small(blocks: nn.ModuleList) -> None:
    """Residual branches begin small: the sum over many blocks then begins with the variance of one."""
    scale = (2 * len(blocks)) ** -0.5
    with torch.no_grad():
        for block in blocks:
            for name, layer in block.named_modules():
                if name in ("block1.dense", "block2.w2"):
                    assert isinstance(layer, nn.Linear)
                    layer.weight.mul_(scale)
                    layer.bias.zero_()


class StageNetwork(nn.Module):
    """A U-shaped stack of blocks at one resolution.

    Args:
        channels: of the latent.
        lower: the stage before, whose hidden states come in; None for the first.
    """

    def __init__(self, stage: Stage, channels: int, lower: Stage | None) -> None:
        super().__init__()
        dim, ratio = stage.dim, stage.input_feature_ratio
        places = stage.max_height * stage.max_width
        self.stage, self.lower = stage, lower
        self.gradient_checkpointing = False
        if stage.block_type == "TransformerBlock":
            # One more token, the same in every channel, says whether the image belongs to the text.
            self.tensor_true = nn.Parameter(torch.full((1,), -1.0))
            self.tensor_false = nn.Parameter(torch.full((1,), 1.0))
        # Numbered as in released checkpoints, where the missing numbers are reshapes.
        self.input_layer = nn.ModuleDict({"1": nn.Conv2d(channels, dim, ratio, ratio), "3": PositionTable(places, dim)})
        if lower is not None:
            width = lower.states * lower.dim
            self.upsample = nn.ModuleList(
                [
                    TimeDependentLayerNorm(width),
                    PixelShuffle(width, dim, stage.max_height // lower.max_height),
                    TimeDependentLayerNorm(dim),
                ]
            )
        block = TransformerBlock if stage.block_type == "TransformerBlock" else ConvNeXtBlock
        self.blocks = nn.ModuleList(block(stage) for _ in range(2 * stage.half + 1))
        _start_small(self.blocks)
        self.skip_denses = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(stage.half))
        kernel = stage.final_kernel_size
        self.output_layer = nn.ModuleDict(
            {"0": TimeDependentLayerNorm(dim), "2": nn.Conv2d(dim, channels, kernel, padding=kernel // 2)}
        )

    def forward(self, x: Tensor, tau: Tensor, null: Tensor | None, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The velocity at this resolution [B, C, H, W], and the hidden states [B, N, d] for the next one.

        Args:
            x: the latents at full resolution.
            states: of the stage before.
        """
        tokens = self.input_layer["3"](self.input_layer["1"](x).flatten(2).transpose(1, 2))
        if self.lower is not None:
            norm, shuffle, norm_after = self.upsample
            low = norm(torch.cat(states, dim=-1), tau)
            tokens = tokens + norm_after(shuffle(low, self.lower.max_height, self.lower.max_width), tau)
        added = 0
        if null is not None and self.stage.block_type == "TransformerBlock":
            added = 1
            value = torch.where(null, self.tensor_true, self.tensor_false)[:, None, None]
            tokens = torch.cat([value.expand(-1, 1, tokens.shape[-1]).to(tokens.dtype), tokens], dim=1)
        every, half = [tokens], self.stage.half
        for number, block in enumerate(self.blocks):
            if number > half:
                skipped = every[2 * half + 1 - number]
                tokens = self.skip_denses[number - half - 1](torch.cat([tokens, skipped], dim=-1))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, tau, use_reentrant=False)
            else:
                tokens = block(tokens, tau)
            every.append(tokens)
        every = [state[:, added:] for state in every] if added else every
        normed = self.output_layer["0"](every[-1], tau)
        image = normed.unflatten(1, (self.stage.max_height, self.stage.max_width)).permute(0, 3, 1, 2)
        return self.output_layer["2"](image), every


class CrossFlowDiMR(ModelMixin, ConfigMixin):
    """The velocity at (x, t) by stages of growing resolution.

    Args:
        stage_configs: fields of ``Stage`` for each, from the lowest resolution to the latent's.
        loss_coeffs: the weight of each stage's loss.
        norm_type, pe_type, block_grad_to_lowres: as released; other values are refused.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        channels: int = 4,
        stage_configs: list[dict[str, Any]] | None = None,
        loss_coeffs: list[float] | None = None,
        norm_type: str = "TDRMSN",
        pe_type: str = "APE",
        block_grad_to_lowres: bool = False,
    ) -> None:
        super().__init__()
        if (norm_type, pe_type, block_grad_to_lowres) != ("TDRMSN", "APE", False):
            raise ConfigError(
                f"DiMR with {norm_type} norms, {pe_type} positions and block_grad_to_lowres {block_grad_to_lowres}",
                "use TDRMSN, APE and False, as every released configuration",
            )
        stages = [Stage(**fields) for fields in stage_configs or []]
        if not stages or (loss_coeffs is not None and len(loss_coeffs) != len(stages)):
            raise ConfigError("DiMR needs at least one stage, and a loss coefficient for each", "correct stage_configs")
        last = stages[-1]
        ratio = last.input_feature_ratio
        self.latent_shape = (channels, last.max_height * ratio, last.max_width * ratio)
        self.loss_coeffs = tuple(loss_coeffs or [1.0] * len(stages))
        self.stages = nn.ModuleList(
            StageNetwork(stage, channels, stages[number - 1] if number else None) for number, stage in enumerate(stages)
        )

    def forward(self, x: Tensor, t: Tensor, null: Tensor | None = None) -> list[Tensor]:
        """Velocities from the lowest resolution to the latent's; see ``flow.FlowNetwork``."""
        check_latent(x, self.latent_shape)
        # log SNR = 4 − 8 t, and the norms take a quarter of it.
        tau = 1 - 2 * t.float()
        outputs: list[Tensor] = []
        states: list[Tensor] = []
        for stage in self.stages:
            output, states = stage(x, tau, null, states)
            outputs.append(output)
        return outputs
