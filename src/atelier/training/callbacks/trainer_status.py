"""Progress, time left and metrics into the TrainJob's ``status.trainerStatus`` (Kubeflow Trainer 2.3, alpha).

Where the Trainer's gate ``TrainJobStatus`` is on, it gives every node three variables: the URL of its status server,
the files of a token (it is renewed: read at every use) and of the server's certificate authority. The server takes
``POST {"trainerStatus": {"progressPercentage", "estimatedRemainingSeconds", "metrics": [{"name", "value"}],
"lastUpdatedTime"}}``, at most 64 KiB, values as text of at most 64 characters
(kubeflow/trainer, pkg/statusserver; KEP-2779).
"""

import json
import os
import ssl
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atelier.training.callbacks.base import Callback
from atelier.training.run import TrainingRun

URL, TOKEN, AUTHORITY = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "TOKEN", "CA_CERT"))
EVERY_S, TIMEOUT_S = 15.0, 5.0
_LONGEST, _MOST = 64, 256


class ReportTrainerStatus(Callback):
    """Sends rank 0's state from a thread; whatever the server does, the training does not notice."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.every_s = every_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = (0, 0.0)
        self._told = False

    def on_start(self, run: TrainingRun) -> None:
        self._began = (run.step, time.monotonic())
        if run.ranks.first and os.environ.get(URL):
            self._thread = threading.Thread(target=self._report, args=(run,), name="trainer-status", daemon=True)
            self._thread.start()

    def on_end(self, run: TrainingRun) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2 * TIMEOUT_S)

    def _report(self, run: TrainingRun) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self.every_s)  # the last one too: a finished training reads 100
            try:
                post(status(run, *self._began))
            except Exception as error:  # whatever it is, it is not the training's affair
                if not self._told:
                    print(f"note: the Trainer's status server does not take reports: {error}", flush=True)
                self._told = True


def status(run: TrainingRun, first_step: int, since: float) -> dict[str, Any]:
    """The body of a report.

    Args:
        first_step, since: the step and the monotonic time at which this process began: the rate is this process's.
    """
    steps, rate = run.config.steps, (run.step - first_step) / max(time.monotonic() - since, 1e-6)
    report: dict[str, Any] = {"progressPercentage": 100 * run.step // steps}
    if rate > 0:
        report["estimatedRemainingSeconds"] = round((steps - run.step) / rate)
    values = {"step": run.step, **run.metrics, **{f"validation/{name}": v for name, v in run.validation.items()}}
    report["metrics"] = [
        {"name": name[:_LONGEST], "value": f"{value:.6g}"}
        for name, value in list(values.items())[:_MOST]
        if isinstance(value, int | float)
    ]
    report["lastUpdatedTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"trainerStatus": report}


def post(body: dict[str, Any]) -> None:
    """Sends one report.

    Raises:
        OSError: the server does not answer, refuses, or a file is not there.
    """
    authority = os.environ.get(AUTHORITY)
    context = ssl.create_default_context(cafile=authority or None)
    request = urllib.request.Request(
        os.environ[URL],
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    token = os.environ.get(TOKEN)
    if token:
        request.add_header("Authorization", f"Bearer {Path(token).read_text().strip()}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context):
        pass
