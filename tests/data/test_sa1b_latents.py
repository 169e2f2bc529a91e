"""SA-1B's published latents and boxes: the same shards as from the tars, and what is wrong is told."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.data.encoder import Encoder
from atelier.data.encoding import Encoding
from atelier.data.preprocess import Settings, preprocess
from atelier.data.quarantine import Quarantine, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import RawSource, open_source
from atelier.data.sa1b_latents import read_latents
from atelier.data.sa1b_latents_source import SA1BLatentsSource
from atelier.errors import ConfigError, DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import published_latents as published
from tests.data import raw
from tests.data.encoders import PixelEncoder
from tests.data.test_safe_npy import Bomb

SHAPE = (3, 16, 16)


class LatentPixels(PixelEncoder):
    """Downscaled pixels as latents, and ready-made ones taken as they are."""

    def latent_shape(self, res: int) -> tuple[int, ...]:
        return 3, res // 4, res // 4

    def encode_latents(self, latents: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        self.encoded += len(latents)
        return [
            {"latent": latent, "phrases": np.full((len(example.phrases), 8), len(example.caption), np.float16)}
            for latent, example in zip(latents, examples, strict=True)
        ]


def shards(source: RawSource, place: Path, encoder: Encoder | None = None, share: float = 0.0) -> Manifest:
    out = OutputFolder(str(place), place.with_name(place.name + "-work"))
    settings = Settings(res=64, samples_per_shard=10, batch=4, max_boxes=3)
    metadata = preprocess(source, encoder or LatentPixels(), out, settings, Quarantine(share, out.path / "q.jsonl"))
    return out.finish("shards", metadata, {})


def latents_of(manifest: Manifest) -> dict[str, np.ndarray]:
    from atelier.data.loader import ShardDataset

    dataset = ShardDataset(manifest)
    return {sample["key"]: sample["latent"] for sample in map(dataset.sample, range(len(dataset)))}


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw.make(tmp_path_factory.mktemp("tars"), 24, 2)


@pytest.fixture
def folder(tars: Path, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    latents = {f"sa_{number}": rng.normal(size=SHAPE).astype(np.float16) for number in range(1, 25)}
    published.write(tmp_path / "published", tars, latents)
    return tmp_path / "published"


def test_the_same_shards_as_from_the_tars(tars: Path, tmp_path: Path) -> None:
    """Boxes (selected), sizes, captions, phrases and keys are equal to the last byte: so is the digest."""
    by_tars = shards(raw.source(tars), tmp_path / "by-tars")
    published.write(tmp_path / "published", tars, latents_of(by_tars))
    source = open_source(published.source(tmp_path / "published").manifest)
    assert isinstance(source, SA1BLatentsSource)
    by_latents = shards(source, tmp_path / "by-latents")
    assert by_latents.metadata["samples"] == 24
    assert by_latents.digest == by_tars.digest


def read(folder: Path, name: str = "sa_000000.npy") -> list[RawExample | Quarantined]:
    return list(read_latents(folder / "latents" / name, folder / "boxes" / name))


def bad(items: list[RawExample | Quarantined]) -> dict[str, str]:
    return {item.key: item.reason for item in items if isinstance(item, Quarantined)}


def content(folder: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    """The first file's latents and rows, to be changed."""
    latents = np.load(folder / "latents" / "sa_000000.npy", allow_pickle=True).item()
    return latents, np.load(folder / "boxes" / "sa_000000.npy", allow_pickle=True).tolist()


def change(folder: Path, edit: Callable[[dict[str, Any], list[list[Any]]], None]) -> None:
    latents, rows = content(folder)
    edit(latents, rows)
    published.save(folder / "latents" / "sa_000000.npy", latents)
    published.write_rows(folder, "sa_000000", [tuple(row) for row in rows])


def test_an_index_that_one_side_lacks_is_counted(folder: Path) -> None:
    def edit(latents: dict[str, Any], rows: list[list[Any]]) -> None:
        latents["indices"][0] = 99
        latents["indices"][2] = 2
        latents["indices"][3] = -4
        del rows[4]

    change(folder, edit)
    assert bad(read(folder)) == {
        "sa_99": "no boxes for its latent",
        "sa_2": "the latent is there twice",
        "sa_000000.npy[3]": "unusable index: -4",
        "sa_5": "no boxes for its latent",
        "sa_1": "no latent for its boxes",
        "sa_3": "no latent for its boxes",
        "sa_4": "no latent for its boxes",
    }


def test_boxes_captions_and_sizes_are_looked_at(folder: Path) -> None:
    def edit(latents: dict[str, Any], rows: list[list[Any]]) -> None:
        rows[0][2] = np.array([[0.5, 0.5, -0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2]], np.float16)
        rows[0][3], rows[0][4] = np.full(3, 0.5, np.float16), ["reversed", "good", "empty"]
        rows[1][2] = np.array([[0.5, 0.5, -0.2, 0.2]], np.float16)
        rows[1][3], rows[1][4] = np.full(1, 0.5, np.float16), ["reversed"]
        rows[2][2] = rows[2][2].copy()
        rows[2][2][0, 0] = np.nan
        rows[3][1] = " "
        rows[4][4] = []
        rows[5][5] = None
        rows[6][5] = (0, 1500)
        rows[7][5] = (1500, 2249)

    change(folder, edit)
    items = read(folder)
    first = items[0]
    assert isinstance(first, RawExample)
    assert (first.phrases, first.dropped) == (("good",), 2)
    eighth = items[7]
    assert isinstance(eighth, RawExample)
    assert eighth.original_size == (1500, 2249)
    found = bad(items)
    assert found.pop("sa_2") == "no box inside the image: 1 outside or empty"
    assert found.pop("sa_5").startswith("its boxes are not readable")
    assert found == {
        "sa_3": "non-finite boxes",
        "sa_4": "no caption",
        "sa_6": "no original size in its row",
        "sa_7": "impossible original size: 0×1500",
    }


