"""The local ledger: ``runs/<id>/`` with run.json, a JSON file a step, logs, status files and summary.json at the end.

Written by the command line (run.json, summary.json) and by the steps' own processes (``atelier.steps.record``); read
by ``atelier status``, ``logs`` and ``resume``. Plain files: a run that was killed leaves what it had written.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError, StorageError
from atelier.storage.atomic import write_json


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def kfp_log(self) -> Path:
        return self.folder / "kfp.log"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def facts(self) -> dict[str, Any]:
        """run.json: pipeline, profile, parameters, artifacts, pid, started (seconds since 1970)."""
        return _read(self.folder / "run.json") or {}

    def summary(self) -> dict[str, Any]:
        """summary.json, {} before the run's end."""
        return _read(self.folder / "summary.json") or {}

    def steps(self) -> list[dict[str, Any]]:
        """The steps' records in the order of their start."""
        return [record for path in sorted((self.folder / "steps").glob("[0-9]*.json")) if (record := _read(path))]

    def status(self) -> str:
        """``succeeded``, ``failed``, ``interrupted``, ``running``, or ``killed``: begun, not ended, process gone."""
        ended = self.summary().get("status")
        if ended:
            return str(ended)
        return "running" if alive(self.facts().get("pid")) else "killed"

    def live(self, record: dict[str, Any]) -> dict[str, Any]:
        """What a running step last reported of its progress, {} where it reported nothing."""
        name = record.get("status_file")
        return (_read(self.folder / name) if name else None) or {}

    def log_of(self, record: dict[str, Any]) -> Path:
        return self.folder / str(record.get("log", "kfp.log"))


def create(project: Path, pipeline: str, profile: str, facts: dict[str, Any]) -> Run:
    """Makes the folder of a new run.

    Raises:
        StorageError: it cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        folder = project / "runs" / (f"{stamp}-{pipeline}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be made: {error.strerror}", "check the disk and permissions"
            ) from error
    run = Run(folder)
    for name in ("steps", "logs", "status"):
        (folder / name).mkdir()
    write_json(
        folder / "run.json",
        {"id": run.id, "pipeline": pipeline, "profile": profile, "pid": os.getpid(), "started": time.time(), **facts},
    )
    return run


def close(run: Run, status: str, error: str = "", mlflow_run_id: str = "") -> dict[str, Any]:
    """Writes summary.json, also for a run that failed or was interrupted, and returns it.

    Steps that never ended their line (killed) get it ended here.
    """
    facts, steps = run.facts(), []
    metrics: dict[str, Any] = {}
    artifacts: dict[str, str] = {}
    for record in run.steps():
        if record["status"] == "running":
            record |= {
                "status": "interrupted" if status == "interrupted" else "failed",
                "seconds": round(time.time() - record["started"], 3),
            }
            if status != "interrupted":
                record["error"] = {
                    "what": "the step's process ended without a word (killed, perhaps out of memory)",
                    "fix": "look for the out-of-memory killer (`dmesg`), free memory, run again",
                }
            write_json(run.folder / "steps" / f"{record['number']:02d}-{record['name']}.json", record)
        steps.append(
            {
                "name": record["name"],
                "status": "done" if record["status"] == "cached" else record["status"],
                "seconds": record.get("seconds", 0.0),
                "cached": record["status"] == "cached",
                "peak_rss_mb": record.get("peak_rss_mb"),
            }
        )
        output = record.get("output") or {}
        metrics |= output.get("metrics", {})
        if output.get("uri"):
            artifacts[record["name"]] = output["uri"]
    if run.report.exists():
        artifacts["report.html"] = str(run.report)
    summary = {
        "pipeline": facts.get("pipeline", ""),
        "profile": facts.get("profile", ""),
        "status": status,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(facts.get("started", 0))),
        "seconds": round(time.time() - facts.get("started", time.time()), 3),
        "steps": steps,
        "metrics": metrics,
        "artifacts": artifacts,
        "mlflow_run_id": mlflow_run_id,
        "parameters": facts.get("parameters", {}),
        "error": error,
    }
    write_json(run.folder / "summary.json", summary)
    return summary


def runs(project: Path) -> list[Run]:
    """All runs, the newest first."""
    folders = [path.parent for path in (project / "runs").glob("*/run.json")]
    return [Run(folder) for folder in sorted(folders, reverse=True)]


def find(project: Path, name: str = "") -> Run:
    """The run whose id begins with ``name``; without a name the newest.

    Raises:
        ConfigError: there is none, or more than one.
    """
    known = runs(project)
    if not known:
        raise ConfigError(f"{project / 'runs'} holds no run", "start one with `make run`")
    if not name:
        return known[0]
    matching = [run for run in known if run.id.startswith(name)]
    exact = [run for run in matching if run.id == name]
    if len(exact or matching) != 1:
        raise ConfigError(
            f"{'no run' if not matching else f'{len(matching)} runs'} whose id begins with {name!r}",
            "`make status` lists the runs",
        )
    return (exact or matching)[0]


def alive(pid: Any) -> bool:
    """Whether a process of this id runs."""
    if not isinstance(pid, int):
        return False
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False


def tail(path: Path, lines: int = 15) -> list[str]:
    """The last lines of a text file, [] where there is none; terminal codes are left out."""
    return list(_last_lines(path, lines))


def _last_lines(path: Path, lines: int, most_bytes: int = 65536) -> Iterator[str]:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - most_bytes))
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", file.read().decode("utf-8", "replace"))
        yield from [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
