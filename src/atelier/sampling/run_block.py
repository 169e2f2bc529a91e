"""A transformer block for one sampling run: a prompt's keys and values are computed once.

The results are the block's to the last bit, so attention is torch's own, as in diffusers.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.models.lean_block import LeanBlock, is_plain
from atelier.sampling.remembered import Remembered


class RunBlock(LeanBlock):
    """Answers for a block of which ``fits`` is true.

    Args:
        block: left as it is.
        fuser: what stands in its fuser's place for this run.
    """

    def __init__(self, block: BasicTransformerBlock, fuser: nn.Module) -> None:
        super().__init__(block, fuser, F.scaled_dot_product_attention)
        self._keys, self._values = Remembered(block.attn2.to_k), Remembered(block.attn2.to_v)

    def text(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """As ``LeanBlock.text``, of the same states the same tensors."""
        return self._keys(states), self._values(states)


def fits(block: nn.Module) -> bool:
    """Whether a block is plain, and in evaluation."""
    return not block.training and not torch.is_grad_enabled() and is_plain(block)
