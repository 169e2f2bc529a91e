"""Buckets never enlarge a picture."""

import random

import pytest

from atelier.data.bucket_rules import LEGACY, upstream_bucket
from atelier.data.buckets import bucket, fitted, grid_bucket
from atelier.errors import ConfigError, DataError


def test_no_picture_is_enlarged() -> None:
    chooser = random.Random(0)
    cut = 0.0
    for _ in range(5000):
        picture = chooser.randint(32, 4000), chooser.randint(32, 4000)
        resolution = chooser.choice((512, 768, 1024))
        found = bucket(picture, resolution)
        for side in (0, 1):
            assert 32 <= found.size[side] <= found.scaled[side] <= picture[side], (picture, found)
            assert found.size[side] % 32 == 0
        assert found.size[0] * found.size[1] <= resolution**2
        assert found.size[0] == found.scaled[0] or found.size[1] == found.scaled[1], "cut on one side at most"
        cut += 1 - found.size[0] * found.size[1] / (found.scaled[0] * found.scaled[1])
    assert cut / 5000 < 0.02


def test_known_pictures() -> None:
    assert bucket((1024, 1024), 1024).size == (1024, 1024)
    assert bucket((1000, 1000), 1024).size == (992, 992)
    assert bucket((4000, 4000), 512).size == (512, 512)
    assert bucket((300, 200), 1024).size == (288, 192)
    assert bucket((33, 3000), 1024).size[0] == 32
    with pytest.raises(DataError, match="would have to be enlarged"):
        bucket((31, 500), 512)
    with pytest.raises(ConfigError, match="raise the resolution"):
        bucket((100, 100), 16)


def test_the_cut_is_in_the_centre() -> None:
    found = fitted((100, 50), (32, 32))
    assert found.scaled == (64, 32)
    assert found.corner == (16, 0)


def test_a_grid_has_whole_tokens_a_cell() -> None:
    found = grid_bucket((256, 256), 4, 6, 1536 * 1024)
    assert found.size == (1536, 1024)
    assert found.cell.size == (256, 256)
    chooser = random.Random(0)
    for _ in range(500):
        frame, shape = (
            (chooser.randint(16, 900), chooser.randint(16, 900)),
            (chooser.randint(1, 8), chooser.randint(1, 8)),
        )
        found = grid_bucket(frame, *shape, 1024 * 1024)
        assert found.size[0] % (16 * shape[1]) == 0
        assert found.size[1] % (16 * shape[0]) == 0
        assert found.size[0] * found.size[1] <= 1024 * 1024
        assert all(side <= own for side, own in zip(found.cell.scaled, frame, strict=True))
    with pytest.raises(ConfigError, match="no grid"):
        grid_bucket((256, 256), 0, 6, 1024)
    with pytest.raises(ConfigError, match="hold no 16 × 16"):
        grid_bucket((256, 256), 64, 64, 1024 * 512)


def test_upstreams_rules_enlarge() -> None:
    assert len(LEGACY) == 42
    assert upstream_bucket("grid_fork", (64, 64)).size == (2048, 2048)
    assert upstream_bucket("current", (100, 100)).size == (96, 96)
    assert upstream_bucket("legacy", (1024, 1024), 512).size == (512, 512)
    with pytest.raises(ConfigError, match="no bucket rule"):
        upstream_bucket("newest", (64, 64))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="empty bucket"):
        upstream_bucket("legacy", (3000, 16), 1024)
