"""To which size a picture is brought, so that pictures of many shapes make batches: never larger than it was.

A bucket's sides are multiples of a divisor (32 pixels: FLUX's 16-pixel tokens, in pairs), its area is at most the
resolution's, and neither side is longer than the picture's: so the picture is only made smaller, then cut to the bucket
in its centre. (Upstream's README promises that; its rules, in ``bucket_rules``, enlarge a fifth of all pictures.)

A grid of frames has a bucket by its frames: each is brought to the cell's size before it is packed. Cutting a packed
grid would move the borders of its cells off those of the tokens.
"""

import itertools
import math
from dataclasses import dataclass

from atelier.errors import ConfigError, DataError

DIVISOR = 32
TOKEN = 16
"""Pixels a token's side: what a cell's sides must be whole multiples of."""


@dataclass(frozen=True)
class Bucket:
    """What becomes of a picture: it is scaled to ``scaled``, and from there (at ``corner``) cut to ``size``.

    Attributes:
        size, scaled: (width, height), pixels.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of the cut, which is in the centre."""
        return (self.scaled[0] - self.size[0]) // 2, (self.scaled[1] - self.size[1]) // 2


def fitted(picture: tuple[int, int], size: tuple[int, int]) -> Bucket:
    """A picture brought to a size: scaled until it just covers it, then cut.

    Args:
        picture, size: (width, height), pixels.
    """
    scale = max(size[0] / picture[0], size[1] / picture[1])
    # A side that fits exactly must not become a pixel longer by the rounding of its own ratio.
    scaled = tuple(math.ceil(round(side * scale, 6)) for side in picture)
    return Bucket(size, (scaled[0], scaled[1]))


def bucket(picture: tuple[int, int], resolution: int, divisor: int = DIVISOR) -> Bucket:
    """The bucket that cuts least off a picture, of those nearest to its size or the resolution's; else the largest.

    Args:
        picture: (width, height), pixels.
        resolution: a bucket's area is at most its square.

    Raises:
        ConfigError: the resolution is smaller than the divisor.
        DataError: a side of the picture is shorter than the divisor: it would have to be enlarged.
    """
    return fitted(picture, _size(picture, resolution**2, divisor))


@dataclass(frozen=True)
class GridBucket:
    """What becomes of each frame, and how large the packed grid is.

    Attributes:
        cell: of every frame alike.
        size: (width, height) of the grid, pixels.
    """

    cell: Bucket
    size: tuple[int, int]


def grid_bucket(frame: tuple[int, int], rows: int, columns: int, max_pixels: int) -> GridBucket:
    """The bucket of a grid: whole tokens a cell, no frame enlarged, every frame cut alike and none across its border.

    Args:
        frame: (width, height) of the frames, pixels.
        max_pixels: of the whole grid; GRID trains 4 × 6 frames at 1536 × 1024.

    Raises:
        ConfigError: no cell of whole tokens fits into ``max_pixels``.
        DataError: a side of the frames is shorter than a token.
    """
    if rows < 1 or columns < 1:
        raise ConfigError(f"{rows} × {columns} is no grid", "give at least one row and one column")
    width, height = _size(frame, max_pixels // (rows * columns), TOKEN)
    return GridBucket(fitted(frame, (width, height)), (width * columns, height * rows))


def _size(picture: tuple[int, int], area: int, divisor: int) -> tuple[int, int]:
    """The best (width, height) of whole divisors within the picture and the area."""
    width, height = picture
    if area < divisor**2:
        raise ConfigError(f"{area} pixels hold no {divisor} × {divisor}", "raise the resolution")
    if min(picture) < divisor:
        raise DataError(
            f"a picture of {width} × {height} has a side under {divisor} pixels and would have to be enlarged",
            "leave it out, or use a larger one",
        )
    scale = min(1.0, math.sqrt(area / (width * height)))
    widths, heights = (_near(side, scale, divisor) for side in picture)
    sizes = set(itertools.product(widths, heights))
    # Beside a side that is rounded down, the other in the picture's own shape: a thin picture is rather made smaller.
    sizes |= {(w, max(w * height // (width * divisor), 1) * divisor) for w in widths}
    sizes |= {(max(h * width // (height * divisor), 1) * divisor, h) for h in heights}
    fit = [(w, h) for w, h in sizes if w * h <= area]
    if not fit:  # so long and thin that its short side is one divisor: the long one takes what is left
        long = min(area // divisor, max(picture)) // divisor * divisor
        fit = [(long, divisor) if width >= height else (divisor, long)]
    return min(fit, key=lambda size: (_cut_off(picture, size), -size[0] * size[1], size))


def _near(side: int, scale: float, divisor: int) -> list[int]:
    """The whole divisors on either side of a scaled side, from one divisor to the side itself."""
    exact = side * scale / divisor
    found = {math.floor(exact) * divisor, math.ceil(exact) * divisor}
    return sorted({min(max(near, divisor), side // divisor * divisor) for near in found})


def _cut_off(picture: tuple[int, int], size: tuple[int, int]) -> float:
    """The share of the scaled picture that lies outside of the bucket."""
    ratio = (size[0] * picture[1]) / (size[1] * picture[0])
    return 1 - min(ratio, 1 / ratio)