def test_latents_are_looked_at(folder: Path, tmp_path: Path) -> None:
    def edit(latents: dict[str, Any], rows: list[list[Any]]) -> None:
        latents["latents"][1, 0, 0, 0] = np.inf
        latents["latents"][5, 2, 3, 3] = np.nan

    change(folder, edit)
    made = shards(published.source(folder), tmp_path / "out", share=0.1)
    assert made.metadata["quarantined"] == {"non-finite latent": 2}
    assert made.metadata["samples"] == 22


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda latents: latents.astype(np.float32), r"12 × wrong dtype.* latent is float32, not float16"),
        (lambda latents: latents.repeat(2, 2).repeat(2, 3), r"12 × latent of another resolution.* \[3, 32, 32\], not"),
        (lambda latents: latents[:, :2], r"latent of another resolution: \[2, 16, 16\], not \[3, 16, 16\]"),
    ],
)
def test_latents_of_another_kind_end_the_run_by_name(
    folder: Path, tmp_path: Path, edit: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    change(folder, lambda latents, rows: latents.update(latents=edit(latents["latents"])))
    with pytest.raises(DataError, match=reason):
        shards(published.source(folder), tmp_path / "out", share=0.1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 2], "no dict of indices and latents"),
        ({"indices": [1]}, "no dict of indices and latents"),
        ({"indices": [1, 2], "latents": np.zeros((1, 4, 8, 8), np.float16)}, "1 latents and not as many indices"),
        ({"indices": [1], "latents": np.zeros((4, 8, 8), np.float16)}, "no dict of indices and latents"),
    ],
)
def test_files_of_another_form(folder: Path, value: Any, said: str) -> None:
    published.save(folder / "latents" / "sa_000000.npy", value)
    found = bad(read(folder))
    assert sorted(found) == sorted(f"sa_{number}" for number in range(1, 13))  # the loss counts in full
    assert all(reason.startswith("latents file not readable") and said in reason for reason in found.values())


def test_a_pickle_that_would_run_code_does_not(folder: Path, tmp_path: Path) -> None:
    latents = folder / "latents" / "sa_000000.npy"
    published.save(latents, {"indices": [Bomb(tmp_path / "exploded")], "latents": np.zeros((1, 3, 16, 16))})
    assert all("posix.mkdir" in reason for reason in bad(read(folder)).values())
    published.write_rows(folder, "sa_000000", [(1, Bomb(tmp_path / "exploded"), None, None, None, None)])
    assert "posix.mkdir" in bad(read(folder))["sa_000000.npy"]
    assert not (tmp_path / "exploded").exists()


def test_boxes_that_cannot_be_read_quarantine_their_latents(folder: Path) -> None:
    (folder / "boxes" / "sa_000000.npy").write_bytes(b"\x93NUMPY damaged")
    found = bad(read(folder))
    assert len(found) == 12
    assert all(reason.startswith("boxes file not readable") for reason in found.values())


def test_an_empty_file_is_told(folder: Path) -> None:
    published.save(folder / "latents" / "sa_000000.npy", {"indices": [], "latents": np.zeros((0, *SHAPE), np.float16)})
    np.save(folder / "boxes" / "sa_000000.npy", np.empty((0, 6), object), allow_pickle=True)
    assert bad(read(folder)) == {"sa_000000.npy": "no latents in the file"}


def test_latents_without_boxes_and_an_encoder_for_images_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ready-made latents"):
        Encoding(published.source(folder), PixelEncoder(), Settings(64, 10, 4))
    (folder / "boxes" / "sa_000001.npy").unlink()
    with pytest.raises(DataError, match=r"no boxes for latents/sa_000001\.npy"):
        published.source(folder)


def test_an_example_does_not_hold_its_file(folder: Path) -> None:
    for item in read(folder):
        assert isinstance(item, RawExample)
        assert item.latent is not None
        assert item.latent.base is None


MEASURE = """\
import resource, sys
from pathlib import Path
from atelier.data.sa1b_latents import read_latents
folder = Path(sys.argv[1])
files = sorted(folder.glob("latents/*.npy"))
seen = sum(1 for path in files[: int(sys.argv[2])] for _ in read_latents(path, folder / "boxes" / path.name))
print(seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_is_that_of_one_file(tmp_path: Path) -> None:
    """Six files of 48 MB take no more than one of them does."""
    rows = [(number, "a one", np.array([[0.5, 0.5, 0.4, 0.4]], np.float16), np.full(1, 0.5, np.float16), ["a one"],
             (64, 64)) for number in range(1, 193)]  # fmt: skip
    for number in range(6):
        latents = {"indices": [row[0] for row in rows], "latents": np.zeros((192, 4, 128, 256), np.float16)}
        published.save(tmp_path / "latents" / f"sa_{number:06d}.npy", latents)
        published.write_rows(tmp_path, f"sa_{number:06d}", rows)

    def peak(files: int) -> float:
        env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}
        words = [sys.executable, "-c", MEASURE, str(tmp_path), str(files)]
        seen, kib = subprocess.run(words, check=True, capture_output=True, text=True, env=env).stdout.split()
        assert int(seen) == 192 * files
        return int(kib) / 1024

    assert peak(6) < peak(1) + 24
