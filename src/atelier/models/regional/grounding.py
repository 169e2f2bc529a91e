"""What the position net hands to every fuser: tokens, the map of cells, and each level's masks, made once."""

from typing import NamedTuple

import torch
from torch import Tensor


class LevelMask(NamedTuple):
    """Who sees what among a level's visual tokens.

    Attributes:
        scores: [B, 1, L, K], added to attention scores: 0 or a bias where a query sees a key, else -inf. A query that
            sees none has 0 everywhere, so that its softmax is finite.
        covered: bool [B, L, 1]; the queries that see any key.
    """

    scores: Tensor
    covered: Tensor


class Grounding(NamedTuple):
    """A batch's region tokens, and where they belong.

    Attributes:
        tokens: [B, T, C] for the fusers.
        bias: [B, T], added to a token's attention scores.
        region: int [B, T]; the region whose cells see a token, -1 for padding.
        cells: int [B, h, w]; the region that a cell of the latent is of, -1 for none.
        unions: bool [B, R, h, w]; the cells that a region's own cells attend to, for the fusers with self-attention.
        masks: those made so far, by kind and length. ``RegionTextNet`` starts it empty, so that all blocks of a level,
            and all steps of a sampling run that keeps the grounding, share one; None makes them anew each time.
        keep_small: whether a region that lies between the cells of a coarse level gets some that it touches, the
            smallest region first. None gives its last cell away for that, so a level with more regions than room may
            still lack some. Else, as upstream has it, such a region is not there for that level.
        grounded: bool [B]; a sample of False passes every fuser as it is: the base model alone, where a sample without
            any cell gets what the fusers have learnt of dropped layouts. None: all are True.
    """

    tokens: Tensor
    bias: Tensor
    region: Tensor
    cells: Tensor
    unions: Tensor | None = None
    masks: dict[tuple[str, int], LevelMask] | None = None
    keep_small: bool = False
    grounded: Tensor | None = None

    def to(self, device: torch.device) -> "Grounding":
        """On a device; itself, with the masks made so far, where it lies there."""
        if self.tokens.device == device:
            return self
        tokens, bias, region, cells = (part.to(device) for part in self[:4])
        unions = None if self.unions is None else self.unions.to(device)
        masks: dict[tuple[str, int], LevelMask] | None = None if self.masks is None else {}
        grounded = None if self.grounded is None else self.grounded.to(device)
        return Grounding(tokens, bias, region, cells, unions, masks, self.keep_small, grounded)

    def applied(self, x: Tensor, made: Tensor) -> Tensor:
        """What a fuser made of x [B, L, C]; x itself where a sample is not grounded."""
        return made if self.grounded is None else torch.where(self.grounded[:, None, None], made, x)

    def token_mask(self, length: int) -> LevelMask:
        """Visual tokens [L] over the region tokens [T].

        Raises:
            ValueError: the cells have no level of this length.
        """
        return self._kept("tokens", length)

    def union_mask(self, length: int) -> LevelMask:
        """Visual tokens [L] over themselves [L]: each over its region's union.

        Raises:
            ValueError: the cells have no level of this length, or there are no unions.
        """
        return self._kept("unions", length)

    def joint_mask(self, length: int) -> LevelMask:
        """Visual tokens [L] over themselves and the region tokens [L + T]; biases are left out.

        Raises:
            ValueError: as ``union_mask``.
        """
        return self._kept("joint", length)

    def _kept(self, kind: str, length: int) -> LevelMask:
        if self.masks is None:
            return self._made(kind, length)
        if (kind, length) not in self.masks:
            self.masks[kind, length] = self._made(kind, length)
        return self.masks[kind, length]

    def _made(self, kind: str, length: int) -> LevelMask:
        size = level_size(length, *self.cells.shape[-2:])
        own = _resized(self.cells, *size).flatten(1)  # [B, L]
        if self.keep_small and length < self.cells[0].numel():
            own = _with_lost(own, self.cells, size, max(self.cells[0].numel(), self.region.shape[1]))
        seen = (own[..., None] == self.region[:, None, :]) & (self.region >= 0)[:, None, :]
        if kind == "tokens":
            return _mask(seen, self.bias.to(self.tokens.dtype)[:, None, :])
        fields, free = self._seen_unions(own, length), self.tokens.new_zeros(())
        if kind == "unions":
            return _mask(fields, free)
        # A region that has no token is none of this fuser's, whatever its union.
        return _mask(torch.cat((fields & seen.any(dim=-1, keepdim=True), seen), dim=-1), free)

    def _seen_unions(self, own: Tensor, length: int) -> Tensor:
        """bool [B, L, L]: each query's region's union."""
        if self.unions is None:
            raise ValueError("this fuser needs the regions' unions (regions.unions), which are not given")
        unions = _resized(self.unions, *level_size(length, *self.cells.shape[-2:])).flatten(2)  # [B, R, L]
        rows = torch.arange(len(own), device=own.device)[:, None]
        # A region that is kept on a level where its union is lost sees its own cell at least.
        itself = torch.eye(length, dtype=torch.bool, device=own.device)
        return (unions[rows, own.clamp(min=0).long()].bool() | itself) & (own >= 0)[..., None]


