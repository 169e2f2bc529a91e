"""Upstream's rules for buckets, for parity alone: all three enlarge pictures (``buckets`` does not).

Sources: ai-toolkit as GRID forked it (``legacy``), ai-toolkit 0.12.26 (``current``), GRID's fork (``grid_fork``).
"""

import math
from typing import Literal

from atelier.data.buckets import Bucket
from atelier.errors import ConfigError, DataError

Rule = Literal["legacy", "current", "grid_fork"]

_SDXL_WIDE = (
    (1024, 960),
    (1088, 960),
    (1088, 896),
    (1152, 896),
    (1152, 832),
    (1216, 832),
    (1280, 768),
    (1344, 768),
    (1344, 704),
    (1408, 704),
    (1472, 704),
    (1536, 640),
    (1600, 640),
    (1664, 576),
    (1728, 576),
    (1792, 576),
    (1856, 512),
    (1920, 512),
    (1984, 512),
    (2048, 512),
    (8192, 128),
)
_NOT_UPRIGHT = (1344, 704)
"""Upstream's list has it lying only: 704 × 1344 is no bucket of its tables."""
LEGACY = ((1024, 1024), *_SDXL_WIDE, *((high, wide) for wide, high in _SDXL_WIDE if (wide, high) != _NOT_UPRIGHT))
"""42 sizes at resolution 1024, (width, height): SDXL's (arXiv 2307.01952, appendix I) and two of extreme shape."""
GRID_FORK = (
    (2048, 2048),
    (1280, 768),
    (1536, 1024),
    (1920, 1024),
    (2560, 1536),
    (2560, 1408),
    (3072, 1536),
    (3072, 1280),
    (1536, 2560),
    (2048, 3072),
    (1024, 1536),
    (768, 1152),
    (512, 768),
)


def upstream_bucket(rule: Rule, picture: tuple[int, int], resolution: int = 1024, divisor: int = 0) -> Bucket:
    """Where upstream puts a picture.

    Args:
        picture: (width, height), pixels.
        resolution: ``grid_fork`` ignores it.
        divisor: 0: the rule's own, 64 (``legacy``) or 32 (``current``, for FLUX.1).

    Raises:
        ConfigError: there is no such rule. DataError: the rule gives the picture an empty bucket.
    """
    if rule == "legacy":
        size = _legacy(picture, resolution, divisor or 64)
    elif rule == "current":
        size = _current(picture, resolution, divisor or 32)
    elif rule == "grid_fork":
        size = _closest(picture, GRID_FORK)
    else:
        raise ConfigError(f"there is no bucket rule {rule!r}", "use legacy, current or grid_fork")
    if 0 in size:
        raise DataError(f"the rule {rule} gives a picture of {picture} the empty bucket {size}", "leave it out")
    scale = max(size[0] / picture[0], size[1] / picture[1])
    return Bucket(size, (math.ceil(picture[0] * scale), math.ceil(picture[1] * scale)))


def _legacy(picture: tuple[int, int], resolution: int, divisor: int) -> tuple[int, int]:
    resolution = min(resolution, int(math.sqrt(picture[0] * picture[1])))
    scale = resolution / 1024
    sizes = [(int(w * scale) // divisor * divisor, int(h * scale) // divisor * divisor) for w, h in LEGACY]
    return _closest(picture, sizes)


def _closest(picture: tuple[int, int], sizes: "tuple[tuple[int, int], ...] | list[tuple[int, int]]") -> tuple[int, int]:
    """The picture's own size if it is there, else the first that removes the fewest pixels after scaling."""
    if picture in sizes:
        return picture

    def removed(size: tuple[int, int]) -> int:
        scale = max(size[0] / picture[0], size[1] / picture[1])
        width, height = int(picture[0] * scale), int(picture[1] * scale)
        return (width - size[0]) * height + (height - size[1]) * width

    return min(sizes, key=removed)


def _current(picture: tuple[int, int], resolution: int, divisor: int) -> tuple[int, int]:
    area = min(picture[0] * picture[1], resolution**2)
    scale = math.sqrt(area / (picture[0] * picture[1]))
    width, height = picture[0] * scale / divisor, picture[1] * scale / divisor
    candidates = [
        (w * divisor, h * divisor)
        for w in (math.floor(width), math.ceil(width))
        for h in (math.floor(height), math.ceil(height))
        if 0 < w * h * divisor**2 <= resolution**2
    ]
    if not candidates:
        raise DataError(f"the rule current has no bucket for a picture of {picture}", "leave it out")
    return min(candidates, key=lambda size: abs(size[0] * size[1] - area))
