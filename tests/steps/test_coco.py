"""COCO's form through the steps before training: source, download, and the report's look at it."""

import os
from pathlib import Path

import pytest

from atelier.data import digits
from atelier.errors import ConfigError
from atelier.steps import canvases, download, source
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder of its own for locks, work and cache."""
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))


def origin(artifacts: str, images: int = 0, **uris: str) -> Manifest:
    given = {"tars": "", "captions": "", "boxes": "", "pictures": "", **uris}
    return source.run(**given, images=images, seed=1, artifacts=artifacts, recipe="gligen_coco")  # type: ignore[arg-type]


def test_drawn_digits_and_the_same_by_uri_give_the_same_raw_data(tmp_path: Path) -> None:
    artifacts = str(tmp_path / "artifacts")
    drawn = origin(artifacts, images=5)
    assert drawn.kind == "coco-source"
    raw = download.run(source=drawn, artifacts=artifacts)
    assert raw.kind == "coco-raw"
    assert raw.metadata == {"images": 5, "annotations": 2}
    folder = drawn.uri
    by_uri = origin(
        artifacts,
        pictures=f"{folder}/train2017/*.jpg",
        boxes=f"{folder}/annotations/instances_train2017.json",
        captions=f"{folder}/annotations/captions_train2017.json",
    )
    assert download.run(source=by_uri, artifacts=artifacts).files == raw.files
    shown = canvases.canvases(InputFolder(raw), 3)
    assert len(shown) == 3
    for picture in shown:
        assert picture.image.size == (64, 64)
        assert len(picture.boxes) == len(picture.labels) >= 1
        assert set(picture.labels) <= set(digits.WORDS)


def test_uris_that_do_not_fit_are_named(tmp_path: Path) -> None:
    artifacts = str(tmp_path / "artifacts")
    with pytest.raises(ConfigError, match="tars given, but recipe gligen_coco reads coco data"):
        origin(artifacts, tars="/x/sa_000000.tar")
    with pytest.raises(ConfigError, match="no URI for boxes"):
        origin(artifacts, pictures="/x/*.jpg")
    picture = tmp_path / "1.jpg"
    picture.write_bytes(b"")
    two = origin(artifacts, pictures=str(picture), boxes="/x/{a,b}.json")
    with pytest.raises(ConfigError, match="2 files of boxes"):
        download.run(source=two, artifacts=artifacts)
