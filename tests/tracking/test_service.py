"""Stores that are dead, silent, damaged or die in the middle."""

import socket
import time
from pathlib import Path

import pytest

from atelier.errors import ServiceError
from atelier.tracking.runs import attach, child_run, ping
from atelier.tracking.service import client, default_uri
from tests.tracking.conftest import Server


def refused(uri: str) -> str:
    began = time.monotonic()
    with pytest.raises(ServiceError) as caught:
        ping(uri)
    assert time.monotonic() - began < 10
    return caught.value.what


def test_dead_server_is_refused_by_name() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert f"http://127.0.0.1:{port} does not answer" in refused(f"http://127.0.0.1:{port}")


def test_silent_server_is_refused_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "does not answer" in refused(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_unknown_host_and_scheme_are_refused() -> None:
    assert "nowhere.invalid" in refused("http://nowhere.invalid:5000")
    assert "none that runs are kept in" in refused("ftp://example.org")


def test_password_is_not_shown() -> None:
    assert "secret" not in refused("http://me:secret@127.0.0.1:1")


def test_sqlite_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    assert "no folder that can be written" in refused(f"sqlite:///{tmp_path}/missing/mlflow.db")
    (tmp_path / "mlflow.db").write_text("this is no database, though it is long enough to look like one" * 20)
    assert "no usable SQLite database" in refused(default_uri(tmp_path))


def test_sqlite_and_its_absence_are_fine(tmp_path: Path, store: str) -> None:
    ping(store)
    ping(default_uri(tmp_path))


def test_server_that_dies_in_mid_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    server.start()
    ping(server.uri)
    with child_run("train") as run:
        run_id = run.run_id()
        run.log_metrics({"loss": 1.0}, 0)
        assert run.flush()
        server.kill()
        slowest = 0.0
        for step in range(1, 50):
            began = time.monotonic()
            run.log_metrics({"loss": 1.0 / step}, step)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 0.05, "the training waited for a dead server"
        deadline = time.monotonic() + 20
        shown = ""
        while "does not answer" not in shown:
            assert time.monotonic() < deadline
            shown += capfd.readouterr().err
            time.sleep(0.1)
        server.start()
    shown += capfd.readouterr().err
    assert shown.count("does not answer") == 1, "warned once"
    assert "answers again" in shown
    connected = client(server.uri)
    assert len(connected.get_metric_history(run_id, "loss")) == 50
    assert connected.get_run(run_id).info.status == "FINISHED"


def test_server_that_stays_dead_costs_no_more_than_the_closing_time(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    run = attach("0" * 32, "http://127.0.0.1:9")
    for step in range(10):
        run.log_metrics({"loss": 0.1}, step)
    run.close(timeout_s=1.0)
    assert time.monotonic() - began < 10
    assert "10 records were not delivered" in capfd.readouterr().err
