"""The run's ledger as a step writes it: one JSON file a step, ``runs/<id>/steps/<nn>-<step>.json``.

``nn`` counts the steps of a run in the order of their start. The command line reads the files; on a cluster, where
there is no run folder, nothing is written.
"""

import json
import os
import time
from pathlib import Path
from typing import Any


class StepRecord:
    """One step's line in the ledger, replaced in one rename at every change.

    Args:
        run_dir: the run's folder; None where there is none, then nothing is written.
        name: the step.
    """

    def __init__(self, run_dir: Path | None, name: str) -> None:
        self.run_dir, self.name = run_dir, name
        self.number = 0
        self.fields: dict[str, Any] = {"name": name, "status": "running", "started": time.time(), "pid": os.getpid()}
        if run_dir is not None:
            self._claim(run_dir)

    def _claim(self, run_dir: Path) -> None:
        steps = run_dir / "steps"
        for folder in (steps, run_dir / "logs", run_dir / "status"):
            folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name[:2]) for path in steps.glob("[0-9][0-9]-*.json")), default=0)
        while True:
            try:
                # The number's own file decides between two steps that start at once.
                (steps / f".{number:02d}").touch(exist_ok=False)
                break
            except FileExistsError:
                number += 1
        self.number = number
        self.fields |= {"number": number, "log": f"logs/{self.label}.log", "status_file": f"status/{self.label}.json"}
        self.update()

    @property
    def label(self) -> str:
        return f"{self.number:02d}-{self.name}"

    @property
    def log(self) -> Path | None:
        return None if self.run_dir is None else self.run_dir / "logs" / f"{self.label}.log"

    @property
    def status_file(self) -> Path | None:
        return None if self.run_dir is None else self.run_dir / "status" / f"{self.label}.json"

    def update(self, **fields: Any) -> None:
        """Sets fields and writes the file."""
        self.fields |= fields
        if self.run_dir is None:
            return
        path = self.run_dir / "steps" / f"{self.label}.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.fields, indent=1, default=str), encoding="utf-8")
        temporary.replace(path)

    def end(self, status: str, **fields: Any) -> None:
        """Closes the line: ``done``, ``cached``, ``failed`` or ``interrupted``."""
        self.update(status=status, seconds=round(time.time() - self.fields["started"], 3), **fields)
