"""GRID's loss, against its definition in words, frame by frame."""

import pytest
import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.recipes.grid_loss import cut, grid_loss


def _by_frames(prediction: Tensor, target: Tensor, rows: int, columns: int, wrap: bool) -> Tensor:
    """The change from a frame to the next, one pair after the other."""
    height, width = prediction.shape[2] // rows, prediction.shape[3] // columns

    def cell(of: Tensor, number: int) -> Tensor:
        top, left = number // columns * height, number % columns * width
        return of[:, :, top : top + height, left : left + width]

    errors = []
    for number in range(rows * columns - 1):
        if wrap or (number + 1) % columns:
            predicted = cell(prediction, number + 1) - cell(prediction, number)
            wanted = cell(target, number + 1) - cell(target, number)
            errors.append((predicted - wanted).square().flatten(1).mean(1))
    return torch.stack(errors).mean(0)


@pytest.mark.parametrize("shape", [(4, 6), (1, 6), (4, 2), (2, 3)])
@pytest.mark.parametrize("wrap", [False, True])
def test_the_loss_is_what_it_says(shape: tuple[int, int], wrap: bool) -> None:
    prediction, target = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    found = grid_loss(prediction, target, *shape, alpha=0.3, beta=0.7, wrap=wrap)
    base = (prediction - target).square().mean((1, 2, 3))
    flow = _by_frames(prediction, target, *shape, wrap)
    torch.testing.assert_close(found.base, base)
    torch.testing.assert_close(found.flow, flow)
    torch.testing.assert_close(found.total, 0.7 * base + 0.3 * flow)


def test_an_error_that_all_frames_share_is_no_flow() -> None:
    target = torch.randn(1, 4, 8, 12)
    assert float(grid_loss(target + 1, target, 4, 6).flow) == pytest.approx(0, abs=1e-10)


def test_only_a_wrap_sees_the_next_row() -> None:
    target, prediction = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    prediction[:, :, 1] = 1  # the second row is wrong, evenly
    assert float(grid_loss(prediction, target, 2, 2).flow) == 0
    assert float(grid_loss(prediction, target, 2, 2, wrap=True).flow) == pytest.approx(1 / 3)


def test_a_picture_has_no_flow() -> None:
    found = grid_loss(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), 1, 1)
    assert not found.flow.any()
    assert torch.equal(found.total, found.base)
    assert not grid_loss(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), 4, 1).flow.any()


def test_weights_are_a_samples_own() -> None:
    prediction, target = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    plain = grid_loss(prediction, target, 4, 6).total
    weighed = grid_loss(prediction, target, 4, 6, weights=torch.tensor([2.0, 0.0])).total
    torch.testing.assert_close(weighed, plain * torch.tensor([2.0, 0.0]))


def test_half_precision_is_summed_in_float32() -> None:
    prediction, target = torch.randn(1, 4, 8, 12).bfloat16(), torch.randn(1, 4, 8, 12)
    assert grid_loss(prediction, target, 4, 6).total.dtype == torch.float32


def test_gradients_reach_every_latent() -> None:
    prediction = torch.randn(1, 4, 8, 12, requires_grad=True)
    grid_loss(prediction, torch.zeros(1, 4, 8, 12), 4, 6).total.sum().backward()
    assert prediction.grad is not None
    assert bool((prediction.grad != 0).all())


def test_a_grid_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"a grid of 4 × 6 does not divide latents of 128 × 128"):
        grid_loss(torch.zeros(1, 4, 128, 128), torch.zeros(1, 4, 128, 128), 4, 6)
    with pytest.raises(ConfigError, match="does not divide"):
        cut(torch.zeros(1, 4, 8, 8), 0, 2)
