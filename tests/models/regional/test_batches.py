"""Layouts of different length as one batch."""

import numpy as np
import pytest
import torch

from atelier.errors import DataError
from atelier.models.regional.batches import collate
from atelier.models.regional.fusers import RegionalCrossAndSelfAttention
from atelier.models.regional.position_net import RegionTextNet
from tests.models.regional.layouts import WIDTH, batch, random_layout, randomise


def test_padding_is_of_no_region() -> None:
    long, short = random_layout(5), random_layout(1)
    made = collate([short, None, long], 8, 8, WIDTH, with_unions=True)
    tokens = made["region"].shape[1]
    assert tokens % 8 == 0
    assert len(long.tokens.region) <= tokens < len(long.tokens.region) + 8
    used = len(short.tokens.region)
    assert np.array_equal(made["region"][0, :used], short.tokens.region)
    assert (made["region"][0, used:] == -1).all()
    assert np.array_equal(made["text"][0, :used], short.tokens.text)
    assert np.array_equal(made["bias"][2, : len(long.tokens.bias)], long.tokens.bias)
    assert np.array_equal(made["boxes"][2, : len(long.tokens.boxes)], long.tokens.boxes)
    assert (made["region"][1] == -1).all()
    assert (made["cells"][1] == -1).all()
    assert np.array_equal(made["cells"][2], long.cells)
    assert long.unions is not None
    assert np.array_equal(made["unions"][2], long.unions)
    assert made["text"].dtype == long.tokens.text.dtype
    assert collate([long], 8, 8, WIDTH, multiple=1)["region"].shape == (1, len(long.tokens.region))


@torch.no_grad()
def test_a_picture_computes_in_any_batch_what_it_does_alone() -> None:
    net, layer = RegionTextNet(WIDTH, 10, hidden=16), RegionalCrossAndSelfAttention(12, 10, 2, 6)
    randomise(net), randomise(layer)
    x = torch.randn(3, 16, 12, generator=torch.Generator().manual_seed(0))
    layouts = [random_layout(1), None, random_layout(5, seed=3)]
    whole = layer(x, net(**batch(collate(layouts, 8, 8, WIDTH, with_unions=True))))
    for row, one in enumerate(layouts):
        alone = layer(x[row : row + 1], net(**batch(collate([one], 8, 8, WIDTH, with_unions=True, multiple=1))))
        torch.testing.assert_close(whole[row], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_any_layout_every_token_gets_the_null_feature() -> None:
    net, layer = RegionTextNet(WIDTH, 10, hidden=16), RegionalCrossAndSelfAttention(12, 10, 2, 6)
    randomise(net), randomise(layer)
    x = torch.randn(2, 64, 12)
    made = collate([None, None], 8, 8, WIDTH, with_unions=True)
    assert made["region"].shape == (2, 8)
    assert torch.equal(layer(x, net(**batch(made))), x + layer.null_text_feat)


def test_layouts_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match="8, 8"):
        collate([random_layout(2)], 16, 16, WIDTH)
    with pytest.raises(DataError, match="wide"):
        collate([random_layout(2)], 8, 8, WIDTH + 1)
    with pytest.raises(DataError, match="no unions"):
        collate([random_layout(2)._replace(unions=None)], 8, 8, WIDTH, with_unions=True)