def level_size(length: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the level of a UNet that has ``length`` tokens, where the cells are ``height`` × ``width``.

    A UNet halves both sides from level to level, odd ones rounded up. Cells coarser than the latent by a power of two
    fit too.

    Raises:
        ValueError: no level has this length.
    """
    rows, columns = height, width
    while rows * columns < length:
        rows, columns = 2 * rows, 2 * columns
    while rows * columns > length and (rows, columns) != (1, 1):
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != length:
        raise ValueError(
            f"{length} visual tokens are no level of a {height}×{width} map of cells: make the map of the latent's size"
        )
    return rows, columns


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Nearest neighbours of [..., h, w], by torch's rule: the cell at ``floor(position * h / height)``."""
    if maps.shape[-2:] == (height, width):
        return maps
    rows = torch.arange(height, device=maps.device) * maps.shape[-2] // height
    columns = torch.arange(width, device=maps.device) * maps.shape[-1] // width
    return maps[..., rows[:, None], columns]


def _with_lost(own: Tensor, cells: Tensor, size: tuple[int, int], regions: int) -> Tensor:
    """A level's cells, those that a region touches which has none of them given to it, the smallest such region first.

    One cell of each region that has any stays its own, if possible one that no other wants. Which region still has none
    is asked again in a second round, where what the first gave twice is shared; a third finds next to nothing.

    Args:
        own: int [B, L], the nearest region of each of the level's cells.
        cells: int [B, h, w].
        size: of the level.
        regions: more than the highest number of a region.
    """
    rows, height, width = cells.shape
    # Numbers from 1 on; 0 is no region.
    every, now = cells.flatten(1).long() + 1, own.long() + 1
    sizes = every.new_zeros(rows, regions + 1).scatter_add(1, every, torch.ones_like(every))
    down = torch.arange(height, device=cells.device) * size[0] // height
    along = torch.arange(width, device=cells.device) * size[1] // width
    touched = (down[:, None] * size[1] + along).reshape(1, -1).expand(rows, -1)
    none, places = (height * width + 1) * (regions + 1), torch.arange(now.shape[1], device=cells.device)
    for _ in range(_ROUNDS):
        there = every.new_zeros(rows, regions + 1).scatter(1, now, 1)
        lost = (there.gather(1, every) == 0) & (every > 0)
        rank = torch.where(lost, sizes.gather(1, every) * (regions + 1) + every, none)
        first = torch.full_like(now, none).scatter_reduce(1, touched, rank, "amin")
        wanted = first < none
        order = wanted * len(places) + places
        stays = every.new_full((rows, regions + 1), 2 * len(places)).scatter_reduce(1, now, order, "amin")
        last = (stays.gather(1, now) == order) & (now > 0)
        now = torch.where(wanted & ~last, first % (regions + 1), now)
    return now - 1


_ROUNDS = 2


def _mask(seen: Tensor, bias: Tensor) -> LevelMask:
    """Of ``seen`` [B, L, K] and what is added where it is true, [B, 1, K] or one number, of the mask's type."""
    covered = seen.any(dim=-1, keepdim=True)
    scores = torch.where(seen, bias, bias.new_full((), -torch.inf))
    return LevelMask(torch.where(covered, scores, bias.new_zeros(())).unsqueeze(1), covered)
