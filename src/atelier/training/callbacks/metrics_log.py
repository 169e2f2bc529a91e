"""The loss log and the gauges: a JSON line each in the output folder, and the same numbers to the tracker."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from atelier.storage.atomic import os_errors, write_bytes
from atelier.training.callbacks.base import Callback
from atelier.training.run import TrainingRun

METRICS, GAUGES = "metrics.jsonl", "gauges.jsonl"


class Tracker(Protocol):
    """Where numbers and pictures of a run go besides its folder (``atelier.tracking.runs.TrackedRun``)."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    def log_image(self, image: Any, key: str, step: int) -> None: ...


class LogMetrics(Callback):
    """Appends to ``metrics.jsonl`` and ``gauges.jsonl`` in rank 0; a resume cuts both back to the resumed step."""

    logs = (METRICS, GAUGES)

    def __init__(self, tracker: Tracker | None = None) -> None:
        self.tracker = tracker

    def on_start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            for name in (METRICS, GAUGES):
                truncate_log(run.folder / name, run.step)

    def on_log(self, run: TrainingRun) -> None:
        if not run.ranks.first:
            return
        append_line(run.folder / METRICS, {"step": run.step, **run.metrics})
        gauges = run.objective.gauges(run.model)
        if gauges:
            append_line(run.folder / GAUGES, {"step": run.step, **gauges})
        if self.tracker is not None:
            self.tracker.log_metrics(
                run.metrics | {f"gauges/{name}": value for name, value in gauges.items()}, run.step
            )

    def on_save(self, run: TrainingRun) -> None:
        if run.ranks.first:
            for name in (METRICS, GAUGES):
                sync_file(run.folder / name)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Adds one JSON line.

    Raises:
        StorageError: the disk is full, …
    """
    with os_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def sync_file(path: Path) -> None:
    """Makes what was written to ``path`` durable."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def truncate_log(path: Path, step: int) -> None:
    """Drops lines later than ``step``: the run goes on from there and writes them again."""
    if path.exists():
        kept = [record for record in read_lines(path) if record["step"] <= step]
        write_bytes(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
