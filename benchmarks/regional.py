"""Rich-context's regional layers beside the way in which its published code computes them: same weights and answers."""

from typing import Any

from benchmarks.harness import Bench, Result, side_by_side

SLOTS, LENGTH, CELLS = 30, 77, 64
CONTEXT = 1024
LEVELS = [(320, 5, 1024)] + 6 * [(640, 10, 256)]
"""(width, heads, visual tokens) of each fuser: SDXL's at 512 pixels, one in ten of them, at half the width."""

LABELS = 2 * ["a small brown dog that sits on the grass", "an old wooden table with a white cloth and two plates"]


def regional_compact_vs_dense() -> Result:
    """Time of the published way over ours, position net and fusers; the lesser of forward, and forward and backward.

    Two pictures of four and five boxes with descriptions of 9 and 11 words. Visual tokens, slots and text tokens are
    the full model's, widths are half of SDXL's; one thread, fp32. Answers and gradients of both sides agree.
    """
    import torch
    from torch import Tensor, nn

    from atelier.models.regional.dense import compact
    from atelier.models.regional.fusers import RegionalCrossAttention
    from atelier.models.regional.position_net import RegionTextNet
    from benchmarks.support.plain_regional import PlainFuser, PlainNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = RegionTextNet(CONTEXT, CONTEXT, keep_small=False)  # as upstream, else answers may differ
    fusers = nn.ModuleList(RegionalCrossAttention(width, CONTEXT, heads, 64) for width, heads, _ in LEVELS)
    for fuser in fusers:
        nn.init.normal_(fuser.attn.to_out[0].weight, std=0.02)
        nn.init.normal_(fuser.null_text_feat, std=0.02)
    plain_net, plain_fusers = PlainNet(net), nn.ModuleList(PlainFuser(fuser) for fuser in fusers)
    dense = _dense()
    given = compact(**dense)
    states = [torch.randn(2, tokens, width, requires_grad=True) for width, _, tokens in LEVELS]

    def ours() -> list[Tensor]:
        objs = net(**given)
        return [fuser(x, objs) for fuser, x in zip(fusers, states, strict=True)]

    def plain() -> list[Tensor]:
        text = plain_net(dense)
        return [fuser(x, text, dense) for fuser, x in zip(plain_fusers, states, strict=True)]

    parameters = [*net.parameters(), *fusers.parameters(), *states]

    def trained(side: Any) -> list[Tensor]:
        made = side()
        return [
            *(part.detach() for part in made),
            *torch.autograd.grad(sum(part.square().mean() for part in made), parameters),
        ]

    for one, other in zip(trained(plain), trained(ours), strict=True):
        apart = float((one - other).abs().max() / one.abs().max().clamp(min=1e-8))
        if not apart < 1e-3:
            raise AssertionError(f"an answer or a gradient is {apart:.3g} apart: the two do not compute the same")
    with torch.no_grad():
        slow, fast = side_by_side(plain, ours)
    slow_step, fast_step = side_by_side(lambda: trained(plain), lambda: trained(ours), rounds=3)
    return Result(
        "regional_compact_vs_dense",
        round(min(slow / fast, slow_step / fast_step), 3),
        "x",
        bar=1.5,
        note=f"forward {slow / fast:.1f} x ({fast:.3f} s against {slow:.3f} s), forward and backward "
        f"{slow_step / fast_step:.1f} x ({fast_step:.3f} s against {slow_step:.3f} s)",
    )


BENCHES: dict[str, Bench] = {"regional_compact_vs_dense": regional_compact_vs_dense}


def _dense() -> dict[str, Any]:
    """Upstream's conditioning of the two pictures, with states at random."""
    import numpy as np
    import torch

    from atelier.models.regional.regions import map_regions

    rng = np.random.default_rng(0)
    dense = {
        "reorg_masks": torch.zeros(2, SLOTS, CELLS, CELLS),
        "bbox_embeddings": torch.full((2, SLOTS, LENGTH, 4), -1.0),
        "cross_attention_mask": torch.zeros(2, SLOTS, LENGTH),
        "text_embeddings": torch.zeros(2, SLOTS, LENGTH, CONTEXT),
        "object_masks": torch.zeros(2, SLOTS),
    }
    for row, count in enumerate((4, 5)):
        low = rng.uniform(0, 0.6, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.2, 0.4, (count, 2))], axis=1)
        found = map_regions(boxes, CELLS, CELLS)
        used = len(found.regions)
        dense["reorg_masks"][row, :used] = torch.from_numpy(found.cells == np.arange(used)[:, None, None]).float()
        dense["object_masks"][row, :used] = 1
        dense["text_embeddings"][row, :used] = torch.randn(used, LENGTH, CONTEXT)
        dense["cross_attention_mask"][row, :used] = -1e3
        for number, region in enumerate(found.regions):
            start = 1
            for member, iou in zip(region.members, region.ious, strict=True):
                end = min(start + len(LABELS[member % len(LABELS)].split()), LENGTH - 1)
                dense["bbox_embeddings"][row, number, start:end] = torch.from_numpy(boxes[member]).float()
                dense["cross_attention_mask"][row, number, start:end] = iou - 1
                start = end + 1
    return dense
