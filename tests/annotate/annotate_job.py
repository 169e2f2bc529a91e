"""``python -m tests.annotate.annotate_job RAW PLACE WORK WORKERS MODELS``: a run in a process that a test can kill."""

import json
import sys
from pathlib import Path

from atelier.annotate.config import Config
from atelier.annotate.work import annotation_spec
from atelier.data import summary
from atelier.data.coco_folder import COCOFolder
from atelier.data.quarantine import Quarantine
from atelier.data.units import work_through
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import coco_raw

CONFIG = Config(
    vocabulary="digits", tag_threshold=0.0, tag_limit=3, batch=4, detect_batch=2, caption_batch=3, caption_tokens=6,
    images_per_shard=6,
)  # fmt: skip


def run(raw: Path, place: Path, work: Path, workers: int, models: dict[str, object]) -> Manifest:
    """Annotates a COCO folder, as the step does."""
    out = OutputFolder(str(place), work)
    source = COCOFolder(coco_raw.manifest(raw), unit_images=CONFIG.images_per_shard)
    quarantine = Quarantine(0.2, out.path / "quarantine.jsonl")
    units, digest = work_through(
        source.units, annotation_spec(source, CONFIG, models), out, quarantine, "annotating", workers=workers
    )
    shards = [shard for unit in units for shard in unit.shards]
    return out.finish("coco-annotations", summary.metadata(shards, quarantine.counts()) | {"annotators": digest}, {})


if __name__ == "__main__":
    print(run(*map(Path, sys.argv[1:4]), int(sys.argv[4]), json.loads(sys.argv[5])).digest)  # type: ignore[call-arg]
