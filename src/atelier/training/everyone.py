"""Rows of all processes, with gradients that find their way back."""

from typing import Any

import torch
from torch import Tensor, distributed


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on these rows: the sum of all their gradients comes home.
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        begin = distributed.get_rank() * ctx.count
        return total[begin : begin + ctx.count]


def all_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows [B, …] of every process as [world · B, …], and where this process's begin.

    Collective; every process has as many rows. With one process, or outside of a training, they are the rows given.
    The gradient is that of the sum of all processes' losses, so that the engine's mean over processes is that of the
    mean loss.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows, 0
    gathered: Tensor = _AllRows.apply(rows)
    return gathered, distributed.get_rank() * len(rows)
