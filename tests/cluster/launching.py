"""Runs a TrainJobLauncher in a thread of the test, or in a process (``python -m tests.cluster.launching``)."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from atelier.errors import AtelierError
from atelier.training.trainjob.launcher import TrainJobLauncher
from atelier.training.trainjob_settings import TrainJobSettings

ROOT = Path(__file__).parents[2]
RUN = "6d0c4ab4-5b5e-4b0e-9d0c-0d8f3f4b7a55"


def settings(**changes: Any) -> TrainJobSettings:
    """Two nodes of two processes, no second try for anything."""
    none = dict.fromkeys(("preempted", "node_lost", "nccl", "out_of_memory", "bad_config", "bad_data", "unknown"), 0)
    retries = none | changes.pop("retries", {})
    given = {"image": "atelier-train:test", "namespace": "atelier", "nodes": 2, "processes_per_node": 2}
    return TrainJobSettings.model_validate(given | {"retries": retries} | changes)


class Launched:
    """A launcher in a thread; its pod's environment is this process's."""

    def __init__(self, logs: Path, key: str = "key", given: TrainJobSettings | None = None, **options: Any) -> None:
        self.settings = given or settings()
        self.launcher = TrainJobLauncher(self.settings, key, "toy", poll_s=0.1, **options)
        self.error: BaseException | None = None
        self._logs = logs
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.launcher.run("toy", ["plan"], self.settings.processes, self._logs, self.settings.nodes)
        except BaseException as error:
            self.error = error
            print(f"the launcher raised {type(error).__name__}: {error}", flush=True)

    def result(self, seconds: float = 60.0) -> BaseException | None:
        """What it raised; None when the training completed."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the launcher does not come back"
        return self.error


def start(logs: Path, given: TrainJobSettings, **environment: str) -> "subprocess.Popen[str]":
    """A launcher in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.launching", str(logs), given.model_dump_json()],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main(logs: str, given: str) -> int:
    """Runs to the end; the exit code is that of the error."""
    try:
        launcher = TrainJobLauncher(TrainJobSettings.model_validate(json.loads(given)), "key", "toy", poll_s=0.1)
        launcher.run("toy", ["plan"], 4, Path(logs), 2)
    except AtelierError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
