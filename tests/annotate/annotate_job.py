"""``python -m tests.annotate.annotate_job RAW PLACE WORK WORKERS MODELS``: a run in a process that a test can kill."""

import json
import sys
from pathlib import Path

from atelier.annotate.config import Config
from atelier.annotate.shards import annotate
from atelier.data.quarantine import Quarantine
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
    quarantine = Quarantine(0.2, out.path / "quarantine.jsonl")
    return out.finish(
        "coco-annotations", annotate(coco_raw.manifest(raw), CONFIG, models, out, quarantine, workers), {}
    )


if __name__ == "__main__":
    print(run(*map(Path, sys.argv[1:4]), int(sys.argv[4]), json.loads(sys.argv[5])).digest)  # type: ignore[call-arg]
