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
        keep_small: whether a region that lies between the cells of a coarse level gets those that it touches; else, as
            upstream has it, it is not there for that level.
    """

    tokens: Tensor
    bias: Tensor
    region: Tensor
    cells: Tensor
    unions: Tensor | None = None
    masks: dict[tuple[str, int], LevelMask] | None = None
    keep_small: bool = False

    def to(self, device: torch.device) -> "Grounding":
        """On a device; itself, with the masks made so far, where it lies there."""
        if self.tokens.device == device:
            return self
        tokens, bias, region, cells = (part.to(device) for part in self[:4])
        unions = None if self.unions is None else self.unions.to(device)
        masks: dict[tuple[str, int], LevelMask] | None = None if self.masks is None else {}
        return Grounding(tokens, bias, region, cells, unions, masks, self.keep_small)

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

    Args:
        own: int [B, L], the nearest region of each of the level's cells.
        cells: int [B, h, w].
        size: of the level.
        regions: more than the highest number of a region.
    """
    rows, height, width = cells.shape
    # Numbers from 1 on; 0 is no region.
    every, nearest = cells.flatten(1).long() + 1, own.long() + 1
    sizes = every.new_zeros(rows, regions + 1).scatter_add(1, every, torch.ones_like(every))
    there = every.new_zeros(rows, regions + 1).scatter(1, nearest, 1)
    lost = (there.gather(1, every) == 0) & (every > 0)
    down = torch.arange(height, device=cells.device) * size[0] // height
    along = torch.arange(width, device=cells.device) * size[1] // width
    touched = (down[:, None] * size[1] + along).reshape(1, -1).expand(rows, -1)
    none = (height * width + 1) * (regions + 1)
    rank = torch.where(lost, sizes.gather(1, every) * (regions + 1) + every, none)
    first = torch.full_like(nearest, none).scatter_reduce(1, touched, rank, "amin")
    return torch.where(first < none, first % (regions + 1), nearest) - 1


def _mask(seen: Tensor, bias: Tensor) -> LevelMask:
    """Of ``seen`` [B, L, K] and what is added where it is true, [B, 1, K] or one number, of the mask's type."""
    covered = seen.any(dim=-1, keepdim=True)
    scores = torch.where(seen, bias, bias.new_full((), -torch.inf))
    return LevelMask(torch.where(covered, scores, bias.new_zeros(())).unsqueeze(1), covered)
