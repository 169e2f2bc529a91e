"""Labels in shards: their form, pixels of a bordered picture's file, whose caption, resume and parts."""

import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.annotate import places
from atelier.annotate.config import RICH_PROFILES, RichConfig, get
from atelier.annotate.detector import Detections
from atelier.annotate.rich_annotator import RichAnnotator
from atelier.annotate.rich_work import RichWork
from atelier.annotate.shards import annotate, annotate_part, merge_annotations
from atelier.annotate.work import digest
from atelier.data import digits_rich, rle
from atelier.data.parts import KIND
from atelier.data.picture_folder import PictureFolder
from atelier.data.quarantine import Quarantine
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import open_source
from atelier.data.rich_label import read_label
from atelier.data.units import work_through
from atelier.errors import ConfigError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.annotate import tiny
from tests.annotate.parts import SizeCaptioner
from tests.annotate.test_rich_annotator import BoxSegmenter, WidthScorer
from tests.evaluation import boxed_models

IMAGES, FOLDER = 14, "cc3m-images/00000"
CONFIG = RichConfig(
    vocabulary="digits", tag_threshold=0.0, tag_limit=3, batch=4, detect_batch=4, caption_batch=3, caption_tokens=6,
    images_per_shard=6, described_area=16, prompt="a photo of", caption_prompt="none",
)  # fmt: skip
FIELDS = {
    "bbox", "mask", "mask_value", "pred_score", "category_name", "caption", "area", "is_stuff", "is_thing", "id",
    "isfake", "isreflected", "category_id", "data_id", "text_embedding_before", "blip_clip_embeddings",
}  # fmt: skip


class DigitTagger:
    def prepare(self, image: Image.Image) -> None:
        return None

    def tags(self, prepared: Sequence[Any]) -> list[list[str]]:
        return [["Digit (written)", "number"] for _ in prepared]


