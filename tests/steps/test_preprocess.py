"""The step over real tars and stores; the encoder is the small one of the data tests (the twin's needs its base)."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from atelier.data.loader import ShardDataset
from atelier.errors import ConfigError
from atelier.recipes import registry
from atelier.steps import digits, download, preprocess
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data.test_preprocess import PixelEncoder


class PixelRecipe:
    """Has what the step reads of a recipe."""

    config = SimpleNamespace(resolution=64, samples_per_shard=8, encode_batch=4, max_quarantined=0.1)
    sample_settings: ClassVar = {"min_confidence": 0.25, "max_boxes": 4}

    def encoder(self, base: Path) -> PixelEncoder:
        assert (base / "model_index.json").is_file()
        return PixelEncoder()

    def check_base(self, fetch: Callable[[str], Path]) -> None:
        """Any will do."""

    def features(self, base: Path) -> dict[str, Any]:
        return {"made_by": "pixels"}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))
    monkeypatch.setattr(registry, "get", lambda recipe, profile: PixelRecipe())


def from_nothing(artifacts: str, tmp_path: Path) -> Manifest:
    raw = download.run(source=digits.run(images=20, seed=0, artifacts=artifacts), artifacts=artifacts)
    out = OutputFolder(artifacts + "/base", tmp_path / "base-work")
    (out.path / "model_index.json").write_text("{}")
    base = out.finish("base", {}, {})
    return run(raw, base, artifacts)


def run(raw: Manifest, base: Manifest, artifacts: str, share: float = 0.0, workers: int = 0) -> Manifest:
    return preprocess.run(
        raw=raw, base=base, recipe="pixels", profile="laptop", samples_per_shard=0, batch_size=0,
        max_quarantined=share, artifacts=artifacts, workers=workers,
    )  # fmt: skip


def test_the_number_of_workers_is_no_part_of_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = str(tmp_path / "artifacts")
    first = from_nothing(artifacts, tmp_path)
    inputs = [Manifest.load(first.made_by["inputs"][name]["uri"]) for name in ("raw", "base")]
    assert run(*inputs, artifacts, workers=3).digest == first.digest
    assert f"preprocess: cached at {first.uri}" in capsys.readouterr().out
    assert first.made_by["notes"]["images_per_s"] > 0


def test_local_and_s3_give_the_same_shards(s3_bucket: str, tmp_path: Path) -> None:
    local = from_nothing(str(tmp_path / "artifacts"), tmp_path)
    remote = from_nothing(s3_bucket, tmp_path)
    assert local.kind == "shards"
    assert remote.digest == local.digest
    assert [shard["samples"] for shard in local.metadata["shards"]] == [8, 8, 4]
    near, far = ShardDataset(local), ShardDataset(remote, tmp_path / "cache")
    for index in range(20):
        assert (near.sample(index)["latent"] == far.sample(index)["latent"]).all()
    # Raw tars are read once: their copies are let go of.
    assert not list((tmp_path / "project").rglob("sa_000000.tar"))


def test_parameters_out_of_range(tmp_path: Path) -> None:
    nothing = Manifest("none", str(tmp_path), ())
    with pytest.raises(ConfigError, match=r"max_quarantined=1\.5"):
        run(nothing, nothing, str(tmp_path), share=1.5)
    with pytest.raises(ConfigError, match=r"workers=-1"):
        run(nothing, nothing, str(tmp_path), workers=-1)
