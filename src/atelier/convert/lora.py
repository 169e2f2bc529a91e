"""LoRA as every file format means it: a change ΔW = alpha/rank · up @ down of each layer, and its arithmetic.

Layers have diffusers' names (``transformer_blocks.0.attn.to_q``). Where another format keeps several of them as one
(BFL's fused q, k and v), ``fuse`` and ``split`` go between them without changing any ΔW.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from atelier.convert.weights import Weight
from atelier.errors import DataError
from atelier.models.keys import Shape


@dataclass(frozen=True)
class Delta:
    """One layer's change.

    Attributes:
        down: [rank, in] (peft's lora_A).
        up: [out, rank] (peft's lora_B).
        alpha: ΔW is scaled by alpha / rank.
    """

    down: Weight
    up: Weight
    alpha: float

    @property
    def rank(self) -> int:
        """Its rank."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def shape(self) -> Shape:
        """The layer's (out, in)."""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """ΔW, float32 [out, in]."""
        return self.scale * (self.up.tensor().float() @ self.down.tensor().float())


Lora = dict[str, Delta]
"""By diffusers' layer names."""


def mapped(weight: Weight, change: Callable[[Tensor], Tensor], shape: Shape | None = None) -> Weight:
    """The weight that ``change`` makes of another when it is read."""
    return replace(weight, shape=weight.shape if shape is None else shape, read=lambda: change(weight.read()))


def folded(delta: Delta, into: Literal["down", "up"]) -> Delta:
    """The same change with alpha = rank, for a file that has no place for alpha.

    ``up`` is ai-toolkit's way. ``down`` is diffusers' for kohya's files: a factor under a half goes to both, by powers
    of two, so that half precision does not lose small numbers.
    """
    if delta.scale == 1:
        return replace(delta, alpha=float(delta.rank))
    down, up = 1.0, delta.scale
    if into == "down":
        down, up = delta.scale, 1.0
        while 0 < down * 2 < up:
            down, up = down * 2, up / 2
    return Delta(_scaled(delta.down, down), _scaled(delta.up, up), float(delta.rank))


def _scaled(weight: Weight, factor: float) -> Weight:
    if factor == 1:
        return weight
    return mapped(weight, lambda tensor: (tensor.float() * factor).to(tensor.dtype))


def fuse(members: Sequence[Delta | None], outs: Sequence[int]) -> Delta:
    """One layer whose outputs are the members' in a row: exact, the up factor is block-diagonal.

    The rank is that of the largest member times their number, so that ``split`` finds the blocks again; a smaller
    member and one that is missing (None) have zeros in their place.

    Args:
        outs: each member's outputs, also a missing one's.
    """
    present = [member for member in members if member is not None]
    rank, inputs = max(member.rank for member in present), present[0].shape[1]
    scales = {member.scale for member in present}
    if len(scales) > 1:
        members = [None if member is None else folded(member, "down") for member in members]
        present = [member for member in members if member is not None]
    total = rank * len(members)
    dtype = reduce(torch.promote_types, [factor.dtype for member in present for factor in (member.down, member.up)])
    rows = [sum(outs[:number]) for number in range(len(outs))]

    def down() -> Tensor:
        whole = torch.zeros(total, inputs, dtype=dtype)
        for number, member in enumerate(members):
            if member is not None:
                whole[number * rank : number * rank + member.rank] = member.down.read()
        return whole

    def up() -> Tensor:
        whole = torch.zeros(sum(outs), total, dtype=dtype)
        for number, member in enumerate(members):
            if member is not None:
                block = whole[rows[number] : rows[number] + outs[number]]
                block[:, number * rank : number * rank + member.rank] = member.up.read()
        return whole

    alpha = present[0].alpha * total / present[0].rank
    return Delta(Weight((total, inputs), dtype, down, present[0].down.to), Weight((sum(outs), total), dtype, up), alpha)


def split(delta: Delta, outs: Sequence[int], what: str) -> list[Delta | None]:
    """A fused layer's members; None for one whose factors are all zero, as ``fuse`` leaves a missing one.

    Where the up factor is block-diagonal each member takes its own part of the rank, else every one the whole down
    factor: both exact. Reads the factors once, to see which.

    Raises:
        DataError: the layer has another number of outputs.
    """
    if delta.shape[0] != sum(outs):
        raise DataError(
            f"{what} has {delta.shape[0]} outputs, its parts {' + '.join(map(str, outs))}",
            "this is no LoRA of a FLUX.1 model",
        )
    rows = [sum(outs[:number]) for number in range(len(outs))]
    blocks = _blocks(delta, outs, rows)
    own = delta.rank // len(outs) if blocks is not None else delta.rank
    members: list[Delta | None] = []
    for number, (first, count) in enumerate(zip(rows, outs, strict=True)):
        if blocks is not None and not blocks[number]:
            members.append(None)
            continue
        columns = slice(number * own, (number + 1) * own) if blocks is not None else slice(None)
        down = _part(delta.down, columns, slice(None))
        up = _part(delta.up, slice(first, first + count), columns)
        members.append(Delta(down, up, delta.scale * own))
    return members


def _part(weight: Weight, rows: slice, columns: slice) -> Weight:
    shape = tuple(len(range(*cut.indices(side))) for cut, side in zip((rows, columns), weight.shape, strict=True))
    return mapped(weight, lambda tensor: tensor[rows, columns], shape)


def _blocks(delta: Delta, outs: Sequence[int], rows: Sequence[int]) -> list[bool] | None:
    """Of a block-diagonal up factor, which blocks hold anything; None: it is not block-diagonal."""
    if delta.rank % len(outs):
        return None
    own, up = delta.rank // len(outs), delta.up.read()
    rest = up.clone()
    for number, (first, count) in enumerate(zip(rows, outs, strict=True)):
        rest[first : first + count, number * own : (number + 1) * own] = 0
    if rest.any():
        return None
    down = delta.down.read()
    return [
        bool(up[first : first + count].any() or down[number * own : (number + 1) * own].any())
        for number, (first, count) in enumerate(zip(rows, outs, strict=True))
    ]


def halves_swapped(delta: Delta) -> Delta:
    """Outputs with their halves swapped: BFL's last modulation gives (shift, scale), diffusers' (scale, shift)."""
    half = delta.shape[0] // 2
    return replace(delta, up=mapped(delta.up, lambda tensor: torch.cat([tensor[half:], tensor[:half]])))
