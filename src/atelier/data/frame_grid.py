"""Frames in one picture and back: R × C cells of one size, in reading order (frame i in row i // C, column i % C).

A grid is what GRID (arXiv 2412.10718) trains and samples instead of a video. Arrays are uint8 [H, W, channels].
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atelier.data.buckets import TOKEN
from atelier.errors import ConfigError

Pixels = NDArray[np.uint8]
GENERATE = 1
"""In a mask: the cell is to be drawn; 0: it is given and kept."""


@dataclass(frozen=True)
class FrameGrid:
    """The shape of a grid.

    Raises:
        ConfigError: it has no cell.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ConfigError(f"{self} is no grid", "give at least one row and one column")

    def __str__(self) -> str:
        """``4 × 6``."""
        return f"{self.rows} × {self.columns}"

    @property
    def cells(self) -> int:
        """Frames in it."""
        return self.rows * self.columns

    def cell_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a cell of a picture.

        Raises:
            ConfigError: the picture is not whole cells.
        """
        if height % self.rows or width % self.columns:
            raise ConfigError(
                f"a picture of {width} × {height} pixels is no grid of {self}: "
                f"its height must be a multiple of {self.rows}, its width of {self.columns}",
                "give the grid that it was packed as, or a picture that was not cut",
            )
        return height // self.rows, width // self.columns

    def require_tokens(self, height: int, width: int, token: int = TOKEN) -> None:
        """A picture's cells are whole tokens, so that their borders lie on tokens' borders.

        Args:
            height, width: of the picture, pixels.
            token: pixels a token's side.

        Raises:
            ConfigError: they are not.
        """
        cell = self.cell_size(height, width)
        if cell[0] % token or cell[1] % token:
            raise ConfigError(
                f"the cells of a {self} grid of {width} × {height} pixels are {cell[1]} × {cell[0]}, "
                f"not whole tokens of {token} pixels",
                f"use a width that is a multiple of {token * self.columns} and a height of {token * self.rows}",
            )

    def pack(self, frames: Pixels) -> Pixels:
        """[R · C, h, w, channels] → [R · h, C · w, channels].

        Raises:
            ConfigError: it is another number of frames.
        """
        if frames.ndim != 4 or len(frames) != self.cells:
            raise ConfigError(
                f"a grid of {self} takes {self.cells} frames, these are {frames.shape}", "cut the video first"
            )
        _, height, width, channels = frames.shape
        lines = frames.reshape(self.rows, self.columns, height, width, channels).transpose(0, 2, 1, 3, 4)
        return lines.reshape(self.rows * height, self.columns * width, channels)

    def unpack(self, picture: Pixels) -> Pixels:
        """The exact inverse of ``pack``.

        Raises:
            ConfigError: the picture is not whole cells.
        """
        height, width = self.cell_size(*picture.shape[:2])
        lines = picture.reshape(self.rows, height, self.columns, width, picture.shape[2]).transpose(0, 2, 1, 3, 4)
        return lines.reshape(self.cells, height, width, picture.shape[2])

    def tiled(self, cell: Pixels) -> Pixels:
        """One frame in every cell: what image-to-video starts from."""
        return self.pack(np.broadcast_to(cell, (self.cells, *cell.shape)))

    def between_rows(self, keys: Pixels) -> Pixels:
        """What interpolation starts from: each row fades from its key frame to the next row's, the last to the first.

        Cell (r, c) = key r · (1 − c/C) + key r+1 · c/C, cut to whole grey levels.

        Args:
            keys: [R, h, w, channels].

        Raises:
            ConfigError: it is another number of keys.
        """
        if keys.ndim != 4 or len(keys) != self.rows:
            raise ConfigError(
                f"a grid of {self} takes {self.rows} key frames, these are {keys.shape}", "one for each row"
            )
        share = (np.arange(self.columns) / self.columns).reshape(1, -1, 1, 1, 1)
        own, following = keys[:, None].astype(np.float64), np.roll(keys, -1, axis=0)[:, None].astype(np.float64)
        blended = own * (1 - share) + following * share
        return self.pack(blended.astype(np.uint8).reshape(self.cells, *keys.shape[1:]))

    def mask(self, given: Iterable[tuple[int, int]], height: int, width: int) -> Pixels:
        """Which pixels are to be drawn, [height, width]: 0 in the given cells, 1 (``GENERATE``) elsewhere.

        Args:
            given: (row, column) of the cells to keep; all of column 0 for key frames.

        Raises:
            ConfigError: there is no such cell, or the picture is not whole cells.
        """
        cell_height, cell_width = self.cell_size(height, width)
        mask = np.full((height, width), GENERATE, np.uint8)
        for row, column in given:
            if not (0 <= row < self.rows and 0 <= column < self.columns):
                raise ConfigError(f"a grid of {self} has no cell {row, column}", "count rows and columns from 0")
            top, left = row * cell_height, column * cell_width
            mask[top : top + cell_height, left : left + cell_width] = 1 - GENERATE
        return mask