class InkDetector:
    """One box around all ink."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.convert("L"))

    def detect(
        self, prepared: Sequence[np.ndarray], tags: Sequence[Sequence[str]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        found = []
        for pixels in prepared:
            rows, columns = np.flatnonzero((pixels > 150).any(1)), np.flatnonzero((pixels > 150).any(0))
            box = [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]
            found.append(Detections(np.array(box, np.float64), np.array([0.5], np.float32), ("digit written",)))
        return found


class Stopping(RichAnnotator):
    """Stops like a user after some batches."""

    def __init__(self, batches: int) -> None:
        super().__init__(
            DigitTagger(), InkDetector(), SizeCaptioner(), SizeCaptioner(), BoxSegmenter(), WidthScorer(), 16
        )
        self.batches = batches

    def annotate(self, prepared, captioned):  # type: ignore[no-untyped-def]
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        return super().annotate(prepared, captioned)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "published"
    digits_rich.write_rich(folder, IMAGES, seed=4)
    beside = folder / FOLDER / "000000002.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "caption": ""}))
    (folder / FOLDER / "000000003.json").write_text("no JSON")
    return folder


def published(raw: Path, place: Path) -> Manifest:
    shutil.copytree(raw / FOLDER, place / "images-work" / "images")
    return OutputFolder(str(place / "images"), place / "images-work").finish("rich-context-images-raw", {}, {})


def quick(raw: Path, base: Path, annotator: Stopping) -> dict[str, bytes]:
    """A run without models; every file that it committed."""
    out = OutputFolder(str(base / "out"), base / "work")
    manifest = Manifest.load(str(base / "images")) if (base / "images").exists() else published(raw, base)
    work = RichWork(PictureFolder(manifest, unit_images=6), annotator, "sha256:quick", 6, 4)
    quarantine = Quarantine(0.2, out.path / "quarantine.jsonl")
    work_through(work.source.units, work, out, quarantine, "annotating", total=IMAGES)
    return {name: (out.path / name).read_bytes() for name in sorted(out.committed())}


def labels(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = json.loads(file.read())
    return found


def test_what_a_label_holds(raw: Path, tmp_path: Path) -> None:
    quick(raw, tmp_path, Stopping(-1))
    found = labels(tmp_path / "work")
    assert list(found) == [f"label_{number:09d}.json" for number in range(1, IMAGES + 1) if number != 3]
    for name, label in found.items():
        number = int(name[6:-5])
        assert label["file_name"] == f"{number:09d}.jpg"
        assert (label["data_id"], label["is_det"]) == (number, 1)
        assert label["tags"] == ["Digit (written)", "number"]
        (one,) = label["annos"]
        assert one.keys() == FIELDS | {"clip_score"}
        with Image.open(raw / FOLDER / label["file_name"]) as opened:
            picture = np.asarray(opened.convert("L"))
        left, top, width, height = one["bbox"]
        # Within what was drawn: the border is as white as the ink is.
        known = json.loads((raw / f"labels/{name}").read_text())["annos"]
        boxes = np.array([each["bbox"] for each in known])
        outer = (*boxes[:, :2].min(axis=0), *(boxes[:, :2] + boxes[:, 2:]).max(axis=0))
        assert outer[0] - 1 <= left < left + width <= outer[2] + 1
        assert outer[1] - 1 <= top < top + height <= outer[3] + 1
        assert (picture[top : top + height, left : left + width] > 150).any(0)[[0, -1]].all()
        mask = rle.decode(one["mask"])
        assert mask.shape == picture.shape
        assert mask[top : top + height // 2, left : left + width].all()
        assert mask.sum() == one["area"]
        assert one["caption"] == f"{width} by {height}"
        assert (one["category_name"], one["category_id"], one["mask_value"], one["id"]) == (
            "digit written", 1, 1, number * 1000,
        )  # fmt: skip
        assert one["clip_score"] == pytest.approx(width + len(one["caption"]) / 100, abs=1e-3)
        stated = json.loads((raw / FOLDER / f"{number:09d}.json").read_text())
        own = f"{stated['original_width']} by {stated['original_height']}"
        assert label["caption"] == (own if number == 2 else stated["caption"])
        assert read_label(json.dumps(label).encode()).frame == picture.shape
    bad = json.loads((tmp_path / "work/quarantine.jsonl").read_text())
    assert bad["key"] == "000000003"


def test_what_was_written_is_read_for_training(raw: Path, tmp_path: Path) -> None:
    quick(raw, tmp_path, Stopping(-1))
    work = tmp_path / "both-work"
    shutil.copytree(raw / FOLDER, work / "images")
    (work / "annotations").mkdir()
    for path in (tmp_path / "work").glob("*.tar"):
        shutil.copy(path, work / "annotations")
    source = open_source(OutputFolder(str(tmp_path / "both"), work).finish("rich-context-raw", {}, {}))
    found = labels(tmp_path / "work")
    examples = [one for unit in source.units for one in source.fetch(unit)() if isinstance(one, RawExample)]
    assert len(examples) == IMAGES - 1
    for example in examples:
        (one,) = found[f"label_{example.key}.json"]["annos"]
        assert example.caption == found[f"label_{example.key}.json"]["caption"]
        assert example.phrases == (one["caption"],)
        assert example.boxes_px is not None
        left, top, width, height = one["bbox"]
        inner = example.inner or (0, 0, 0, 0)
        assert example.boxes_px.tolist() == [
            [left - inner[0], top - inner[1], left + width - inner[0], top + height - inner[1]]
        ]


def test_a_run_goes_on_after_its_committed_shards(raw: Path, tmp_path: Path) -> None:
    whole = quick(raw, tmp_path / "whole", Stopping(-1))
    with pytest.raises(KeyboardInterrupt):
        quick(raw, tmp_path / "cut", Stopping(3))
    assert quick(raw, tmp_path / "cut", Stopping(-1)) == whole


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    given = tiny.folders()
    sam = boxed_models.sam(tmp_path_factory.mktemp("sam"))
    chosen = {role: given[role] for role in ("tagger", "detector", "captioner")}
    return places.resolve(CONFIG.model_copy(update={**chosen, "segmenter": str(sam), "clip": given["tagger"]}))


def test_parts_on_two_machines_are_one_run(raw: Path, tmp_path: Path, models: dict[str, Any]) -> None:
    manifest = published(raw, tmp_path)

    def folder(name: str) -> OutputFolder:
        return OutputFolder(str(tmp_path / name), tmp_path / f"{name}-work")

    out = folder("one")
    made = annotate(manifest, CONFIG, models, out, Quarantine(0.2, out.path / "quarantine.jsonl"), 1)
    whole = out.finish(CONFIG.makes, made, {})
    assert whole.metadata["samples"] == IMAGES - 1
    assert whole.metadata["boxes"]["kept"] >= IMAGES
    means = whole.metadata["statistics"]["means"]
    assert means.keys() == {"objects", "words", "unique", "fog", "fit"}
    assert means["objects"] == pytest.approx(whole.metadata["boxes"]["kept"] / (IMAGES - 1), abs=1e-3)
    counts = whole.metadata["statistics"]["counts"]
    assert counts["outlined"] == whole.metadata["boxes"]["kept"]
    assert counts["captions given"] == IMAGES - 2
    parts = []
    for index in (1, 0):
        out = folder(f"part-{index}")
        parts.append(out.finish(KIND, annotate_part(manifest, CONFIG, models, out, index, 2), {}))
    out = folder("merged")
    merged = merge_annotations(parts, CONFIG, out, Quarantine(0.2, out.path / "quarantine.jsonl"))
    assert out.finish(CONFIG.makes, merged, {}).digest == whole.digest


def test_without_segmenter_and_clip(raw: Path, tmp_path: Path, models: dict[str, Any]) -> None:
    fewer = {role: place for role, place in models.items() if role not in ("segmenter", "clip")}
    out = OutputFolder(str(tmp_path / "out"), tmp_path / "work")
    quarantine = Quarantine(0.2, out.path / "quarantine.jsonl")
    made = annotate(published(raw, tmp_path), CONFIG, fewer, out, quarantine, 1)
    objects = [one for label in labels(tmp_path / "work").values() for one in label["annos"]]
    assert all(one.keys() == FIELDS - {"mask"} for one in objects)
    assert all(one["area"] == one["bbox"][2] * one["bbox"][3] for one in objects)
    assert "fit" not in made["statistics"]["histograms"]


def test_the_digest_names_prompts_and_models(models: dict[str, Any]) -> None:
    own = digest(CONFIG, models)
    assert digest(CONFIG.model_copy(update={"images_per_shard": 9, "vocabulary": "coco"}), models) == own
    changed = ({"prompt": "a"}, {"caption_prompt": "a"}, {"described_area": 9}, {"crop_side": 64}, {"nms_iou": 0.4})
    others = {digest(CONFIG.model_copy(update=change), models) for change in changed}
    others.add(digest(CONFIG, models | {"segmenter": models["segmenter"] | {"digest": "0"}}))
    assert len(others - {own}) == 6


def test_the_papers_numbers_and_what_may_be_left_out(tmp_path: Path) -> None:
    paper = RICH_PROFILES["paper"]
    assert (paper.box_threshold, paper.text_threshold, paper.nms_iou) == (0.25, 0.2, 0.5)
    assert (paper.described_area, paper.crop_side) == (1024, 512)
    with pytest.raises(ConfigError, match="nothing is annotated for 'crossflow'"):
        get("paper", "crossflow")
    with pytest.raises(ConfigError, match="no detector and no captioner and no tagger given") as caught:
        places.resolve(RICH_PROFILES["laptop"])
    assert "an image-to-text model" in caught.value.fix
    given = {role: tiny.folders()[role] for role in ("tagger", "detector", "captioner")}
    laptop = RICH_PROFILES["laptop"].model_copy(update=given)
    assert places.resolve(laptop).keys() == {*given, "words"}
    assert places.resolve(laptop.model_copy(update={"segmenter": "none", "clip": "none"})) == places.resolve(laptop)
    with pytest.raises(ConfigError, match="it is a clip"):
        places.resolve(laptop.model_copy(update={"segmenter": given["tagger"]}))
    # Any kind may describe; what cannot says so when it is opened.
    assert places.resolve(laptop.model_copy(update={"captioner": given["tagger"]}))["captioner"]["kind"] == "clip"
