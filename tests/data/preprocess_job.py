"""``python -m tests.data.preprocess_job RAW PLACE WORK WORKERS DELAY_S``: a run in a process that a test can kill."""

import sys
from pathlib import Path

from atelier.data.preprocess import EncoderSpec, Settings, preprocess
from atelier.data.quarantine import Quarantine
from atelier.storage.folder import OutputFolder
from tests.data import raw


def main(folder: str, place: str, work: str, workers: str, delay_s: str) -> None:
    out = OutputFolder(place, Path(work))
    metadata = preprocess(
        raw.source(Path(folder)),
        EncoderSpec("tests.data.encoders:BlendingEncoder", {"delay_s": float(delay_s)}),
        out,
        Settings(res=64, samples_per_shard=6, batch=4),
        Quarantine(0.1, out.path / "quarantine.jsonl"),
        total=60,
        workers=int(workers),
    )
    print(out.finish("shards", metadata, {}).digest)


if __name__ == "__main__":
    main(*sys.argv[1:])
