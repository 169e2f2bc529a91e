"""FID's Inception: its parameters by name, its quirks against plain definitions, and its input."""

import numpy as np
import pytest
import torch
from torch import nn

from atelier.models import inception
from atelier.models.inception import FidInception, inception_input


@pytest.fixture(scope="module")
def network() -> FidInception:
    torch.manual_seed(0)
    return FidInception().eval()


def test_parameters_are_those_of_the_file(network: FidInception) -> None:
    """Counts and places known of Inception-v3 (23,834,568 without the auxiliary head and with 1,008 classes)."""
    state = network.state_dict()
    classes = 2048 * 1008 + 1008
    assert sum(p.numel() for p in network.parameters()) == 21_785_568 + classes
    assert tuple(state["Conv2d_1a_3x3.conv.weight"].shape) == (32, 3, 3, 3)
    assert tuple(state["Mixed_5b.branch_pool.conv.weight"].shape) == (32, 192, 1, 1)
    assert tuple(state["Mixed_6c.branch7x7dbl_2.conv.weight"].shape) == (160, 160, 7, 1)
    assert tuple(state["Mixed_7a.branch7x7x3_4.bn.running_var"].shape) == (192,)
    assert tuple(state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape) == (384, 384, 3, 1)
    assert tuple(state["fc.weight"].shape) == (1008, 2048)
    assert len({name.partition(".")[0] for name in state}) == 5 + 11 + 1
    assert all(module.eps == 1e-3 for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_sides_and_channels(network: FidInception) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    hooks = [
        block.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, tuple(out.shape[1:])))
        for name, block in network.named_children()
    ]
    with torch.no_grad():
        features = network(torch.rand(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    assert features.shape == (1, 2048)
    assert seen["Conv2d_4a_3x3"] == (192, 71, 71)
    assert [seen[f"Mixed_5{x}"] for x in "bcd"] == [(256, 35, 35), (288, 35, 35), (288, 35, 35)]
    assert seen["Mixed_6a"] == seen["Mixed_6e"] == (768, 17, 17)
    assert [seen[f"Mixed_7{x}"] for x in "abc"] == [(1280, 8, 8), (2048, 8, 8), (2048, 8, 8)]


def test_pools_are_tensorflows() -> None:
    """An average over the pixels that are there, not over the padding; a maximum in the last block alone."""
    x = torch.rand(1, 2, 4, 5)
    around = np.lib.stride_tricks.sliding_window_view(
        np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan), (3, 3), axis=(2, 3)
    )
    np.testing.assert_allclose(inception._average(x), np.nanmean(around, axis=(-1, -2)), rtol=1e-5)
    np.testing.assert_allclose(inception._maximum(x), np.nanmax(around, axis=(-1, -2)), rtol=1e-6)
    made = FidInception()
    assert made.Mixed_7b.pool is inception._average
    assert made.Mixed_7c.pool is inception._maximum


def test_input_is_bilinear_by_hand() -> None:
    """Each of the 299 pixels reads its centre's place between the two nearest pixels, whatever the scale."""
    for side in (8, 400):
        line = torch.rand(1, 3, 1, side).expand(1, 3, side, side)
        place = np.clip((np.arange(299) + 0.5) * side / 299 - 0.5, 0, side - 1)
        low = np.floor(place).astype(int)
        high, share = np.minimum(low + 1, side - 1), place - low
        values = line[0, 1, 0].numpy()
        wanted = 2 * (values[low] * (1 - share) + values[high] * share) - 1
        np.testing.assert_allclose(inception_input(line)[0, 1, 7], wanted, atol=1e-4)
    whole = torch.rand(1, 3, 299, 299)
    assert torch.equal(inception_input(whole), 2 * whole - 1)


def test_a_block_by_hand(network: FidInception) -> None:
    """Conv without bias, batch norm by its running figures, ReLU."""
    conv = network.Conv2d_3b_1x1
    with torch.no_grad():
        conv.bn.running_mean.uniform_(-1, 1)
        conv.bn.running_var.uniform_(0.5, 2)
        x = torch.randn(1, 64, 3, 3)
        plain = torch.einsum("oi,bihw->bohw", conv.conv.weight[..., 0, 0], x)
        shape = (1, -1, 1, 1)
        plain = (plain - conv.bn.running_mean.view(shape)) / (conv.bn.running_var.view(shape) + 1e-3).sqrt()
        torch.testing.assert_close(conv(x), plain.clamp_min(0), atol=1e-5, rtol=1e-4)
