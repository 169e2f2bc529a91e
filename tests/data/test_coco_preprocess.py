"""COCO folders through the preprocessing that the tars go through."""

from pathlib import Path

import numpy as np
import pytest

from atelier.data import coco_folder
from atelier.data.loader import ShardDataset
from atelier.data.preprocess import Settings, preprocess
from atelier.data.quarantine import Quarantine
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import open_source
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import coco_raw


class CaptionEncoder:
    """Pixels for latents, a row a caption and a phrase; stops like a user after some images."""

    digest = "sha256:captions"

    def __init__(self, fail_after: int = 1000) -> None:
        self.encoded, self.fail_after = 0, fail_after

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        if self.encoded >= self.fail_after:
            raise KeyboardInterrupt
        self.encoded += len(images)
        return [
            {
                "latent": image[::4, ::4].transpose(2, 0, 1).astype(np.float16),
                "prompts": np.array([[len(caption)] for caption in example.captions], np.float16),
                "phrases": np.full((len(example.phrases), 2), 1, np.float16),
            }
            for image, example in zip(images, examples, strict=True)
        ]


def run(folder: Path, place: Path, work: Path, encoder: CaptionEncoder | None = None) -> Manifest:
    out = OutputFolder(str(place), work)
    metadata = preprocess(
        open_source(coco_raw.manifest(folder)),
        encoder or CaptionEncoder(),
        out,
        Settings(res=64, samples_per_shard=5, batch=2, max_boxes=3),
        Quarantine(0.2, out.path / "quarantine.jsonl"),
    )
    return out.finish("shards", metadata, {})


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_folder, "UNIT_IMAGES", 8)


def test_shards_of_a_folder(tmp_path: Path) -> None:
    folder = coco_raw.make(tmp_path / "raw", 20)
    (folder / "train2017" / f"{3:012d}.jpg").write_bytes(b"")
    made = run(folder, tmp_path / "out", tmp_path / "work")
    assert [(shard["name"], shard["samples"]) for shard in made.metadata["shards"]] == [
        ("coco-000000-0000.tar", 4),
        ("coco-000000-0001.tar", 3),
        ("coco-000001-0000.tar", 5),
        ("coco-000001-0001.tar", 3),
        ("coco-000002-0000.tar", 4),
    ]
    assert made.metadata["quarantined"] == {"not a readable image": 1}
    dataset = ShardDataset(made)
    for index in range(19):
        sample = dataset.sample(index)
        record = sample["json"]
        assert len(sample["prompts"]) == len(record["captions"]) == 3
        assert len(sample["phrases"]) == len(record["boxes"]) == len(record["boxes_px"]) <= 3
    assert made.metadata["fields"]["phrases"] == ["<f2", [None, 2]]


def test_goes_on_after_a_kill_with_the_same_bytes(tmp_path: Path) -> None:
    folder = coco_raw.make(tmp_path / "raw", 20)
    whole = run(folder, tmp_path / "whole", tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", tmp_path / "work2", CaptionEncoder(fail_after=12))
    encoder = CaptionEncoder()
    assert run(folder, tmp_path / "out", tmp_path / "work2", encoder).digest == whole.digest
    assert encoder.encoded < 20
