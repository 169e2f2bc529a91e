"""Upstream's dense conditioning as ours."""

import pytest
import torch
from torch import Tensor

from atelier.models.regional.dense import compact


def dense() -> dict[str, Tensor]:
    """Two slots and an empty one on a 2×2 map; slot 1's tokens 1 and 2 stand, slot 0 has no words."""
    masks = torch.zeros(1, 3, 2, 2)
    masks[0, 0, 0], masks[0, 1, 1] = 1, 1
    bias = torch.full((1, 3, 4), -1000.0)
    bias[0, 1, 1:3] = torch.tensor([0.0, -0.5])
    bias[0, 2] = 0
    text = torch.arange(3 * 4 * 2.0).reshape(1, 3, 4, 2)
    boxes = torch.arange(3 * 4 * 4.0).reshape(1, 3, 4, 4)
    real = torch.tensor([[1.0, 1.0, 0.0]])
    return {
        "reorg_masks": masks,
        "bbox_embeddings": boxes,
        "cross_attention_mask": bias,
        "text_embeddings": text,
        "object_masks": real,
    }


def test_only_what_softmax_would_see_is_kept() -> None:
    given = dense()
    made = compact(**given, reorg_union_masks=torch.ones(1, 3, 2, 2))
    assert made["region"].tolist() == [[0, 0, 0, 0, 1, 1]]
    assert made["bias"].tolist() == [[0, 0, 0, 0, 0, -0.5]]
    assert torch.equal(made["text"][0], given["text_embeddings"].flatten(1, 2)[0, [0, 1, 2, 3, 5, 6]])
    assert torch.equal(made["boxes"][0], given["bbox_embeddings"].flatten(1, 2)[0, [0, 1, 2, 3, 5, 6]])
    assert made["cells"].tolist() == [[[0, 0], [1, 1]]]
    assert made["unions"].all()


def test_cells_of_no_slot() -> None:
    given = dense()
    given["reorg_masks"][0, 0] = 0
    assert compact(**given)["cells"].tolist() == [[[-1, -1], [1, 1]]]


def test_what_is_no_partition_is_refused() -> None:
    given = dense()
    given["reorg_masks"][0, 0] = 1
    with pytest.raises(ValueError, match="more than one region"):
        compact(**given)
    given = dense()
    given["reorg_masks"][0, 2, 0, 0], given["reorg_masks"][0, 0, 0, 0] = 1, 0
    with pytest.raises(ValueError, match="leaves out"):
        compact(**given)
    given = dense()
    given["text_embeddings"] = given["text_embeddings"][:, :2]
    with pytest.raises(ValueError, match="does not fit text_embeddings"):
        compact(**given)
