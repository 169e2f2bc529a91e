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
    assert time.monotonic() - began < 30
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


def test_server_that_comes_late_and_dies_in_mid_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + 40
        while text not in shown:
            assert time.monotonic() < deadline, shown
            shown += capfd.readouterr().err
            time.sleep(0.1)

    with child_run("train", {"steps": 200}) as run:
        slowest = 0.0
        for step in range(100):
            began = time.monotonic()
            run.log_metrics({"loss": 1.0 / (step + 1)}, step)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 1, "the training waited for a dead server"
        wait_for("does not answer")
        server.start()
        ping(server.uri)
        wait_for("answers again")
        assert run.flush(60)
        run_id = run.run_id()
        server.kill()
        run.log_metrics({"loss": 0.0}, 100)
    shown += capfd.readouterr().err
    assert "were not delivered" in shown
    assert shown.count("does not answer") == 2, "warned once each time"
    connected = client(f"sqlite:///{server.folder}/mlflow.db")
    assert len(connected.get_metric_history(run_id, "loss")) == 100
    assert connected.get_run(run_id).data.params == {"steps": "200"}


def test_server_that_stays_dead_costs_no_more_than_the_closing_time(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    run = attach("0" * 32, "http://127.0.0.1:9")
    for step in range(10):
        run.log_metrics({"loss": 0.1}, step)
    run.close(timeout_s=1.0)
    assert time.monotonic() - began < 45  # two seconds of them are mlflow's import
    assert "10 records were not delivered" in capfd.readouterr().err
