"""A video as a folder of numbered pictures: their order, which of them make a grid, their pixels."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from atelier.data.buckets import Bucket, fitted
from atelier.data.frame_grid import FrameGrid, Pixels
from atelier.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
Tail = Literal["leave", "refuse", "overlap", "repeat"]
_NUMBER = re.compile(r"frame[ _-]?(\d+)|(\d+)(?!.*\d)", re.IGNORECASE)


class Cutting(NamedTuple):
    """Which frames each grid takes, and how many are in none.

    Attributes:
        grids: of each, the frames' places in the video, one a cell.
        left_out: frames after the last grid that are in none; what the stride passes over is not counted.
    """

    grids: list[list[int]]
    left_out: int


class Frames(NamedTuple):
    """Frames of one size.

    Attributes:
        pixels: uint8 [N, h, w, 3].
        resized: how many were of another size than the first.
    """

    pixels: Pixels
    resized: int


def in_order(names: Iterable[str]) -> list[str]:
    """Names by frame number: frame_2 before frame_10. It is the number after "frame", else the last one in the name.

    Raises:
        DataError: one has no number, or two have the same.
    """
    numbered: dict[int, str] = {}
    for name in names:
        found = _NUMBER.search(Path(name).stem)
        if not found:
            raise DataError(f"{name} has no frame number", "name frames by number, e.g. frame_0001.png")
        number = int(found[1] or found[2])
        other = numbered.setdefault(number, name)
        if other != name:
            raise DataError(f"{other} and {name} are both frame {number}", "number every frame once")
    return [numbered[number] for number in sorted(numbered)]


def frame_files(folder: Path) -> list[Path]:
    """A folder's pictures by frame number.

    Raises:
        DataError: it holds none, or they cannot be put into an order.
    """
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder} holds no frames", f"put pictures there ({', '.join(SUFFIXES)})")
    return [folder / name for name in in_order(names)]


def cut(count: int, grid: FrameGrid, stride: int = 1, tail: Tail = "leave") -> Cutting:
    """A video's frames as grids that follow one another.

    Args:
        count: frames of the video.
        stride: every so many-th frame is taken.
        tail: what is done with frames that fill no grid. ``leave``: they are in none, and counted in ``left_out``
            (upstream leaves them out too, and short videos whole, without a word). ``refuse``: an error. ``overlap``:
            the last grid takes the video's last frames, some a second time. ``repeat``: the last frame fills it up.

    Raises:
        ConfigError: the stride or the policy is none.
        DataError: ``refuse`` and frames are left; ``overlap`` and the video has fewer frames than a grid; no frames.
    """
    if stride < 1:
        raise ConfigError(f"a stride of {stride} takes no frames", "give 1 or more")
    if tail not in ("leave", "refuse", "overlap", "repeat"):
        raise ConfigError(f"there is no tail policy {tail!r}", "use leave, refuse, overlap or repeat")
    taken = list(range(0, count, stride))
    whole = len(taken) // grid.cells
    grids = [taken[number * grid.cells : (number + 1) * grid.cells] for number in range(whole)]
    rest = taken[whole * grid.cells :]
    if not taken:
        raise DataError("a video has no frames", "leave it out")
    if not rest or tail == "leave":
        return Cutting(grids, len(rest))
    said = f"{len(taken)} frames (of {count}, every {stride}.) fill {whole} grids of {grid} and leave {len(rest)}"
    if tail == "refuse":
        raise DataError(said, "cut the video to whole grids, or choose another policy for the tail")
    if tail == "repeat":
        return Cutting([*grids, rest + rest[-1:] * (grid.cells - len(rest))], 0)
    if not whole:
        raise DataError(said, "use a smaller grid or stride, or let the last frame repeat")
    return Cutting([*grids, taken[-grid.cells :]], 0)


def read_frames(
    files: Sequence[Path], cell: Bucket | None = None, background: tuple[int, int, int] = (0, 0, 0)
) -> Frames:
    """The pictures of one video, all brought to one size.

    Args:
        cell: what each is scaled and cut to (``buckets.grid_bucket``), by the first one's size; None: they keep the
            first one's size. A frame of another size is scaled and cut until it fits.
        background: under transparent pixels; black, as GRID's prompts say ("on a black background").

    Raises:
        DataError: one cannot be read (upstream puts a black cell in its place), or there are none.
    """
    if not files:
        raise DataError("there are no frames to read", "give at least one")
    frames: list[Pixels] = []
    first: tuple[int, int] | None = None
    resized = 0
    for file in files:
        image = _opened(file, background)
        first = first or image.size
        resized += image.size != first
        size = first if cell is None else cell.size
        how = cell if cell is not None and image.size == first else fitted(image.size, size)
        frames.append(np.asarray(_brought(image, how), np.uint8))
    return Frames(np.stack(frames), resized)


def _opened(file: Path, background: tuple[int, int, int]) -> Image.Image:
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            if "A" not in upright.getbands() and "transparency" not in upright.info:
                return upright.convert("RGB")
            clear = upright.convert("RGBA")
            under = Image.new("RGBA", clear.size, (*background, 255))
            return Image.alpha_composite(under, clear).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} is no picture that can be read ({error})", "replace it, or leave the video out"
        ) from error


def _brought(image: Image.Image, how: Bucket) -> Image.Image:
    if image.size != how.scaled:
        image = image.resize(how.scaled, Image.Resampling.LANCZOS)
    left, top = how.corner
    return image.crop((left, top, left + how.size[0], top + how.size[1]))
