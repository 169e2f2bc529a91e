"""FID's Gaussians: counting, merging, files and the distance, against plain definitions and scipy."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from atelier.errors import DataError, StorageError
from atelier.evaluation.gaussian import Gaussian, Moments, frechet_distance, read, write


def rows(count: int, dimension: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension)) + 100.0


def of(data: np.ndarray) -> Gaussian:
    moments = Moments(data.shape[1])
    moments.add(data)
    return moments.gaussian()


@pytest.mark.parametrize("cuts", [[], [1], [7, 30], [0, 1, 2, 3, 49]])
def test_moments_do_not_depend_on_batches_or_parts(cuts: list[int]) -> None:
    data = rows(50)
    parts = []
    for piece in np.split(data, cuts):
        part = Moments(6)
        for batch in np.array_split(piece, 3):
            part.add(batch)
        parts.append(part)
    whole = Moments(6)
    for part in reversed(parts):
        whole.merge(part)
    found = whole.gaussian()
    np.testing.assert_allclose(found.mean, data.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(data, rowvar=False), rtol=1e-10)


def test_a_part_survives_its_file(tmp_path: Path) -> None:
    part = Moments(6)
    part.add(rows(9))
    part.save(tmp_path / "part.npz")
    found = Moments.load(tmp_path / "part.npz")
    assert found.count == 9
    assert (found.mean == part.mean).all()
    assert (found.scatter == part.scatter).all()


def test_distance_is_scipys() -> None:
    first, second = of(rows(40, 12, 1)), of(rows(60, 12, 2))
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    apart = first.mean - second.mean
    wanted = apart @ apart + np.trace(first.covariance + second.covariance - 2 * root.real)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(wanted, rel=1e-9)


def test_distance_in_closed_form() -> None:
    """Gaussians with commuting covariances: |Δμ|² + Σ (σ₁ - σ₂)²; zero from itself; singular ones too."""
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    sigmas = np.array([[3.0, 2.0, 0.0], [1.0, 4.0, 0.5]])
    first, second = (
        Gaussian(np.full(3, m), (turned * s**2) @ turned.T) for m, s in zip((0.0, 2.0), sigmas, strict=True)
    )
    assert frechet_distance(first, second) == pytest.approx(3 * 4 + 4 + 4 + 0.25, rel=1e-7)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    few = of(rows(3, 20))  # rank 2 of 20
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_statistics_file(tmp_path: Path) -> None:
    gaussian = of(rows(40))
    write(gaussian, tmp_path / "stats.npz")
    with np.load(tmp_path / "stats.npz", allow_pickle=False) as raw:
        assert sorted(raw.files) == ["mu", "sigma"]
    found = read(tmp_path / "stats.npz", 6)
    assert (found.mean == gaussian.mean).all()
    assert (found.covariance == gaussian.covariance).all()
    with pytest.raises(DataError, match="statistics of 6 features, these are of 2048"):
        read(tmp_path / "stats.npz", 2048)


def test_what_is_no_statistics(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    with pytest.raises(StorageError, match="no such file"):
        read(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"stats\.npz"):
        read(path)
    np.savez(path, mean=np.zeros(2))
    with pytest.raises(DataError, match="it has mean, not mu, sigma"):
        read(path)
    np.savez(path, mu=np.array([{"a": 1}], dtype=object), sigma=np.zeros((1, 1)))
    with pytest.raises(DataError, match="allow_pickle"):
        read(path)
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(DataError, match="are no Gaussian"):
        read(path)


def test_what_cannot_be_counted() -> None:
    moments = Moments(2)
    with pytest.raises(DataError, match="0 pictures"):
        moments.gaussian()
    with pytest.raises(DataError, match="not finite"):
        moments.add(np.full((1, 2), np.nan))
    with pytest.raises(DataError, match=r"\[1, 3\], not \[n, 2\]"):
        moments.add(np.zeros((1, 3)))
    with pytest.raises(DataError, match="of 2 and 3 features"):
        frechet_distance(of(rows(9, 2)), of(rows(9, 3)))
