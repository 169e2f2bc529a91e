"""GRID's loss (arXiv 2412.10718): flow matching on the whole grid, and on the change from a frame to the next.

With residuals r = prediction − target, cut into R × C cells:

    L = β · mean r² + α · mean (r[cell + 1] − r[cell])²

Both sides being linear, the second term is "the change of the predictions against the change of the targets".
"""

from typing import NamedTuple

import torch
from torch import Tensor

from atelier.errors import ConfigError

ALPHA = 0.1
"""Of the released training, constant; the paper lets it rise from stage to stage by a schedule it does not give."""
BETA = 1.0


class GridLoss(NamedTuple):
    """A loss a sample, [B] each: ``total`` is to go down."""

    total: Tensor
    base: Tensor
    flow: Tensor


def grid_loss(
    prediction: Tensor,
    target: Tensor,
    rows: int,
    columns: int,
    alpha: float = ALPHA,
    beta: float = BETA,
    wrap: bool = False,
    weights: Tensor | None = None,
) -> GridLoss:
    """The loss of latents' velocities, computed in float32.

    Args:
        prediction, target: [B, C, H, W].
        rows, columns: of the grid; 1 × 1 is a picture, which has no neighbours and no flow term.
        wrap: a row's last frame and the next row's first are neighbours too. True only where reading order is one
            sequence (a video). Off by default, as in the released training: in a grid of views a row is an elevation,
            whose end and the next one's beginning are no neighbours, and the loss cannot know which it has.
        weights: of the samples' losses, [B].

    Raises:
        ConfigError: the grid does not divide the latents.
    """
    residual = prediction.float() - target.float()
    base = residual.square().flatten(1).mean(1)
    cells = cut(residual, rows, columns)
    steps = (cells[:, 1:] - cells[:, :-1]) if wrap else _within_rows(cells, rows, columns)
    flow = steps.square().flatten(1).mean(1) if steps.numel() else torch.zeros_like(base)
    total = beta * base + alpha * flow
    return GridLoss(total if weights is None else weights * total, base, flow)


def cut(latents: Tensor, rows: int, columns: int) -> Tensor:
    """[B, C, H, W] → its cells in reading order [B, R · C, C, H/R, W/C].

    Raises:
        ConfigError: they do not divide it.
    """
    batch, channels, height, width = latents.shape
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ConfigError(
            f"a grid of {rows} × {columns} does not divide latents of {height} × {width}",
            "use pictures whose cells are whole: height a multiple of 16 · rows, width of 16 · columns (pixels)",
        )
    cells = latents.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels, height // rows, width // columns)


def _within_rows(cells: Tensor, rows: int, columns: int) -> Tensor:
    lines = cells.unflatten(1, (rows, columns))
    return lines[:, :, 1:] - lines[:, :, :-1]
