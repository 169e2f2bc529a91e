"""The Gaussian that FID sees in a set of features: counted batch by batch, merged, kept in npz, compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.errors import DataError
from atelier.storage.atomic import os_errors, replace_file


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A mean float64 [D] and covariance float64 [D, D] (divided by n - 1)."""

    mean: np.ndarray
    covariance: np.ndarray


class Moments:
    """Count, mean and centred second moments of features, in float64.

    Adding batches and merging parts follow Chan, Golub & LeVeque (1983): how the rows are cut up changes nothing but
    the last digits of float64.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    def add(self, features: np.ndarray) -> None:
        """Adds rows [n, D].

        Raises:
            DataError: they are not finite, or not D wide.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise DataError(f"features are {list(rows.shape)}, not [n, {len(self.mean)}]", "use one feature network")
        if not np.isfinite(rows).all():
            raise DataError("a picture's features are not finite", "the feature network's weights are damaged")
        if len(rows):
            mean = rows.mean(0)
            centred = rows - mean
            self._join(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Adds another part's rows."""
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.scatter += scatter + np.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The Gaussian of the rows.

        Raises:
            DataError: fewer than two.
        """
        if self.count < 2:
            raise DataError(f"{self.count} pictures have no covariance", "give at least two, for FID some ten thousand")
        return Gaussian(self.mean.copy(), self.scatter / (self.count - 1))

    def save(self, path: Path) -> None:
        """Writes the part as npz, whole or not at all."""
        _save(path, count=np.array(self.count), mean=self.mean, scatter=self.scatter)

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """Reads what ``save`` wrote."""
        found = _load(path, ("count", "mean", "scatter"))
        made = cls(len(found["mean"]))
        made.count, made.mean, made.scatter = int(found["count"]), found["mean"], found["scatter"]
        return made


def write(gaussian: Gaussian, path: Path) -> None:
    """Writes ``mu`` and ``sigma``, the form in which FID's statistics are passed around."""
    _save(path, mu=gaussian.mean, sigma=gaussian.covariance)


def read(path: Path, dimension: int | None = None) -> Gaussian:
    """Reads an npz with ``mu`` [D] and ``sigma`` [D, D], e.g. ``fid_stats_mscoco256_val.npz``.

    Raises:
        DataError: it is no such file, holds pickles, or is of another dimension.
        StorageError: it cannot be read.
    """
    found = _load(path, ("mu", "sigma"))
    mean, covariance = np.asarray(found["mu"], np.float64), np.asarray(found["sigma"], np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2 or not np.isfinite(covariance).all():
        raise DataError(f"{path}: mu {mean.shape} and sigma {covariance.shape} are no Gaussian", "give FID statistics")
    if dimension is not None and len(mean) != dimension:
        raise DataError(
            f"{path}: statistics of {len(mean)} features, these are of {dimension}",
            "give the statistics of the pooled layer (2,048 features)",
        )
    return Gaussian(mean, covariance)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁) + tr(Σ₂) - 2 tr((Σ₁ Σ₂)^½), the square of the Fréchet distance (arXiv 1706.08500).

    Σ₁ Σ₂ has the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric: two symmetric decompositions take the place of a
    general matrix square root, which is complex and unstable where a covariance is singular.

    Raises:
        DataError: of different dimensions.
    """
    if first.mean.shape != second.mean.shape:
        raise DataError(
            f"Gaussians of {len(first.mean)} and {len(second.mean)} features", "use one feature network for both"
        )
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    between = np.linalg.eigvalsh(root @ second.covariance @ root)
    apart = first.mean - second.mean
    trace = np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.sqrt(between.clip(0)).sum()
    return float(max(apart @ apart + trace, 0.0))


def _save(path: Path, **arrays: np.ndarray) -> None:
    with replace_file(path) as scratch, scratch.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _load(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    with os_errors(path):
        opened = path.open("rb")
    with opened:
        try:
            with np.load(opened, allow_pickle=False) as found:
                missing = [name for name in names if name not in found.files]
                if missing:
                    raise ValueError(f"it has {', '.join(found.files) or 'nothing'}, not {', '.join(missing)}")
                return {name: found[name] for name in names}
        except (ValueError, OSError, EOFError, AttributeError, KeyError) as error:
            raise DataError(f"{path}: {error}", f"give an npz with {' and '.join(names)}") from error
        except Exception as error:  # numpy lets zipfile's own errors through
            raise DataError(f"{path}: no readable npz ({error})", f"give an npz with {' and '.join(names)}") from error
