"""The Fourier features stay exact in half precision, and a masked slot is the null token."""

import pytest
import torch

from atelier.models.fourier import fourier_embedding
from atelier.models.gligen import PositionNet


def test_fourier_features_are_computed_in_float32() -> None:
    boxes = torch.tensor([[0.123, 0.456, 0.789, 0.987]])
    exact = fourier_embedding(boxes)
    halved = fourier_embedding(boxes.half())
    assert halved.dtype == torch.float32
    # What differs is the rounding of the box itself (2^-12 of its value times the highest frequency), no more.
    assert (halved - exact).abs().max() < 56.3 * 2**-11


def test_a_masked_slot_ignores_its_box_and_phrase() -> None:
    torch.manual_seed(0)
    net = PositionNet(8, 8, hidden=16)
    masks = torch.tensor([[1.0, 0.0]])
    first = net(torch.rand(1, 2, 4), masks, torch.randn(1, 2, 8))
    second = net(torch.rand(1, 2, 4), masks, torch.randn(1, 2, 8))
    assert torch.equal(first[:, 1], second[:, 1])
    assert not torch.equal(first[:, 0], second[:, 0])


def test_tokens_computed_before_pass_through() -> None:
    objs = torch.randn(1, 3, 8)
    assert PositionNet(8, 8)(objs=objs) is objs
    with pytest.raises(ValueError, match="needs boxes"):
        PositionNet(8, 8)(boxes=torch.rand(1, 2, 4))
