"""Reports to the Trainer's status server, over real TLS, to a server that is as strict as the Trainer's."""

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atelier.training.callbacks.trainer_status import AUTHORITY, TOKEN, URL, ReportTrainerStatus
from tests.training.launching import wait_until

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/atelier/trainjobs/job/status"


class StatusServer(http.server.ThreadingHTTPServer):
    """Takes what the CRD takes: whole numbers, values as text of at most 64 letters, a time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.token = "first"


class Handler(http.server.BaseHTTPRequestHandler):
    server: StatusServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        wrong = self._wrong(body)
        if wrong:
            self.server.refused.append(wrong)
        self.send_response(422 if wrong else 200)
        self.end_headers()

    def _wrong(self, body: bytes) -> str:
        if self.path != PATH or self.headers["Authorization"] != f"Bearer {self.server.token}":
            return "not allowed"
        if len(body) > 2**16:
            return "too large"
        status = json.loads(body)["trainerStatus"]
        if type(status["progressPercentage"]) is not int or not 0 <= status["progressPercentage"] <= 100:
            return "progressPercentage"
        if type(status.get("estimatedRemainingSeconds", 0)) is not int:
            return "estimatedRemainingSeconds"
        if any(type(m["value"]) is not str or len(m["value"]) > 64 or len(m["name"]) > 64 for m in status["metrics"]):
            return "metrics"
        if len(status["lastUpdatedTime"]) != len("2026-01-01T00:00:00Z"):
            return "lastUpdatedTime"
        self.server.taken.append(status)
        return ""

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StatusServer]:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "ca.crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.crt", tmp_path / "key")
    served = StatusServer()
    served.socket = context.wrap_socket(served.socket, server_side=True)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setenv(URL, f"https://localhost:{served.server_address[1]}{PATH}")
    monkeypatch.setenv(TOKEN, str(tmp_path / "token"))
    monkeypatch.setenv(AUTHORITY, str(tmp_path / "ca.crt"))
    yield served
    served.shutdown()


def training(**changes: Any) -> Any:
    """What the callback reads of a run."""
    held = {
        "step": 5, "config": SimpleNamespace(steps=20), "ranks": SimpleNamespace(first=True),
        "metrics": {"loss": 0.25, "samples_per_s": 181.23456789, "mfu": 0.4}, "validation": {"ink": 0.5},
    }  # fmt: skip
    return SimpleNamespace(**(held | changes))


def test_progress_time_left_and_metrics_arrive(server: StatusServer, tmp_path: Path) -> None:
    report, run = ReportTrainerStatus(every_s=0.05), training()
    report.on_start(run)
    run.step = 10
    wait_until(lambda: len(server.taken) >= 2, 10)
    # Kubernetes renews tokens in place.
    server.token = "second"
    (tmp_path / "token").write_text("second\n")
    run.step = 20
    report.on_end(run)
    assert server.taken[0]["progressPercentage"] == 50
    assert server.taken[0]["estimatedRemainingSeconds"] >= 0
    assert {m["name"]: m["value"] for m in server.taken[0]["metrics"]} == {
        "step": "10", "loss": "0.25", "samples_per_s": "181.235", "mfu": "0.4", "validation/ink": "0.5",
    }  # fmt: skip
    assert server.taken[-1]["progressPercentage"] == 100
    assert server.taken[-1]["estimatedRemainingSeconds"] == 0
    assert not server.refused


def test_other_ranks_and_other_places_report_nothing(server: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ReportTrainerStatus(every_s=0.01)
    other.on_start(training(ranks=SimpleNamespace(first=False)))
    other.on_end(training())
    monkeypatch.delenv(URL)
    here = ReportTrainerStatus(every_s=0.01)
    here.on_start(training())
    here.on_end(training())
    assert not server.taken
    assert not server.refused


@pytest.mark.parametrize("broken", ["no server", "no token", "refused"])
def test_a_server_that_does_not_work_is_noted_once(
    broken: str,
    server: StatusServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if broken == "no server":
        monkeypatch.setenv(URL, f"https://localhost:9{PATH}")
    elif broken == "no token":
        (tmp_path / "token").unlink()
    else:
        server.token = "another"
    report, run = ReportTrainerStatus(every_s=0.02), training()
    report.on_start(run)
    wait_until(lambda: report._told, 10)
    if broken == "refused":
        wait_until(lambda: len(server.refused) > 2, 10)
    report.on_end(run)
    assert capfd.readouterr().out.count("status server does not take reports") == 1
    assert not server.taken
