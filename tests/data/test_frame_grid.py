"""Frames in a grid and back."""

import numpy as np
import pytest

from atelier.data.frame_grid import FrameGrid
from atelier.errors import ConfigError


def _frames(count: int, height: int = 16, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (3, 2), (1, 5), (5, 1)])
def test_back_are_the_same_frames(shape: tuple[int, int]) -> None:
    grid = FrameGrid(*shape)
    frames = _frames(grid.cells)
    picture = grid.pack(frames)
    assert picture.shape == (shape[0] * 16, shape[1] * 32, 3)
    np.testing.assert_array_equal(grid.unpack(picture), frames)


def test_frames_lie_in_reading_order() -> None:
    frames = _frames(6)
    picture = FrameGrid(2, 3).pack(frames)
    np.testing.assert_array_equal(picture[16:32, 32:64], frames[4])  # second row, second column


def test_a_cut_picture_is_no_grid() -> None:
    with pytest.raises(ConfigError, match="its height must be a multiple of 4, its width of 6"):
        FrameGrid(4, 6).unpack(np.zeros((1024, 1280, 3), np.uint8))
    with pytest.raises(ConfigError, match="takes 24 frames"):
        FrameGrid(4, 6).pack(_frames(23))


def test_cells_are_whole_tokens() -> None:
    FrameGrid(4, 6).require_tokens(1024, 1536)
    with pytest.raises(ConfigError, match=r"(?s)are 200 × 200, not whole tokens.*multiple of 96 and a height of 64"):
        FrameGrid(4, 6).require_tokens(800, 1200)


def test_rows_fade_between_their_keys() -> None:
    keys = np.zeros((3, 16, 16, 3), np.uint8)
    keys[0], keys[1], keys[2] = 100, 201, 0
    cells = FrameGrid(3, 2).unpack(FrameGrid(3, 2).between_rows(keys))
    assert [int(cell[0, 0, 0]) for cell in cells] == [100, 150, 201, 100, 0, 50]
    with pytest.raises(ConfigError, match="takes 2 key frames"):
        FrameGrid(2, 2).between_rows(keys)


def test_the_first_cell_everywhere() -> None:
    frame = _frames(1)[0]
    cells = FrameGrid(2, 3).unpack(FrameGrid(2, 3).tiled(frame))
    assert len(cells) == 6
    assert all((cell == frame).all() for cell in cells)


def test_the_mask_keeps_what_is_given() -> None:
    grid = FrameGrid(2, 3)
    mask = grid.mask([(0, 0), (1, 2)], 4, 6)
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1, 1, 1]] * 2 + [[1, 1, 1, 1, 0, 0]] * 2)
    with pytest.raises(ConfigError, match=r"no cell \(2, 0\)"):
        grid.mask([(2, 0)], 4, 6)


def test_a_grid_has_cells() -> None:
    with pytest.raises(ConfigError, match="is no grid"):
        FrameGrid(0, 6)
