"""SA-1B's published latents through the steps before encoding: source and download."""

import os
from pathlib import Path

import numpy as np
import pytest

from atelier.data.raw_source import open_source
from atelier.errors import ConfigError
from atelier.steps import canvases, digits, download, source
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from tests.data import published_latents, raw


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))


def origin(artifacts: str, **uris: str) -> Manifest:
    given = {"tars": "", "captions": "", "boxes": "", **uris}
    return source.run(**given, images=0, seed=0, artifacts=artifacts)  # type: ignore[arg-type]


def test_latents_and_boxes_by_uri(tmp_path: Path) -> None:
    artifacts, folder = str(tmp_path / "artifacts"), tmp_path / "published"
    latents = {f"sa_{number}": np.zeros((4, 8, 8), np.float16) for number in range(1, 7)}
    published_latents.write(folder, raw.make(tmp_path / "tars", 6, 2), latents)
    made = origin(artifacts, latents=f"{folder}/latents/*.npy", boxes=f"{folder}/boxes/*.npy")
    assert made.metadata["form"] == "sa1b-latents"
    found = download.run(source=made, artifacts=artifacts)
    assert (found.kind, found.metadata) == ("sa1b-latents-raw", {"latents": 2, "boxes": 2})
    read = open_source(found)
    assert read.units == ["latents/sa_000000.npy", "latents/sa_000001.npy"]
    assert sum(1 for unit in read.units for _ in read.fetch(unit)()) == 6
    assert canvases.canvases(InputFolder(found), 3) == []  # there are no pictures to show
    (folder / "boxes" / "sa_000001.npy").unlink()
    fewer = origin(artifacts, latents=f"{folder}/latents/*.npy", boxes=f"{folder}/boxes/sa_000000*.npy")
    with pytest.raises(ConfigError, match="1 latents have no boxes file of their name: sa_000001"):
        download.run(source=fewer, artifacts=artifacts)


def test_what_does_not_go_together_is_named(tmp_path: Path) -> None:
    artifacts = str(tmp_path / "artifacts")
    with pytest.raises(ConfigError, match="no URI for boxes"):
        origin(artifacts, latents="/x/*.npy")
    with pytest.raises(ConfigError, match="latents and tars given, but recipe igligen_xl reads sa1b or sa1b-latents"):
        origin(artifacts, latents="/x/*.npy", tars="/x/*.tar")
    with pytest.raises(ConfigError, match="cannot be drawn in the form sa1b-latents"):
        digits.run(images=3, seed=0, artifacts=artifacts, form="sa1b-latents")
