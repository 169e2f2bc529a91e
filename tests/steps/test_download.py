import os
from pathlib import Path

import pytest

from atelier.errors import ConfigError, DataError, StorageError
from atelier.steps import digits, download, source
from atelier.storage import s3
from atelier.storage.folder import InputFolder, existing
from atelier.storage.manifest import Manifest
from tests.servers import WebServer


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of its own for locks, work and cache."""
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))
    return tmp_path / "project"


def from_uris(artifacts: str, tars: str, captions: str, boxes: str) -> Manifest:
    return source.run(tars=tars, captions=captions, boxes=boxes, images=0, seed=0, artifacts=artifacts)


def test_drawn_digits_and_the_same_by_uri_give_the_same_files(tmp_path: Path, web: tuple[WebServer, Path]) -> None:
    artifacts = str(tmp_path / "artifacts")
    drawn = digits.run(images=30, seed=1, artifacts=artifacts)
    assert drawn.kind == "sa1b-source"
    raw = download.run(source=drawn, artifacts=artifacts)
    assert [entry.path for entry in raw.files] == [
        "boxes/sa_000000.npy",
        "captions/captions.parquet",
        "tars/sa_000000.tar",
    ]
    assert raw.metadata == {"tars": 1, "captions": 1, "boxes": 1, "images": 30}

    state, folder = web
    for entry in drawn.files:
        (folder / Path(entry.path).name).write_bytes(InputFolder(drawn).fetch(entry.path).read_bytes())
    state.drops = 2
    sha = drawn.file("sa_000000.tar").sha256
    by_http = from_uris(
        artifacts,
        f"{state.url}/sa_{{000000..000000}}.tar#sha256={sha}",
        f"{state.url}/captions.parquet",
        f"{state.url}/sa_000000.npy",
    )
    assert download.run(source=by_http, artifacts=artifacts).files == raw.files
    before = len(state.requests)
    download.run(source=by_http, artifacts=artifacts)
    assert len(state.requests) == before  # found made


def test_on_s3_nothing_stays_on_the_local_disk(s3_bucket: str, tmp_path: Path, project: Path) -> None:
    drawn = digits.run(images=12, seed=1, artifacts=s3_bucket)
    raw = download.run(source=drawn, artifacts=s3_bucket)
    assert existing(raw.uri) == raw
    # What the run left locally are locks and empty folders.
    assert not list(project.rglob("*.tar"))
    by_pattern = from_uris(
        s3_bucket, f"{drawn.uri}/*.tar", f"{drawn.uri}/captions.parquet", f"{drawn.uri}/boxes/sa_*.npy"
    )
    assert download.run(source=by_pattern, artifacts=s3_bucket).files == raw.files
    tar = InputFolder(raw, tmp_path / "cache").fetch("tars/sa_000000.tar")
    assert s3.sizes(raw.uri)["tars/sa_000000.tar"] == tar.stat().st_size


def test_bad_sources_are_named(tmp_path: Path) -> None:
    artifacts = str(tmp_path / "artifacts")
    drawn = digits.run(images=4, seed=0, artifacts=artifacts)
    captions, boxes = f"{drawn.uri}/captions.parquet", f"{drawn.uri}/boxes/*.npy"

    def fetch(tars: str, boxes: str = boxes) -> None:
        download.run(source=from_uris(artifacts, tars, captions, boxes), artifacts=artifacts)

    with pytest.raises(DataError, match="no file fits"):
        fetch(f"{drawn.uri}/nothing_*.tar")
    with pytest.raises(StorageError, match="sa_000000"):
        fetch(f"{tmp_path}/sa_000000.tar")
    with pytest.raises(ConfigError, match="1 tars have no boxes file of their name: sa_000007"):
        fetch(f"{drawn.uri}/sa_{{000000,000007}}.tar")
    with pytest.raises(ConfigError, match=r"both become tars/sa_000000\.tar"):
        fetch(f"{drawn.uri}/{{sa_000000.tar,./sa_000000.tar}}")
    with pytest.raises(DataError, match="sha256"):
        fetch(f"{drawn.uri}/sa_000000.tar#sha256={'0' * 64}")
    with pytest.raises(ConfigError, match="no URI for captions and boxes"):
        from_uris(artifacts, "x.tar", "", "")
    with pytest.raises(ConfigError, match="images=0"):
        digits.run(images=0, seed=0, artifacts=artifacts)


def test_damaged_source_is_refused_by_its_checksum(tmp_path: Path) -> None:
    artifacts = str(tmp_path / "artifacts")
    drawn = digits.run(images=4, seed=0, artifacts=artifacts)
    tar = Path(drawn.uri) / "sa_000000.tar"
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"sa_000000\.tar: sha256"):
        download.run(source=drawn, artifacts=artifacts)
