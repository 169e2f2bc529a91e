"""Annotating in shards: the same bytes after a kill and for any number of workers; bad images set apart."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atelier.annotate import places
from atelier.annotate.annotator import Annotator
from atelier.annotate.shards import annotate_part, merge_annotations
from atelier.annotate.work import AnnotationWork, digest
from atelier.data.coco_annotated import AnnotatedShards
from atelier.data.coco_folder import COCOFolder
from atelier.data.parts import KIND
from atelier.data.quarantine import Quarantine
from atelier.data.units import work_through
from atelier.errors import DataError
from atelier.storage.folder import OutputFolder
from tests.annotate import tiny
from tests.annotate.annotate_job import CONFIG, run
from tests.annotate.parts import BrightnessTagger, CornerDetector, LengthEncoder, SizeCaptioner
from tests.data import coco_raw

IMAGES = 20


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_raw.make(tmp_path_factory.mktemp("raw"), IMAGES)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return places.resolve(CONFIG.model_copy(update=tiny.folders()))


class Stopping(Annotator):
    """Stops like a user after some batches."""

    def __init__(self, batches: int) -> None:
        super().__init__(BrightnessTagger(), CornerDetector(), SizeCaptioner(), LengthEncoder())
        self.batches, self.images = batches, 0

    def annotate(self, prepared):  # type: ignore[no-untyped-def]
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        self.images += len(prepared)
        return super().annotate(prepared)


def quick(raw: Path, base: Path, annotator: Stopping, share: float = 0.2) -> dict[str, bytes]:
    """A run without models; every file that it committed."""
    out = OutputFolder(str(base / "out"), base / "work")
    source = COCOFolder(coco_raw.manifest(raw), unit_images=6)
    work = AnnotationWork(source, annotator, "sha256:quick", samples_per_shard=6, batch=4)
    quarantine = Quarantine(share, out.path / "quarantine.jsonl")
    units, _ = work_through(source.units, work, out, quarantine, "annotating", total=len(source.images))
    quarantine.check(sum(shard.covers for unit in units for shard in unit.shards))
    return {name: (out.path / name).read_bytes() for name in sorted(out.committed())}


def test_a_run_goes_on_after_its_committed_shards(raw: Path, tmp_path: Path) -> None:
    whole = quick(raw, tmp_path / "whole", Stopping(-1))
    assert len([name for name in whole if name.endswith(".tar")]) == 4  # 6 + 6 + 6 + 2 images
    with pytest.raises(KeyboardInterrupt):
        quick(raw, tmp_path / "cut", Stopping(5))
    again = Stopping(-1)
    assert quick(raw, tmp_path / "cut", again) == whole
    assert again.images < IMAGES
    assert not list((tmp_path / "cut" / "work").glob(".partial-*"))


def test_what_a_shard_holds(raw: Path, tmp_path: Path) -> None:
    quick(raw, tmp_path, Stopping(-1))
    shards = AnnotatedShards(sorted((tmp_path / "work").glob("*.tar")))
    names = sorted(path.name for path in (raw / "train2017").iterdir())
    assert sorted(shards.names()) == names
    captions = json.loads((raw / coco_raw.CAPTIONS).read_text())
    first = next(image for image in captions["images"] if image["file_name"] == names[0])
    known = shards.of(names[0])
    assert known is not None
    assert known.captions == tuple(one["caption"] for one in captions["annotations"] if one["image_id"] == first["id"])
    assert known.size == (first["height"], first["width"])
    assert known.phrases[0] == "10 by 12"
    assert known.boxes[0].tolist() == [0, 0, 10, 12]
    assert known.embeddings is not None
    assert known.embeddings.tolist() == [[len(phrase)] * 4 for phrase in known.phrases]


def test_a_corrupt_jpeg_costs_itself_alone(raw: Path, tmp_path: Path) -> None:
    folder = coco_raw.make(tmp_path / "raw", IMAGES)
    images, bad = sorted((folder / "train2017").iterdir()), (3, 8, 11)
    images[3].write_bytes(images[3].read_bytes()[:200])
    images[8].write_bytes(b"no picture")
    Image.new("L", (20_000, 1)).save(images[11])  # would be 800 by 16,000,000 pixels
    quick(folder, tmp_path / "bad", Stopping(-1))
    lines = (tmp_path / "bad" / "work" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [images[number].stem for number in bad]
    assert [("not a readable image" in line, "image bomb" in line) for line in lines] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip
    shards = AnnotatedShards(sorted((tmp_path / "bad" / "work").glob("*.tar")))
    assert sorted(shards.names()) == [path.name for number, path in enumerate(images) if number not in bad]
    with pytest.raises(DataError, match=r"already \d of 20 samples are unusable"):
        quick(folder, tmp_path / "strict", Stopping(-1), share=0.05)


def test_the_digest_names_models_and_numbers(models: dict[str, Any]) -> None:
    own = digest(CONFIG, models)
    assert digest(CONFIG.model_copy(update={"images_per_shard": 9, "max_quarantined": 0.5}), models) == own
    assert digest(CONFIG.model_copy(update={"box_threshold": 0.3}), models) != own
    other = models | {"detector": models["detector"] | {"digest": "0"}}
    assert digest(CONFIG, other) != own
    moved = models | {"detector": models["detector"] | {"name": "/elsewhere"}}
    assert digest(CONFIG, moved) == own


@pytest.mark.slow
def test_killed_in_two_processes_and_made_in_one_are_the_same_bytes(
    raw: Path, tmp_path: Path, models: dict[str, Any]
) -> None:
    whole = run(raw, tmp_path / "one" / "out", tmp_path / "one" / "work", 1, models)
    assert whole.metadata["samples"] == IMAGES
    assert whole.metadata["boxes"]["kept"] > IMAGES
    base = tmp_path / "two"
    arguments = [str(raw), str(base / "out"), str(base / "work"), "2", json.dumps(models)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    job = [sys.executable, "-m", "tests.annotate.annotate_job", *arguments]
    with subprocess.Popen(job, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        until = time.monotonic() + 250
        while not list((base / "work").glob("*.index.json")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        with_shards = len(list((base / "work").glob("*.index.json")))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert with_shards
    again = subprocess.run(job, env=environment, capture_output=True, text=True, check=True, timeout=250)
    assert again.stdout.strip() == whole.digest


def test_parts_on_two_machines_are_one_run(raw: Path, tmp_path: Path, models: dict[str, Any]) -> None:
    whole = run(raw, tmp_path / "one" / "out", tmp_path / "one" / "work", 1, models)
    manifest, parts = coco_raw.manifest(raw), []
    for index in (1, 0):
        out = OutputFolder(str(tmp_path / f"part-{index}"), tmp_path / f"work-{index}")
        parts.append(out.finish(KIND, annotate_part(manifest, CONFIG, models, out, index, 2), {}))
    assert [len(part.metadata["units"]) for part in parts] == [2, 2]
    out = OutputFolder(str(tmp_path / "merged"), tmp_path / "work")
    quarantine = Quarantine(0.2, out.path / "quarantine.jsonl")
    assert out.finish("coco-annotations", merge_annotations(parts, CONFIG, out, quarantine), {}).digest == whole.digest
    other = CONFIG.model_copy(update={"images_per_shard": 5})
    with pytest.raises(DataError, match="the parts are not of one run"):
        merge_annotations(parts, other, OutputFolder(str(tmp_path / "no"), tmp_path / "no-work"), quarantine)
