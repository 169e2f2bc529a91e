"""Upstream's conditioning, thirty slots of 77 tokens a picture, as this package's arguments."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_HIDDEN = -500.0
"""Below this a bias hides a token; upstream writes -1000."""


def compact(
    reorg_masks: Tensor,
    bbox_embeddings: Tensor,
    cross_attention_mask: Tensor,
    text_embeddings: Tensor,
    object_masks: Tensor | None = None,
    reorg_union_masks: Tensor | None = None,
) -> dict[str, Tensor]:
    """The arguments of ``RegionTextNet.forward`` that mean the same, for one more batch of B pictures.

    Args:
        reorg_masks: [B, n, h, w]; 1 where a cell is of the slot's region, of one slot at most.
        bbox_embeddings: [B, n, 77, 4].
        cross_attention_mask: [B, n, 77], added to scores.
        text_embeddings: [B, n, 77, D].
        object_masks: [B, n]; 1 where a slot has a region (default: everywhere).
        reorg_union_masks: [B, n, h, w].

    Raises:
        ValueError: the shapes disagree, a cell is of two regions, or of a slot without one.
    """
    rows, slots, length = cross_attention_mask.shape
    shapes = {
        "reorg_masks": (reorg_masks.shape[:2], (rows, slots)),
        "bbox_embeddings": (bbox_embeddings.shape, (rows, slots, length, 4)),
        "text_embeddings": (text_embeddings.shape[:3], (rows, slots, length)),
    }
    if wrong := [name for name, (found, wanted) in shapes.items() if tuple(found) != wanted]:
        raise ValueError(f"cross_attention_mask is {(rows, slots, length)}, which does not fit {', '.join(wrong)}")
    masks = reorg_masks > 0.5
    real = torch.ones_like(masks[:, :, 0, 0]) if object_masks is None else object_masks > 0.5
    if bool((masks.sum(1) > 1).any()):
        raise ValueError("reorg_masks: a cell is of more than one region")
    if bool((masks.any(-1).any(-1) & ~real).any()):
        raise ValueError("reorg_masks: a slot that object_masks leaves out has cells")
    highest = cross_attention_mask.amax(-1, keepdim=True)
    # A row that hides all alike hides none: softmax knows differences alone.
    bias = torch.where(highest < _HIDDEN, cross_attention_mask - highest, cross_attention_mask)
    kept = (bias > _HIDDEN) & real[..., None]
    number = torch.arange(slots, dtype=torch.int16, device=kept.device)[None, :, None].expand(kept.shape)
    flat = {"text": text_embeddings, "boxes": bbox_embeddings, "bias": bias, "region": number}
    filler = {"text": 0.0, "boxes": -1.0, "bias": 0.0, "region": -1}
    found = {
        name: pad_sequence([each[row] for each, row in zip(whole, kept, strict=True)], True, filler[name])
        for name, whole in flat.items()
    }
    found["cells"] = torch.where(masks.any(1), masks.int().argmax(1), -1).to(torch.int16)
    if reorg_union_masks is not None:
        found["unions"] = reorg_union_masks > 0.5
    return found
