"""A folder of frames: order, grids, tails, sizes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier.data.buckets import grid_bucket
from atelier.data.frame_grid import FrameGrid
from atelier.data.video_frames import cut, frame_files, in_order, read_frames
from atelier.errors import ConfigError, DataError

GRID = FrameGrid(2, 2)


def test_order_is_by_number() -> None:
    assert in_order(["f_10.png", "f_9.png", "f_1.png"]) == ["f_1.png", "f_9.png", "f_10.png"]
    assert in_order(["frame2_256x256.jpg", "frame10_256x256.jpg", "frame1_256x256.jpg"])[1:] == [
        "frame2_256x256.jpg",
        "frame10_256x256.jpg",
    ]


def test_no_order_is_an_error() -> None:
    with pytest.raises(DataError, match=r"cover\.png has no frame number"):
        in_order(["1.png", "cover.png"])
    with pytest.raises(DataError, match="are both frame 1"):
        in_order(["1.png", "01.png"])


def test_several_grids_and_a_tail_that_is_counted() -> None:
    found = cut(11, GRID)
    assert found.grids == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found.left_out == 3
    assert cut(3, GRID) == ([], 3)
    assert cut(8, GRID).left_out == 0


def test_a_stride_takes_every_so_many_th() -> None:
    assert cut(11, GRID, stride=2) == ([[0, 2, 4, 6]], 2)


def test_the_other_tails() -> None:
    assert cut(6, GRID, tail="overlap") == ([[0, 1, 2, 3], [2, 3, 4, 5]], 0)
    assert cut(6, GRID, tail="repeat") == ([[0, 1, 2, 3], [4, 5, 5, 5]], 0)
    assert cut(8, GRID, tail="refuse") == ([[0, 1, 2, 3], [4, 5, 6, 7]], 0)
    for tail, count in (("refuse", 6), ("overlap", 3)):
        with pytest.raises(DataError, match="grids of 2 × 2 and leave"):
            cut(count, GRID, tail=tail)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no tail policy"):
        cut(6, GRID, tail="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stride of 0"):
        cut(6, GRID, stride=0)
    with pytest.raises(DataError, match="no frames"):
        cut(0, GRID)


def _folder(tmp_path: Path, sizes: list[tuple[int, int]]) -> Path:
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "metadata.json").write_text("{}")
    return tmp_path


def test_frames_of_other_sizes_are_resized_and_counted(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [(32, 16)] * 9 + [(40, 40), (32, 16)])
    found = read_frames(frame_files(folder))
    assert found.pixels.shape == (11, 16, 32, 3)
    assert found.resized == 1
    assert found.pixels[:, 0, 0, 0].tolist() == list(range(11))


def test_frames_come_to_the_cell(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [(100, 50), (100, 50), (60, 60)])
    cell = grid_bucket((100, 50), 2, 2, 100 * 100).cell
    assert cell.size == (64, 32)
    assert read_frames(frame_files(folder), cell).pixels.shape == (3, 32, 64, 3)


def test_transparency_lies_on_black(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 100, 50, 0)).save(tmp_path / "1.png")
    assert not read_frames([tmp_path / "1.png"]).pixels.any()
    assert np.unique(read_frames([tmp_path / "1.png"], background=(9, 9, 9)).pixels).tolist() == [9]


def test_a_broken_frame_is_an_error(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [(8, 8), (8, 8)])
    whole = (folder / "frame_1.png").read_bytes()
    (folder / "frame_1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"frame_1\.png is no picture"):
        read_frames(frame_files(folder))
    with pytest.raises(DataError, match="holds no frames"):
        frame_files(tmp_path / "nothing")
