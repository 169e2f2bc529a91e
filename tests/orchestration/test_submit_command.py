"""The command line as `make` calls it: words in the environment, a process of its own, exit codes, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

from tests.orchestration import kfp_server
from tests.orchestration.asking import PROJECT


def start(server: kfp_server.State, own: str, command: str, **words: str) -> "subprocess.Popen[str]":
    given = {"PROFILE": own, "HOST": server.url, "PIPELINE": "igligen_xl_512", "PROJECT": str(PROJECT), **words}
    return subprocess.Popen(
        [sys.executable, "-m", "atelier.cli", command],
        env={**os.environ, **{f"ATELIER_{name}": value for name, value in given.items()}, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(server: kfp_server.State, own: str, command: str, **words: str) -> tuple[int, str]:
    process = start(server, own, command, **words)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def test_submitted_followed_interrupted_and_stopped(server: kfp_server.State, own: str) -> None:
    process = start(server, own, "submit", SET="seed=5 base_model='hf://a b'", WAIT="1")
    deadline = time.monotonic() + 60
    while not server.posts("/runs") and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    (run,) = server.runs.values()
    assert run.runtime_config.parameters == {"seed": 5, "base_model": "hf://a b"}
    assert f"make stop RUN={run.run_id}" in said
    assert "Traceback" not in said
    assert run.state == "PENDING"
    code, said = call(server, own, "stop", RUN=run.run_id)
    assert code == 0, said
    assert run.state == "CANCELING"


def test_scheduled_listed_and_removed(server: kfp_server.State, own: str) -> None:
    code, said = call(server, own, "schedule", CRON="0 3 * * 1", TZ="Asia/Tokyo", CONCURRENCY="2", CATCHUP="1")
    assert code == 0, said
    (record,) = server.recurring.values()
    assert record.trigger.cron_schedule.cron == "0 0 18 * * 0"
    assert (record.no_catchup, record.max_concurrency) == (False, "2")
    code, said = call(server, own, "schedules")
    assert code == 0, said
    assert "igligen-xl-512-scheduled  0 3 * * 1 Asia/Tokyo  0 0 18 * * 0" in said
    code, said = call(server, own, "unschedule")
    assert (code, server.recurring) == (0, {}), said


def test_what_is_wrong_is_one_screen_and_an_exit_code(server: kfp_server.State, own: str) -> None:
    for command, words, code, text in (
        ("submit", {"SET": "sed=5"}, 2, "did you mean seed"),
        ("submit", {"SET": 'seed="5'}, 2, "close every quote"),
        ("submit", {"HOST": "http://127.0.0.1:1"}, 5, "does not answer"),
        ("schedule", {}, 2, "no CRON"),
        ("schedule", {"CRON": "0 3 * * 1", "CONCURRENCY": "many"}, 2, "is no number"),
        ("stop", {}, 2, "no run's id"),
        ("unschedule", {"PIPELINE": ""}, 2, "no PIPELINE"),
    ):
        found, said = call(server, own, command, **words)
        assert (found, "Traceback" in said) == (code, False), said
        assert text in said
        assert len(said.splitlines()) <= 4, said
    assert not server.versions
